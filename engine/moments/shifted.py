"""Second moments about a constant: moving the constant, and turning them into a covariance.

With t = sum (x - c) and G = sum (x - c)(x - c)', moving the constant by D = c - c' gives
G' = G + D t' + t D' + n D D'. Adding two such sums taken about one constant is the pairwise update of Chan,
Golub and LeVeque ("Algorithms for computing the sample variance", The American Statistician 37, 1983) before
the means are subtracted; the subtraction is done once, in `finish`, in fp64.
"""

from __future__ import annotations

import torch

from modegap.kernels import by_rows, mirror_lower

_BLOCK = 256


def add_outer(rows: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """rows [n, d] += left [n] right' [d], rounded after the product and after the sum.

    torch's `addr_` fuses the two in its vector loop and not in the rest of a row, and where that begins depends on
    how the work was shared out: one bit of a few entries then changed from run to run.
    """
    rows.add_(torch.outer(left, right))


def move_lower(
    gram: torch.Tensor, source: torch.Tensor, total: torch.Tensor, count: int, delta: torch.Tensor | None
) -> None:
    """gram += source moved by delta, on the lower triangle, by row blocks.

    Args:
        gram: fp64 [d, d], about the constant c'.
        source: fp64 [d, d], about c; unchanged.
        total: fp64 [d], the source's sum of x - c.
        count: the source's rows.
        delta: c - c', fp64 [d], or None for 0.
    """

    def add(lo: int, hi: int) -> None:
        rows = gram[lo:hi, :hi]
        rows.add_(source[lo:hi, :hi].to(gram.device))
        if delta is not None:
            add_outer(rows, delta[lo:hi], total[:hi])
            add_outer(rows, total[lo:hi] + count * delta[lo:hi], delta[:hi])

    by_rows(add, gram, _BLOCK)


def finish(gram: torch.Tensor, total: torch.Tensor, count: int) -> torch.Tensor:
    """(gram - total total' / count) / (count - 1), in place and mirrored: the covariance with ddof 1."""

    def centre(lo: int, hi: int) -> None:
        rows = gram[lo:hi, :hi]
        add_outer(rows, total[lo:hi] * (-1.0 / count), total[:hi])
        rows.div_(count - 1)

    by_rows(centre, gram, _BLOCK)
    # Rounding can leave a channel that hardly varies at -1e-20.
    gram.diagonal().clamp_(min=0.0)
    mirror_lower(gram)
    return gram
