"""The HDF5 files of the published scripts, both ways.

At the root one float32 [samples, width] dataset a hook point, in chunks of 256 rows, allocated in advance for
all samples; `sample_ids` and each label as variable-length strings, "" where there is none; attributes
`n_samples`, `n_samples_actual` (if fewer were filled), `hook_names`, `hidden_dims`, `label_fields`,
`model_name`, `hf_path`, `dataset_name`, with JSON text for what is no plain value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from modegap.stores import LabelColumn

from .content import Content
from .formats import Rows, attributes_of, h5py, plain

LABELS = frozenset(
    (
        *("transcript", "speaker_id", "emotion", "sound_class", "caption", "question", "answer", "text"),
        *("object_category", "super_category", "question_type"),
        *("object_count", "avg_obj_size", "spatial_spread"),
    )
)
"""Names that the scripts know for labels: they take every other dataset for a hook point."""

_COMPUTED = {"n_samples", "n_samples_actual", "hook_names", "hidden_dims", "label_fields"}


def read_hdf5(file: Any) -> Content:
    """Return what an open HDF5 file holds; string datasets are labels, `sample_ids` the ids.

    Raises:
        ValueError: an attribute or a string is not what the layout says.
    """
    # A link to nowhere is None, and so is the shape of an empty data set.
    found = {name: file.get(name) for name in file}
    datasets = {name: one for name, one in found.items() if getattr(one, "shape", None) is not None}
    arrays: dict[str, Rows] = {}
    labels: dict[str, Sequence[Any] | LabelColumn] = {}
    ids: list[str] | None = None
    metadata = {key: plain(_decoded(value)) for key, value in file.attrs.items()}
    filled = metadata.get("n_samples_actual")
    for name, dataset in datasets.items():
        if dataset.dtype.kind in "OS" and len(dataset.shape) == 1:
            texts = [_text(value) for value in dataset[:]]
            if name == "sample_ids":
                ids = texts
            else:
                labels[name] = _column(texts)
        elif dataset.dtype.kind != "O":
            arrays[name] = dataset
    named = metadata.get("hook_names")
    points = tuple(named) if isinstance(named, list) and named and set(named) <= set(arrays) else None
    kept = {key: value for key, value in metadata.items() if key not in _COMPUTED}
    for ours, theirs in (("model", ("hf_path", "model_name")), ("dataset", ("dataset_name",))):
        named_as = next((kept[key] for key in theirs if kept.get(key)), None)
        if named_as is not None:
            kept.setdefault(ours, named_as)
    samples = filled if isinstance(filled, int) and not isinstance(filled, bool) else None
    return Content(arrays, kept, ids, labels, samples=samples, points=points)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _column(texts: list[str]) -> Sequence[str | None]:
    return [text or None for text in texts]


def _decoded(value: Any) -> Any:
    """Return an HDF5 attribute as JSON can hold it; text that is JSON was written as such."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def write_samples(
    file: Any,
    ids: Sequence[str],
    labels: Mapping[str, LabelColumn],
    widths: Mapping[str, int],
    provenance: Mapping[str, Any],
) -> None:
    """Add ids, the labels that the scripts know and their attributes to an open HDF5 file with the rows."""
    known = {name: column for name, column in labels.items() if name in LABELS and name not in widths}
    for name, texts in {"sample_ids": list(ids), **{n: _strings(c) for n, c in known.items()}}.items():
        made = file.create_dataset(name, (len(ids),), dtype=_string_dtype())
        made[:] = np.array(texts, dtype=object)
    described = {
        **provenance,
        "model_name": provenance.get("model_name") or provenance.get("model") or "unknown",
        "dataset_name": provenance.get("dataset_name") or provenance.get("dataset") or "unknown",
        "pool_strategy": "mean",
        "n_samples": len(ids),
        "hook_names": list(widths),
        "hidden_dims": dict(widths),
        "label_fields": list(known),
    }
    file.attrs.update(attributes_of(described))


def _strings(column: LabelColumn) -> list[str]:
    return ["" if value is None else str(value) for value in column.values]


def _string_dtype() -> Any:
    return h5py().string_dtype("utf-8")
