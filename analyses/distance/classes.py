"""Which rows of two stores belong to the same class."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from modegap.stores.errors import StoreError, unknown_name

if TYPE_CHECKING:
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


def rows_of_class(
    store: ActivationStore, point: str, kind: str, label: str, value: str, most: int, seed: int
) -> Rows:
    """Up to `most` global row indices of the complete samples of a class, ascending."""
    array = store.rows(point, "tokens" if kind == "tokens" else "pooled")
    stop = array.n_valid_rows
    found: list[Rows] = []
    for sample, given in enumerate(store.labels[label].values):
        if given is not None and str(given) == value:
            first, last = array.sample_range(sample)
            found.append(np.arange(first, min(last, stop), dtype=np.int64))
    rows = np.concatenate(found) if found else np.empty(0, np.int64)
    if len(rows) > most:
        rows = np.random.default_rng(seed).choice(rows, most, replace=False)
    return np.sort(rows)
