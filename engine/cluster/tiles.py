"""Covariances whose partial results no worker can hold: computed tile by tile, one pass over the rows each.

A tile of w x w channels takes w^2 instead of d^2 numbers; every tile's pass is spread over the workers as any
reduction's. Chunks span the whole width, so the rows are read once a tile: fewer and larger workers are faster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Self

import torch

from modegap.engine.batch import ActivationBatch, PairedBatch
from modegap.engine.certificate import Certificate, path_facts
from modegap.engine.errors import EngineError
from modegap.engine.moments import CrossMoments, Moments, MomentsResult
from modegap.engine.moments.audit import audit_error, audited
from modegap.engine.shards import boundary_of
from modegap.kernels import KernelPath

from .memory import fits, leaf_bytes, merge_bytes

STEP = 512
"""Tiles begin at multiples of the host kernels' own tiles, so that the same products are rounded alike."""


class OfColumns:
    """A reduction of some channels of the rows: of `left`, or of the pairs of `left` and `right`.

    Args:
        inner: Moments, or CrossMoments for pairs.
        left: channels.
        right: channels of the second side.
    """

    def __init__(self, inner: Any, left: Any, right: Any = None) -> None:
        """Nothing seen."""
        self._inner, self._left, self._right = inner, left, right

    def boundary(self, device: str | None = None) -> int:
        """As the reduction inside."""
        return boundary_of(self._inner, device)

    def fresh(self) -> Self:
        """Nothing seen, of the same channels."""
        return type(self)(self._inner.fresh(), self._left, self._right)

    def update(self, batch: ActivationBatch) -> None:
        """Add the channels of one batch."""
        x = replace(batch, x=batch.x[:, self._left].contiguous(), magnitudes=None)
        if self._right is None:
            self._inner.update(x)
        else:
            self._inner.update(
                PairedBatch(x, replace(batch, x=batch.x[:, self._right].contiguous(), magnitudes=None))
            )

    def merge(self, other: Self) -> Self:
        """This reduction with the rows of `other` added."""
        self._inner = self._inner.merge(other._inner)
        return self

    def finalize(self) -> Any:
        """The result of the reduction inside."""
        return self._inner.finalize()

    def state_dict(self) -> Mapping[str, Any]:
        """Of the reduction inside."""
        found: Mapping[str, Any] = self._inner.state_dict()
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._inner.load_state_dict(state)


def tile_width(width: int, limit: int, block: int, chunk: int) -> int:
    """Channels of a tile, a multiple of 512, whose partial results a worker of `limit` bytes can hold.

    Args:
        width: channels d.
        limit: bytes.
        block: bytes of a reduction's block of rows.
        chunk: bytes of a chunk.

    Raises:
        EngineError: not even the smallest.
    """
    found = -(-width // STEP) * STEP
    while found > STEP and not fits(tile_bytes(found, block, chunk), limit):
        found -= STEP
    if not fits(tile_bytes(found, block, chunk), limit):
        raise EngineError(
            f"a tile of {found} x {found} channels takes {tile_bytes(found, block, chunk) / 1e9:.2f} GB, the largest "
            f"worker has a limit of {limit / 1e9:.2f} GB: start fewer workers with more memory each"
        )
    return min(found, width)


def tile_bytes(width: int, block: int, chunk: int) -> int:
    """Memory that a tile's tasks take: its fp64 square, and a twentieth for sums and shifts beside it."""
    state = int(8.4 * width * width) + (1 << 20)
    return max(leaf_bytes(state, block, chunk), merge_bytes(state))


def moments_by_tiles(
    reduction: Moments, width: int, size: int, spread: Callable[[Any, int, int], Any]
) -> MomentsResult:
    """Mean and covariance as `Moments.finalize` returns them, in tiles of `size` channels.

    Args:
        reduction: its mode, audited channels, blocks and seed are taken.
        width: channels d.
        size: channels of a tile.
        spread: called as `spread(reduction, number, count)`; the reduction of all rows, not finalized.
    """
    options: dict[str, Any] = {"block_rows": reduction.block_rows, "seed": reduction.seed}
    edges = [slice(lo, min(lo + size, width)) for lo in range(0, width, size)]
    index = audited(width, reduction.audit_columns, reduction.seed)
    count = len(edges) * (len(edges) + 1) // 2 + bool(len(index))
    covariance = torch.empty((width, width), dtype=torch.float64)
    own: list[MomentsResult] = []
    facts: dict[str, Mapping[str, str]] = {}
    done = 0
    for at, left in enumerate(edges):
        found = spread(OfColumns(Moments(reduction.mode, 0, **options), left), done, count).finalize()
        covariance[left, left] = found.covariance.cpu()
        own.append(found)
        facts = {**facts, **found.certificate.kernel_paths}
        done += 1
        for right in edges[:at]:
            inner = CrossMoments(reduction.mode, 0, **options)
            cross = spread(OfColumns(inner, left, right), done, count).finalize()
            covariance[left, right] = cross.cross_covariance.cpu()
            covariance[right, left] = covariance[left, right].T
            facts = {**facts, **cross.certificate.kernel_paths}
            done += 1
    error = None
    if len(index):
        exact = (
            spread(OfColumns(Moments("exact", 0, **options), index), done, count).finalize().covariance.cpu()
        )
        variance = exact.diagonal()
        error = audit_error(covariance[index][:, index], variance, variance, exact)
    overflow = sum(one.overflow_count for one in own)
    paths = [KernelPath(op, path["name"], path["why"]) for op, path in facts.items()]
    return MomentsResult(
        count=own[0].count,
        mean=torch.cat([one.mean.cpu() for one in own]),
        covariance=covariance,
        absmax=torch.cat([one.absmax.cpu() for one in own]),
        overflow_count=overflow,
        audit_error=error,
        audit_columns=index,
        certificate=Certificate(
            mode=reduction.mode,
            kernel_paths=path_facts(paths),
            count=own[0].count,
            width=width,
            overflow_count=overflow,
            audit_error=error,
        ),
    )
