"""What the host paths share: which matrix product this processor runs best, packed blocks, tiles, sums.

A Gram update sums fp32 products over at most `SUM_ROWS` rows, sums such sums in fp32 over at most
`CHAIN_ROWS` rows, and adds those to an fp64 master, by tiles of the lower triangle that stay in the
second-level cache, in one single-threaded matrix product a tile and worker. Two engines compute the products:

- oneDNN's fp32 matmul through torch, where the processor has AVX-512. It picks its kernel by CPUID, so Zen 4
  and 5 get AVX-512 too, where OpenBLAS 0.3.31 falls back to its Haswell kernels and MKL to AVX2.
- numpy's BLAS (OpenBLAS, Accelerate, MKL) elsewhere, held to one thread a worker.

Measured on Zen 5, d = 4096, milliseconds of CPU time for 2,048 rows: numpy `C += x.T @ x` in fp32 376;
torch.mm (MKL) 740; SYRK 320 at chains of 256 rows and more, 355 at 128; BLAS tiles at 128 420; oneDNN tiles
186 at 2,048 rows a chain, 203 at 256 and 215 at 128; restricted to AVX2 the oneDNN tiles take 410. SYRK at
128 writes its whole triangle for every chain: with two threads it took 0.18 s where BLAS tiles took 0.21 and
the numpy line 0.25 to 0.31, but 0.52 against 0.42 on a busy machine, and it needs 4 d^2 bytes more, so tiles
serve both engines. A whole pass over 393,216 rows, reading included, took 27.6 s with oneDNN, 49.2 s
as the obvious numpy loop through zarr-python, and 45.2 s as that loop over this store's reader.

Why so short a chain. Rounding to nearest is unbiased only where the discarded bits are evenly spread, and
squares are not: stored fp16 values are integers times a power of two, odd squares are 1 mod 8, and once the
sum needs more than 24 bits every addition rounds the same way. Chains of 2,048 rows biased the variances by
-6e-6 at mean/std = 8 and +7e-7 at mean 0, chains of 128 by less than 1e-6 at any mean/std (worst near 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch

from .threads import blas_alone, parallel
from .workspace import Workspace

SUM_ROWS = 128
"""Rows whose products are summed one after the other in fp32."""

CHAIN_ROWS = 2048
"""Most rows that are summed in fp32 before they are added to an fp64 master."""

_TILE_COLUMNS = 256
_TILE_ROWS = 512
_WIDE_TILE = 512
_MANY_WORKERS = 8
_DOT = 512

LEAST_SQUARE, MOST_SQUARE = 1e-24, 1e36
"""Between these a sum of fp32 squares is sound: 1e6 squares that each lose 1e-38 to underflow are nothing."""

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def needs_grad(*tensors: torch.Tensor | None) -> bool:
    """Whether autograd would record an operation on these: the host paths write in place, the oracles do not."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


@cache
def _onednn_linear() -> Any:
    """oneDNN's dense fp32 linear as a torch operator, or None where it would not run AVX-512."""
    mkldnn: Any = torch.backends.mkldnn
    if not mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    namespace = torch.ops.mkldnn
    return namespace._linear_pointwise.default if hasattr(namespace, "_linear_pointwise") else None


def onednn_refusal() -> str:
    """Why oneDNN may not be used now ("" where it may).

    `torch.set_float32_matmul_precision("high" | "medium")` lets oneDNN round fp32 operands to bf16 or tf32,
    which would break the precision contract, so the setting is looked at before every call.
    """
    if _onednn_linear() is None:
        return "no AVX-512 or no oneDNN"
    if torch.get_float32_matmul_precision() != "highest":
        return f"float32_matmul_precision is {torch.get_float32_matmul_precision()!r}"
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    if getattr(matmul, "fp32_precision", "none") not in ("none", "ieee"):
        return "torch.backends.mkldnn.matmul.fp32_precision is not 'ieee'"
    return ""


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a b' in fp32 by oneDNN, for contiguous a [p, n] and b [q, n].

    A strided operand runs a reference loop, over 1,000 times slower, hence the assertion.
    """
    assert a.is_contiguous()
    assert b.is_contiguous()
    if not a.numel() or not b.numel():  # oneDNN refuses
        return a.new_zeros(len(a), len(b))
    result: torch.Tensor = _onednn_linear()(a, b, None, "none", [], "")
    return result


def blas_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a b' by numpy's BLAS, which on AMD's processors is twice as fast in fp64 as torch's (MKL)."""
    return torch.from_numpy(np.matmul(a.numpy(), b.numpy().T))


@contextmanager
def products(dtype: torch.dtype) -> Iterator[Product]:
    """The best a b' for contiguous operands of that dtype, to be called by the workers of `parallel`."""
    if dtype is torch.float32 and not onednn_refusal():
        yield product
    else:
        with blas_alone():
            yield blas_product


