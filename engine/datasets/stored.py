"""The texts of an activation store: what a text baseline reads beside the media that were captured."""

from __future__ import annotations

from pathlib import Path

from modegap.engine.errors import EngineError

from .labels import Wanted, choose
from .table import Row, TableDataset

# Stores made here keep the texts under the first name, imported ones under the others.
TEXT_LABELS = ("text", "transcript", "caption", "question")


def open_stored(path: Path, *, text: str | None = None, labels: Wanted | None = None) -> TableDataset:
    """A text data set: the store's samples, in its order and under its ids, with its labels; reads no rows.

    Args:
        path: the store.
        text: the label that holds the texts; the first of text, transcript, caption, question unless given.
        labels: other labels to keep; all unless given.

    Raises:
        EngineError: no such label, or it holds numbers; lists what there is.
        StoreError: no store there.
    """
    from modegap.stores import ActivationStore

    store = ActivationStore.open(path)
    columns = store.labels
    source = text or next((name for name in TEXT_LABELS if name in columns), None)
    listed = ", ".join(f"{name} ({column.kind})" for name, column in columns.items()) or "none"
    if source not in columns:
        wanted = "none of the labels " + ", ".join(TEXT_LABELS) if source is None else f"no label {source!r}"
        raise EngineError(
            f"store {path} has {wanted} (it has {listed}); name the label of the texts with text="
        )
    if columns[source].kind == "number":
        raise EngineError(
            f"the label {source!r} of store {path} holds numbers; name one of texts (it has {listed})"
        )
    texts = ["" if value is None else str(value) for value in columns[source].values]
    name = str(store.provenance.get("dataset") or path.stem)
    rows = [Row(sample, given) for sample, given in zip(store.samples, texts, strict=True)]
    others = {key: list(column.values) for key, column in columns.items() if key != source}
    return TableDataset(name, "text", rows, choose(others, labels, name, infer=False))
