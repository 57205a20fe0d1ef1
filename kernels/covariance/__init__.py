"""The Gram update behind every covariance: `covariance_update`, `mirror_lower`."""

from __future__ import annotations

import torch

from modegap.kernels.check import float64, floating, matrix, same_device
from modegap.kernels.dispatch import KernelPath, Mode, check_mode, run
from modegap.kernels.threads import by_rows
from modegap.kernels.workspace import Workspace

from . import cpu, reference  # noqa: F401  (they register themselves)

__all__ = ["covariance_update", "mirror_lower"]


def covariance_update(
    rows: torch.Tensor, gram: torch.Tensor, *, mode: Mode = "precise", workspace: Workspace | None = None
) -> KernelPath:
    """gram[i, j] += sum_n rows[n, i] rows[n, j] for i >= j.

    Args:
        rows: [n, d], staged by `stage` (shifted, so that precision is not lost to the mean): on the host fp32
            in modes precise and fast, fp64 in mode exact.
        gram: fp64 [d, d], row-major. The lower triangle with the diagonal accumulates; what stands above the
            diagonal is undefined until `mirror_lower`.
        mode: precise promotes fp32 sums to fp64 every 2,048 rows on the host and sooner on a GPU; exact
            multiplies and adds in fp64; fast may chain further where that is quicker (on the host it is not,
            so fast equals precise there).
        workspace: scratch reused between calls; without one each call allocates.

    Returns:
        The path that ran.

    Flops: n d (d + 1), half those of a full product. Bytes, host: rows twice, the triangle of `gram` read
    and written once per 2,048 rows.

    Raises:
        ValueError: shapes, dtypes, devices or mode are not as above.
    """
    check_mode(mode)
    matrix("rows", rows)
    floating("rows", rows)
    matrix("gram", gram, rows=rows.shape[1], width=rows.shape[1])
    float64("gram", gram)
    same_device(rows=rows, gram=gram)
    if gram.stride(1) != 1:
        raise ValueError(f"gram: got strides {gram.stride()}, expected row-major")
    if mode == "exact" and rows.dtype is not torch.float64:
        raise ValueError(f"rows: got {rows.dtype} in mode exact, expected float64")
    return run("covariance_update", __name__, rows, gram, mode=mode, workspace=workspace)[1]


def mirror_lower(gram: torch.Tensor, *, block: int = 512) -> None:
    """Copy the lower triangle of a square matrix onto the upper one, in place."""

    def mirror(lo: int, hi: int) -> None:
        gram[:lo, lo:hi] = gram[lo:hi, :lo].T
        diagonal = gram[lo:hi, lo:hi]
        diagonal.copy_(diagonal.tril() + diagonal.tril(-1).T)

    by_rows(mirror, gram, block)
