"""Host covariance from fp16 rows in memory: ours through `Moments`, and the code one would write without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from bench import peers
from bench.harness import Call, Case
from modegap.engine.batch import ActivationBatch
from modegap.engine.moments import Moments
from modegap.kernels import Mode

from .data import BLOCK, F64, graded, rows_of


def covariance_cases(d: int) -> Iterator[Case]:
    """Precise against everything at hand; exact against those that work in fp64 throughout."""
    n = rows_of(d)
    inputs = [graded(n, d, seed) for seed in range(2)]
    error = _distance(np.cov(inputs[0].numpy().astype(np.float64), rowvar=False))
    others, missing = peers.covariance(inputs)

    def over(call: Callable[[torch.Tensor], object]) -> list[Call]:
        return [lambda x=x: call(x) for x in inputs]

    loop64 = {
        "loop: C += x.T @ x, fp64": over(lambda x: _loop(x, np.float64)),
        "paper: all rows in fp64, centred": over(_paper),
    }
    narrow = {
        "loop: C += x.T @ x, fp32": over(lambda x: _loop(x, np.float32)),
        "torch.cov(x.float().T)": over(lambda x: torch.cov(x.float().T)),
    }
    yield Case(
        "covariance",
        d,
        {"modegap precise": over(lambda x: _ours(x, "precise")), **narrow, **loop64, **others},
        error,
        3e-6,
        bytes=2.0 * n * d + 8.0 * d * d,
        flops=1.0 * n * d * (d + 1),
        rate="fp32",
        repeats=7,
        inaccurate=frozenset(narrow),
        missing=missing,
    )
    yield Case(
        "covariance exact",
        d,
        {
            "modegap exact": over(lambda x: _ours(x, "exact")),
            "np.cov(x, rowvar=False), fp64": over(
                lambda x: np.cov(x.numpy().astype(np.float64), rowvar=False)
            ),
            "torch.cov(x.double().T)": over(lambda x: torch.cov(x.double().T)),
            **loop64,
        },
        error,
        1e-10,
        bytes=2.0 * n * d + 8.0 * d * d,
        flops=1.0 * n * d * (d + 1),
        rate="fp64",
        repeats=5,
    )


def _ours(x: torch.Tensor, mode: Mode) -> torch.Tensor:
    """What `modegap cov` does with rows it has read, the fp64 audit of 64 columns included."""
    moments = Moments(mode)
    for start in range(0, len(x), BLOCK):
        moments.update(ActivationBatch(x[start : start + BLOCK], start, "adapter_output"))
    return moments.finalize().covariance


def _loop(x: torch.Tensor, dtype: type[np.floating]) -> np.ndarray:
    """Uncentred sums over batches, the mean taken off at the end: what streaming scripts do."""
    width = x.shape[1]
    gram, total = np.zeros((width, width), dtype), np.zeros(width, dtype)
    for part in x.split(BLOCK):
        rows = part.numpy().astype(dtype)
        gram += rows.T @ rows
        total += rows.sum(0)
    mean = total / len(x)
    return (gram - len(x) * np.outer(mean, mean)) / (len(x) - 1)


def _paper(x: torch.Tensor) -> np.ndarray:
    """What the paper's scripts do, written anew: every row in memory, in fp64, less the mean."""
    rows = x.numpy().astype(np.float64)
    centred = rows - rows.mean(0)
    found: np.ndarray = centred.T @ centred / (len(rows) - 1)
    return found


def _distance(want: np.ndarray) -> Callable[[object], float]:
    """max |dS_ij| / sqrt(S_ii S_jj)."""
    exact = torch.from_numpy(want)
    scale = (exact.diagonal()[:, None] * exact.diagonal()).sqrt()
    return lambda got: float(((torch.as_tensor(got, dtype=F64) - exact).abs() / scale).max())