def dots(a: torch.Tensor, b: torch.Tensor) -> float:
    """Sum of a_ij b_ij, fp32 or fp64 and contiguous: in a's dtype over 512 values, in fp64 over those sums.

    A single chain over 131,072 squares is off by 3e-6 (numpy), by 6e-6 and at worst 2e-4 (torch's norm);
    this one by 1e-7.
    """
    left, right = a.numpy().reshape(-1), b.numpy().reshape(-1)
    rest = len(left) % _DOT
    with np.errstate(over="ignore", invalid="ignore"):  # callers look at what comes back
        total = float(np.dot(left[len(left) - rest :], right[len(left) - rest :])) if rest else 0.0
        if rest < len(left):
            whole = len(left) // _DOT
            sums = np.matmul(
                left[: whole * _DOT].reshape(whole, 1, _DOT), right[: whole * _DOT].reshape(whole, _DOT, 1)
            )
            total += float(sums.sum(dtype=np.float64))
    return total


def row_squares(rows: torch.Tensor) -> np.ndarray:
    """Sum of squares of every row [n], fp32 or fp64 and contiguous: summed as in `dots`."""
    x = rows.numpy()
    whole = x.shape[1] // _DOT * _DOT
    with np.errstate(over="ignore", invalid="ignore"):
        pieces = x[:, :whole].reshape(len(x), -1, _DOT) if whole else x[:, None, :0]
        out: np.ndarray = np.matmul(pieces[:, :, None, :], pieces[:, :, :, None]).sum(
            axis=(1, 2, 3), dtype=np.float64
        )
        if whole < x.shape[1]:
            rest = x[:, whole:]
            out += np.matmul(rest[:, None, :], rest[:, :, None])[:, 0, 0]
    return out


def linear(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """rows weight' [n, q] for rows [n, k] in fp32 or fp64 and a weight [q, k], by row blocks."""
    rows, weight = rows.contiguous(), weight.to(rows.dtype).contiguous()
    out = torch.empty((len(rows), len(weight)), dtype=rows.dtype)

    def block(lo: int) -> None:
        out[lo : lo + _TILE_ROWS] = times(rows[lo : lo + _TILE_ROWS], weight)

    with products(rows.dtype) as times:
        parallel(block, range(0, len(rows), _TILE_ROWS))
    return out


def pack(rows: torch.Tensor, workspace: Workspace, name: str) -> list[torch.Tensor]:
    """rows [n, d] as transposed contiguous pieces [d, SUM_ROWS], the last one narrower."""
    n, d = rows.shape
    memory = workspace.get(name, (n * d,), rows.dtype)
    starts = range(0, n, SUM_ROWS)
    sizes = [min(SUM_ROWS, n - lo) for lo in starts]
    pieces = [memory[lo * d : (lo + m) * d].view(d, m) for lo, m in zip(starts, sizes, strict=True)]

    def fill(i: int) -> None:
        pieces[i].copy_(rows[i * SUM_ROWS : i * SUM_ROWS + sizes[i]].T)

    parallel(fill, range(len(pieces)))
    return pieces


def add_products(
    left: list[torch.Tensor], right: list[torch.Tensor], out: torch.Tensor, *, lower: bool
) -> None:
    """out += sum over pieces of left_i right_i', by tiles.

    Args:
        left: pieces [p, m_i] of `pack`.
        right: pieces [q, m_i].
        out: fp64 [p, q].
        lower: left and right are the same rows and only the lower triangle is wanted; entries above the
            diagonal in the tiles on it are added as well.
    """
    height, width = out.shape
    # One tile's result and operands fill half of a 1 MiB cache; with many workers the time to issue an
    # operation (12 us, mostly under Python's lock) would bind, so tiles are taller there.
    tall = _TILE_ROWS if torch.get_num_threads() <= _MANY_WORKERS else 4 * _TILE_ROWS
    tiles = [
        (row, column)
        for column in range(0, width, _TILE_COLUMNS)
        for row in range(column if lower else 0, height, tall)
    ]

    def tile(at: tuple[int, int]) -> None:
        row, column = at
        total: torch.Tensor | None = None
        for a, b in zip(left, right, strict=True):
            part = times(a[row : row + tall], b[column : column + _TILE_COLUMNS])
            total = part if total is None else total.add_(part)
        if total is not None:
            # torch adds tensors of two dtypes value by value: 2.5 ns each, where cast and addition take 1.
            out[row : row + tall, column : column + _TILE_COLUMNS].add_(total.double())

    with products(torch.float32) as times:
        parallel(tile, tiles)


def add_wide(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor, *, lower: bool) -> None:
    """out += left' right in fp64, by tiles.

    As fast as DSYRK and DGEMM in BLAS's own threads, which spin for up to 0.1 s after a call: beside them, the
    operations between two updates wait for a processor.

    Args:
        left: fp64 [n, p].
        right: fp64 [n, q].
        out: fp64 [p, q].
        lower: left is right and only the lower triangle is wanted; the tiles on the diagonal are whole.
    """
    a, b = left.numpy(), right.numpy()
    height, width = out.shape
    tiles = [
        (row, column)
        for column in range(0, width, _WIDE_TILE)
        for row in range(column if lower else 0, height, _WIDE_TILE)
    ]

    def tile(at: tuple[int, int]) -> None:
        row, column = at
        here = b[:, column : column + _WIDE_TILE]
        # numpy takes SYRK for the product of a matrix with its own transpose.
        there = here if lower and row == column else a[:, row : row + _WIDE_TILE]
        part = torch.from_numpy(np.matmul(there.T, here))
        out[row : row + _WIDE_TILE, column : column + _WIDE_TILE].add_(part)

    with blas_alone():
        parallel(tile, tiles)
