"""The pooled rows that probes are fitted to: the store's own, or means of its token rows."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from modegap.stores import ActivationStore
from modegap.stores.errors import StoreError

Pool = Literal["stored", "all", "modality"]
_MEDIA = ("image", "audio")


def stored_pool(store: ActivationStore) -> str:
    """What the store's pooled rows are means over: `all` tokens of a sample, or those of its `modality`."""
    return str(store.provenance.get("pool", "all"))


def has_pool(store: ActivationStore, point: str, pool: Pool) -> bool:
    """Whether rows of this pooling are stored, or can be made of the token rows."""
    return _as_stored(store, point, pool) or (store.points[point].rows != "pooled" and pool != "stored")


def _as_stored(store: ActivationStore, point: str, pool: Pool) -> bool:
    return store.points[point].rows != "tokens" and pool in ("stored", stored_pool(store))


def complete_samples(store: ActivationStore, point: str, pool: Pool) -> int:
    """How many samples, from the first, have their rows at this point."""
    if _as_stored(store, point, pool):
        return store.rows(point, "pooled").n_valid_rows
    rows = store.rows(point, "tokens")
    lengths = rows.lengths()
    assert lengths is not None  # token rows are ragged
    return int((np.cumsum(lengths) <= rows.n_valid_rows).sum())


def check_pool(store: ActivationStore, point: str, pool: Pool) -> None:
    """Raises StoreError where rows of this pooling are not there; the message says how to have them."""
    if has_pool(store, point, pool):
        return
    if pool == "stored":
        raise StoreError(
            f"{point} has token rows only, probes take pooled rows: extract with rows=pooled or rows=both, or give "
            "pool=all"
        )
    raise StoreError(
        f"the pooled rows of {point} are means over {stored_pool(store)} tokens and there are no token rows to "
        f"take others from: extract with rows=both, or with pool={pool}"
    )


def pooled_rows(store: ActivationStore, point: str, count: int, pool: Pool) -> NDArray[np.float32]:
    """One row a sample, [count, d], of the first `count` samples: stored, or a masked mean in fp64.

    A store that was extracted with rows=both holds both poolings of a hook point at once: its mean rows are stored
    and the mean over the media tokens follows from the token rows, with no second capture.

    Raises:
        StoreError: such rows are not there (the message says how to have them), or a sample has no media tokens.
    """
    check_pool(store, point, pool)
    if _as_stored(store, point, pool):
        rows: NDArray[np.float32] = store.rows(point, "pooled").read(
            0, count, np.empty((count, store.points[point].width), np.float32)
        )
        return rows
    return _means(store, point, count, _MEDIA if pool == "modality" else None)


def _means(
    store: ActivationStore, point: str, count: int, select: tuple[str, ...] | None
) -> NDArray[np.float32]:
    import torch

    from modegap.engine.stream import stream

    sums = torch.zeros((count, store.points[point].width), dtype=torch.float64)
    tokens = torch.zeros(count, dtype=torch.int64)
    samples = np.arange(count) if count < len(store.samples) else None
    for batch in stream(store, point, kind="tokens", select=select, samples=samples):
        assert batch.sample is not None  # token rows know their sample
        sums.index_add_(0, batch.sample, batch.x.double(), alpha=batch.scale)
        tokens += torch.bincount(batch.sample, minlength=count)
    empty = torch.nonzero(tokens == 0)
    if len(empty):
        named = store.samples[int(empty[0, 0])]
        raise StoreError(
            f"{len(empty)} of {count} samples, {named!r} first, have no media tokens at {point}: leave the point "
            "out, or take pool=all"
        )
    means: NDArray[np.float32] = (sums / tokens[:, None]).float().numpy()
    return means