def gram_cases(d: int) -> Iterator[Case]:
    """The update inside a covariance: rows staged already, one block of 2,048 added to a master."""
    from modegap.kernels import Workspace, covariance_update

    n = min(2048, rows_of(d))
    generator = torch.Generator().manual_seed(2)
    inputs = [torch.randn(n, d, generator=generator) * torch.logspace(-2, 1, d) for _ in range(2)]
    want = inputs[0].double().T @ inputs[0].double()
    scale = (want.diagonal()[:, None] * want.diagonal()).sqrt()

    master, sums, wide = torch.zeros(d, d, dtype=F64), np.zeros((d, d), np.float32), np.zeros((d, d))
    narrow, workspace = torch.zeros(d, d), Workspace()

    def ours(x: torch.Tensor) -> torch.Tensor:
        master.numpy().fill(0.0)
        covariance_update(x, master, workspace=workspace)
        return master

    def fixed(
        call: Callable[[torch.Tensor], torch.Tensor], over: Sequence[torch.Tensor] = inputs
    ) -> list[Call]:
        return [lambda x=x: call(x) for x in over]

    yield Case(
        "Gram update",
        d,
        {
            "modegap precise": fixed(ours),
            "numpy C += x.T @ x, fp32": fixed(lambda x: _added(sums, x.numpy(), x.numpy())),
            "torch C.addmm_(x.T, x), fp32": fixed(lambda x: narrow.zero_().addmm_(x.T, x)),
            "numpy C += x.T @ x, fp64": fixed(lambda x: _added(wide, *(x.numpy().astype(np.float64),) * 2)),
        },
        lambda got: float(((got.double() - want).tril().abs() / scale).max()),
        3e-6,
        bytes=4.0 * n * d + 8.0 * d * d,
        flops=1.0 * n * d * (d + 1),
        rate="fp32",
        repeats=9,
        inaccurate=frozenset({"numpy C += x.T @ x, fp32", "torch C.addmm_(x.T, x), fp32"}),
    )


def cross_cases(d: int) -> Iterator[Case]:
    """The update inside a cross-covariance of two points of width d: one block of staged rows."""
    from modegap.kernels import Workspace, cross_update

    n = min(2048, rows_of(d))
    generator = torch.Generator().manual_seed(4)
    scale = torch.logspace(-2, 1, d)
    pairs = [
        (torch.randn(n, d, generator=generator) * scale, torch.randn(n, d, generator=generator) * scale)
        for _ in range(2)
    ]
    a, b = (part.double() for part in pairs[0])
    want = a.T @ b
    size = torch.outer(a.norm(dim=0), b.norm(dim=0))

    master, sums, wide = torch.zeros(d, d, dtype=F64), np.zeros((d, d), np.float32), np.zeros((d, d))
    narrow, workspace = torch.zeros(d, d), Workspace()

    def ours(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        master.numpy().fill(0.0)
        cross_update(a, b, master, workspace=workspace)
        return master

    def double(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return _added(wide, a.numpy().astype(np.float64), b.numpy().astype(np.float64))

    yield Case(
        "cross-covariance",
        d,
        {
            "modegap precise": [lambda a=a, b=b: ours(a, b) for a, b in pairs],
            "numpy C += a.T @ b, fp32": [
                lambda a=a, b=b: _added(sums, a.numpy(), b.numpy()) for a, b in pairs
            ],
            "torch C.addmm_(a.T, b), fp32": [
                lambda a=a, b=b: narrow.zero_().addmm_(a.T, b) for a, b in pairs
            ],
            "numpy C += a.T @ b, fp64": [lambda a=a, b=b: double(a, b) for a, b in pairs],
        },
        lambda got: float(((got.double() - want).abs() / size).max()),
        3e-6,
        bytes=8.0 * n * d + 8.0 * d * d,
        flops=2.0 * n * d * d,
        rate="fp32",
        repeats=7,
    )


def _added(total: np.ndarray, a: np.ndarray, b: np.ndarray) -> torch.Tensor:
    """total = 0; total += a.T @ b: what a stream does with a block."""
    total[...] = 0
    total += a.T @ b
    return torch.from_numpy(total)
