"""Cross product of two sets of rows: `cross_update`."""

from __future__ import annotations

import torch

from modegap.kernels.check import float64, floating, matrix, same_device
from modegap.kernels.dispatch import KernelPath, Mode, check_mode, run
from modegap.kernels.workspace import Workspace

from . import cpu, reference  # noqa: F401  (they register themselves)

__all__ = ["cross_update"]


def cross_update(
    a: torch.Tensor,
    b: torch.Tensor,
    out: torch.Tensor,
    *,
    mode: Mode = "precise",
    workspace: Workspace | None = None,
) -> KernelPath:
    """out[i, j] += sum_n a[n, i] b[n, j].

    Args:
        a: [n, p] staged rows; on the host fp32 (precise, fast) or fp64 (exact).
        b: [n, q] staged rows of the same samples and dtype.
        out: fp64 [p, q].
        mode: as in `covariance_update`.
        workspace: scratch reused between calls.

    Returns:
        The path that ran.

    Flops: 2 n p q.

    Raises:
        ValueError: shapes, dtypes, devices or mode are not as above.
    """
    check_mode(mode)
    matrix("a", a)
    matrix("b", b, rows=a.shape[0])
    floating("a", a)
    if a.dtype != b.dtype:
        raise ValueError(f"a and b: got {a.dtype} and {b.dtype}, expected one dtype")
    matrix("out", out, rows=a.shape[1], width=b.shape[1])
    float64("out", out)
    same_device(a=a, b=b, out=out)
    if mode == "exact" and a.dtype is not torch.float64:
        raise ValueError(f"a: got {a.dtype} in mode exact, expected float64")
    return run("cross_update", __name__, a, b, out, mode=mode, workspace=workspace)[1]
