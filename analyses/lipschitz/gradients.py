"""One pass of gradients over a store, from which both `lipschitz` and `gradproj` are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from modegap.analyses.align.columns import columns_shape, read_columns
from modegap.engine.cluster import RemoteReplay
from modegap.engine.cluster.replicas import batches_of
from modegap.kernels import KernelPath, gradient_norms, last_path

if TYPE_CHECKING:
    from modegap.analyses.replayed.opening import AnyReplay
    from modegap.engine.replay import GradientBatch, Replay

Float = NDArray[np.float64]

# Gradient rows whose projections are held at a time: 4,096 rows by 4,096 modes are 64 MiB of fp32.
_ROWS = 4096
# Bytes that directions may take on the device at once: all of them up to a width of 9,400.
_BUDGET = 1 << 30
_COLUMNS = ("norms", "log_q", "mean_norms")


@dataclass(frozen=True, slots=True, eq=False)
class GradientPass:
    """What one pass leaves of the gradients; samples in the order of the source, failed ones left out.

    Attributes:
        members: numbers of the samples in the source, ascending [n].
        norms: sqrt of the sum over positions and channels of the squared gradient [n].
        log_q: mean target log-probability, nats a token [n].
        lengths: stored rows of each sample [n].
        mean_norms: norm of the gradient's mean over positions [n].
        means: g_k as published: mean over samples of |(mean_t grad_t)' u_k| [K]; None without modes.
        tokens: mean over samples and positions of |grad_t' u_k| [K].
        kept: modes whose projections are kept sample by sample [k].
        kept_means: |(mean_t grad_t)' u_k| of those [n, k].
        kept_tokens: mean_t |grad_t' u_k| of those [n, k].
        paths: kernel paths that ran.
    """

    members: NDArray[np.int64]
    norms: Float
    log_q: Float
    lengths: NDArray[np.int64]
    mean_norms: Float
    means: Float | None
    tokens: Float | None
    kept: NDArray[np.int64]
    kept_means: Float
    kept_tokens: Float
    paths: tuple[KernelPath, ...]


@dataclass(slots=True)
class _Part:
    norms: Float
    log_q: Float
    mean_norms: Float
    means: Float
    tokens: Float
    path: KernelPath = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class _Share:
    """What some batches leave: samples in the order of the batches, sums over them [2, K]."""

    members: NDArray[np.int64]
    columns: dict[str, Float]
    sums: Float
    kept: Float
    paths: tuple[KernelPath, ...]


def gradient_pass(
    replay: AnyReplay, modes: Float | str | Path | None = None, *, keep: Sequence[int] = ()
) -> GradientPass:
    """Gradients of every sample's mean target log-probability: one batched forward and backward a batch.

    Args:
        replay: what is replayed, here or on workers; samples that fail are in its `failures`.
        modes: directions u_k in columns [d, K], or the file that `Modes.save` wrote, which workers then read
            themselves; None takes norms only.
        keep: columns of `modes` whose projections are kept sample by sample.
    """
    chosen = np.asarray(keep, dtype=np.int64)
    if isinstance(replay, RemoteReplay):
        given = (modes if modes is None or isinstance(modes, np.ndarray) else str(modes), chosen)
        batches = batches_of(len(replay.source), replay.batch_size)
        shares = replay.map(_share, batches, given, "gradients")
    else:
        shares = [_share(replay, None, (modes, chosen))]
    n = len(replay.source)
    count = shares[0].sums.shape[1]
    columns = {name: np.full(n, np.nan) for name in _COLUMNS}
    kept = np.full((2, n, len(chosen)), np.nan)
    sums = np.zeros((2, count))
    for share in shares:
        for name, column in columns.items():
            column[share.members] = share.columns[name]
        kept[:, share.members] = share.kept
        sums += share.sums
    done = np.flatnonzero(np.isfinite(columns["norms"]))
    lengths = np.array([len(item.slot) for item in replay.source.items], dtype=np.int64)
    means, tokens = sums / max(len(done), 1)
    return GradientPass(
        members=done,
        norms=columns["norms"][done],
        log_q=columns["log_q"][done],
        lengths=lengths[done],
        mean_norms=columns["mean_norms"][done],
        means=None if modes is None else means,
        tokens=None if modes is None else tokens,
        kept=chosen,
        kept_means=kept[0][done],
        kept_tokens=kept[1][done],
        paths=tuple(dict.fromkeys(path for share in shares for path in share.paths)),
    )


def _share(
    replay: Replay, span: tuple[int, int] | None, given: tuple[Float | str | Path | None, NDArray[np.int64]]
) -> _Share:
    """The batches of a span (all for None)."""
    modes, chosen = given
    U = None if modes is None else ModeColumns(modes, replay.decoder.device)
    members: list[int] = []
    columns: dict[str, list[Float]] = {name: [] for name in _COLUMNS}
    sums = np.zeros((2, 0 if U is None else U.count))
    kept: list[Float] = []
    paths: list[KernelPath] = []
    for some, part in replay.gradients(lambda batch: _measure(batch, U), span=span):
        members += some
        for name, column in columns.items():
            column.append(getattr(part, name))
        sums += np.stack([part.means.sum(axis=0), part.tokens.sum(axis=0)])
        kept.append(np.stack([part.means[:, chosen], part.tokens[:, chosen]]))
        paths.append(part.path)
    return _Share(
        np.asarray(members, dtype=np.int64),
        {name: np.concatenate(column) if column else np.empty(0) for name, column in columns.items()},
        sums,
        np.concatenate(kept, axis=1) if kept else np.empty((2, 0, len(chosen))),
        tuple(dict.fromkeys(paths)),
    )


class ModeColumns:
    """Directions [d, K] on a device, split by columns where they would take more than `budget` bytes at once.

    From a file only the columns at work are read; directions that fit are kept.

    Args:
        modes: [d, K], or the file that `Modes.save` wrote.
        device: where the products are computed.
        budget: bytes that they may take, in fp32 and fp64.
    """

    def __init__(self, modes: Float | str | Path, device: torch.device, budget: int = _BUDGET) -> None:
        """Read nothing but the shape."""
        self._modes, self._device = modes, device
        self._shape = modes.shape if isinstance(modes, np.ndarray) else columns_shape(modes)
        most = max(1, budget // (12 * self._shape[0]))
        self._edges = [(lo, min(lo + most, self.count)) for lo in range(0, self.count, most)]
        self._held: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def count(self) -> int:
        """Directions K."""
        return int(self._shape[1])

    def __iter__(self) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """(columns, fp64 [d, k] on the device, the same in fp32) of each block."""
        for lo, hi in self._edges:
            found = self._held
            if found is None:
                of = self._modes
                part = of[:, lo:hi] if isinstance(of, np.ndarray) else read_columns(of, range(lo, hi))
                found = _on(self._device, part)
            if len(self._edges) == 1:
                self._held = found
            yield slice(lo, hi), *found


def _on(device: torch.device, part: Float) -> tuple[torch.Tensor, torch.Tensor]:
    """Directions in fp64 and fp32 on a device, which converts and transposes them.

    Columns of 4,096 x 4,096 that lie one after the other (as torch.linalg.qr leaves them) took the host 240 ms to
    transpose, eight samples' time.
    """
    if min(part.strides) < 0:  # torch has no such tensors
        part = np.ascontiguousarray(part)
    wide = torch.from_numpy(part).to(device).to(torch.float64).contiguous()
    return wide, wide.float()


def _measure(batch: GradientBatch, U: ModeColumns | None) -> _Part:
    """The norms from one read by the kernel; the products with all modes are plain matrix products."""
    ends = batch.cu_seqlens
    norms = gradient_norms(batch.g, ends)[0] / batch.scale
    path = last_path("gradient_norms")
    lengths = ends.diff()
    of_all = torch.arange(len(lengths), device=ends.device)
    owner = torch.repeat_interleave(of_all, lengths, output_size=len(batch.g))
    width = 0 if U is None else U.count
    sums = torch.zeros((len(lengths), batch.g.shape[1]), dtype=torch.float32, device=batch.g.device)
    for start in range(0, len(batch.g), _ROWS):
        sums.index_add_(0, owner[start : start + _ROWS], batch.g[start : start + _ROWS].float())
    per_row = lengths[:, None] * batch.scale
    means = sums.double() / per_row
    projected, tokens = np.empty((2, len(lengths), width))
    for columns, block, narrow in U or ():
        along = torch.zeros((len(lengths), narrow.shape[1]), dtype=torch.float32, device=batch.g.device)
        for start in range(0, len(batch.g), _ROWS):
            rows, of = batch.g[start : start + _ROWS].float(), owner[start : start + _ROWS]
            along.index_add_(0, of, (rows @ narrow).abs_())
        projected[:, columns] = (means @ block).abs().cpu().numpy()
        tokens[:, columns] = (along.double() / per_row).cpu().numpy()
    return _Part(
        norms.cpu().numpy(),
        batch.log_q.cpu().numpy(),
        means.norm(dim=1).cpu().numpy(),
        projected,
        tokens,
        path,
    )
