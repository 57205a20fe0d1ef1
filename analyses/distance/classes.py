"""Which rows of two stores belong to the same class."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from modegap.stores.errors import StoreError, unknown_name

if TYPE_CHECKING:
    from modegap.engine.stream import Kind
    from modegap.stores import ActivationStore

Rows = NDArray[np.int64]


def shared_classes(modal: ActivationStore, text: ActivationStore, label: str, most: int) -> list[str]:
    """The most frequent classes of the modal store, at most `most`; classes as text.

    Raises:
        StoreError: a store without the label, or with a text column of that name.
    """
    for name, store in (("modal", modal), ("text", text)):
        if label not in store.labels:
            raise StoreError(f"{name} store: {unknown_name('label', label, store.labels)}")
        if store.labels[label].kind == "text":
            raise StoreError(f"{name} store: {label} holds free text, classes need a category or a number")
    counts = Counter(str(value) for value in modal.labels[label].values if value is not None)
    return [value for value, _ in counts.most_common(most)]


def rows_of_samples(
    store: ActivationStore,
    point: str,
    kind: Kind,
    chosen: NDArray[np.bool_],
    most: int,
    rng: np.random.Generator,
) -> Rows:
    """Up to `most` global row indices of the complete ones among the chosen samples [samples], ascending."""
    array = store.rows(point, kind)
    stop = array.n_valid_rows
    ranges = [array.sample_range(int(i)) for i in np.flatnonzero(chosen)]
    parts = [np.arange(first, min(last, stop), dtype=np.int64) for first, last in ranges if first < stop]
    rows = np.concatenate(parts) if parts else np.empty(0, np.int64)
    if len(rows) > most:
        rows = rng.choice(rows, most, replace=False)
    return np.sort(rows)
