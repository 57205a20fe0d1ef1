"""One pass of gradients over a store, from which both `lipschitz` and `gradproj` are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from modegap.kernels import KernelPath, gradient_norms, last_path

if TYPE_CHECKING:
    from modegap.engine.replay import GradientBatch, Replay

Float = NDArray[np.float64]

# Gradient rows whose projections are held at a time: 4,096 rows by 4,096 modes are 64 MiB of fp32.
_ROWS = 4096


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


def gradient_pass(
    replay: Replay, modes: NDArray[np.float64] | None = None, *, keep: Sequence[int] = ()
) -> GradientPass:
    """Gradients of every sample's mean target log-probability: one batched forward and backward a batch.

    Args:
        replay: what is replayed; samples that fail are in its `failures`.
        modes: directions u_k in columns [d, K]; None takes norms only.
        keep: columns of `modes` whose projections are kept sample by sample.
    """
    device = replay.decoder.device
    U = None if modes is None else torch.from_numpy(np.ascontiguousarray(modes)).to(device, torch.float32)
    count = 0 if modes is None else modes.shape[1]
    chosen = np.asarray(keep, dtype=np.int64)
    n = len(replay.source)
    columns = {name: np.full(n, np.nan) for name in ("norms", "log_q", "mean_norms")}
    sums = np.zeros((2, count))
    kept = np.full((2, n, len(chosen)), np.nan)
    paths: list[KernelPath] = []
    for members, part in replay.gradients(lambda batch: _measure(batch, U)):
        at = list(members)
        for name, column in columns.items():
            column[at] = getattr(part, name)
        sums += np.stack([part.means.sum(axis=0), part.tokens.sum(axis=0)])
        kept[0, at], kept[1, at] = part.means[:, chosen], part.tokens[:, chosen]
        paths.append(part.path)
    done = np.flatnonzero(np.isfinite(columns["norms"]))
    lengths = np.array([len(item.slot) for item in replay.source.items], dtype=np.int64)
    means, tokens = sums / max(len(done), 1)
    return GradientPass(
        members=done,
        norms=columns["norms"][done],
        log_q=columns["log_q"][done],
        lengths=lengths[done],
        mean_norms=columns["mean_norms"][done],
        means=None if U is None else means,
        tokens=None if U is None else tokens,
        kept=chosen,
        kept_means=kept[0][done],
        kept_tokens=kept[1][done],
        paths=tuple(dict.fromkeys(paths)),
    )


def _measure(batch: GradientBatch, U: torch.Tensor | None) -> _Part:
    """The norms from one read by the kernel; the products with all modes are plain matrix products."""
    ends = batch.cu_seqlens
    norms = gradient_norms(batch.g, ends)[0] / batch.scale
    path = last_path("gradient_norms")
    lengths = ends.diff()
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=ends.device), lengths)
    width = 0 if U is None else U.shape[1]
    sums = torch.zeros((len(lengths), batch.g.shape[1]), dtype=torch.float32, device=batch.g.device)
    tokens = torch.zeros((len(lengths), width), dtype=torch.float32, device=batch.g.device)
    for start in range(0, len(batch.g), _ROWS):
        rows, of = batch.g[start : start + _ROWS].float(), owner[start : start + _ROWS]
        sums.index_add_(0, of, rows)
        if U is not None:
            tokens.index_add_(0, of, (rows @ U).abs_())
    means = sums.double() / (lengths[:, None] * batch.scale)
    projected = (means @ U.double()).abs() if U is not None else means[:, :0]
    return _Part(
        norms.cpu().numpy(),
        batch.log_q.cpu().numpy(),
        means.norm(dim=1).cpu().numpy(),
        projected.cpu().numpy(),
        (tokens.double() / (lengths[:, None] * batch.scale)).cpu().numpy(),
        path,
    )
