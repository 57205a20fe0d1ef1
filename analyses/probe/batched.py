"""The batched solver: torch, rows standardised once a split, fits side by side on a GPU."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from .lbfgs import Solution, minimise
from .problems import Problem
from .reference import Fitted
from .splits import Codes, Request

_BLOCK = 64  # rows standardised at a time: 1 MB at d = 4096, which stays in the cache between the passes
# Part of the free device memory that the problems of one batch may take.
_SHARE = 0.7
_HOST = 2e9  # bytes, where that cannot be asked


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """The requests of one split: rows of the store and C of each request; `audit` the first one in fp64."""

    train: Codes
    test: Codes
    requests: Sequence[Request]
    strengths: Sequence[float]
    audit: bool = False


def fit_batched(
    x: torch.Tensor, jobs: Sequence[Job], *, tol: float, max_iter: int, together: bool | None = None
) -> list[list[Fitted]]:
    """Fit every request of every job: on a GPU side by side as far as the memory goes, on a CPU one by one.

    fp32, where the row space makes the Gram matrix of a split the operator while it has fewer than 2 d rows. A
    fit that stalls above its tolerance in fp32 goes on in fp64.

    Args:
        x: rows of a hook point [N, d], fp32, on the device to compute on.
        jobs: the splits.
        tol: largest |gradient of the mean loss| to stop at.
        max_iter: iterations to stop at.
        together: side by side or one by one; None goes by the device.
    """
    out: list[list[Fitted]] = []
    if together is None:
        together = x.device.type != "cpu"
    with _full_precision():
        for group in _groups(x, jobs) if together else ([job] for job in jobs):
            out += _fit_group(x, group, tol, max_iter, together=together)
    return out


def standardise(
    x: torch.Tensor, train: torch.Tensor, test: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The training and the test rows, z-scored with the mean and standard deviation (ddof 0) of the training.

    Sums are taken about the first training row, so a constant channel has variance 0 exactly; like
    scikit-learn's scaler it is then divided by 1.
    """
    n, width = len(train), x.shape[1]
    z = torch.index_select(x, 0, train)
    pilot = z[0].clone()
    first = torch.zeros(width, dtype=torch.float64, device=x.device)
    second = torch.zeros_like(first)
    step = _BLOCK if x.device.type == "cpu" else n
    for block in torch.split(z, step):
        block.sub_(pilot)
        first += block.sum(0)
        second += (block * block).sum(0)
    mean = first / n
    variance = (second / n - mean * mean).clamp_(min=0)
    # scikit-learn's rule for a channel that is constant up to rounding
    centre = mean + pilot
    eps = torch.finfo(torch.float64).eps
    bound = n * eps * variance + (n * centre * eps) ** 2
    scale = torch.where(variance <= bound, 1.0, variance.sqrt())
    inverse, shift = (1 / scale).to(x.dtype), mean.to(x.dtype)
    for block in torch.split(z, step):
        block.sub_(shift).mul_(inverse)
    tested = torch.index_select(x, 0, test)
    for block in torch.split(tested, step):
        block.sub_(pilot).sub_(shift).mul_(inverse)
    return z, tested


def uses_gram(n: int, width: int) -> bool:
    """Whether n training rows of `width` channels are multiplied through their Gram matrix."""
    return n < 2 * width


def _fit_group(
    x: torch.Tensor, jobs: Sequence[Job], tol: float, max_iter: int, *, together: bool
) -> list[list[Fitted]]:
    problems: list[Problem] = []
    tested: list[torch.Tensor] = []
    for job in jobs:
        z, rows = standardise(x, _index(job.train, x), _index(job.test, x))
        gram = _gram(z) if uses_gram(*z.shape) else None
        for request, strength in zip(job.requests, job.strengths, strict=True):
            problems.append(_problem(z, gram, request, strength))
            tested.append(rows)
    # By row space or not; on the host one by one, where the working set of one problem already fills the cache.
    found: dict[int, Solution] = {}
    for batch in _batches(problems, together=together):
        solutions = minimise([problems[i] for i in batch], tol=tol, max_iter=max_iter)
        found |= dict(zip(batch, solutions, strict=True))
    out, at = [], 0
    for job in jobs:
        fits = []
        for number, request in enumerate(job.requests):
            audit = job.audit and number == 0
            fits.append(_finish(problems[at], found[at], request, tested[at], tol, max_iter, audit))
            at += 1
        out.append(fits)
    return out


def _finish(
    problem: Problem,
    solution: Solution,
    request: Request,
    tested: torch.Tensor,
    tol: float,
    max_iter: int,
    audit: bool,
) -> Fitted:
    if not solution.converged and solution.iterations < max_iter:
        solution = _continue(problem, solution, tol, max_iter)
    weights = problem.primal(solution.coefficients.to(problem.z.dtype))
    rows = tested if request.held is None else problem.z[_index(request.held, problem.z)]
    logits = (rows @ weights.T).double() + solution.intercept.double()
    return Fitted(
        logits.cpu().numpy(),
        solution.iterations,
        solution.converged,
        solution.gradient,
        gradient(problem, weights, solution.intercept) if audit else None,
    )


def gradient(problem: Problem, weights: torch.Tensor, intercept: torch.Tensor) -> float:
    """max |gradient of the mean loss| of weights [K, d] and intercepts [K], in fp64 from the rows.

    With two classes the first row is that of the class whose logit is 0.
    """
    wide, shift = weights.double(), intercept.double()
    rows = torch.arange(len(problem.z), device=wide.device) if problem.index is None else problem.index
    codes = _index(problem.codes, wide)
    slopes = wide / problem.C
    shifts = torch.zeros_like(shift)
    for some, own in zip(torch.split(rows, 256), torch.split(codes, 256), strict=True):
        z = problem.z[some].double()
        residual = torch.softmax(z @ wide.T + shift, dim=1)
        residual.scatter_add_(1, own[:, None], residual.new_full((len(own), 1), -1))
        slopes.addmm_(residual.T, z)
        shifts += residual.sum(0)
    first = int(problem.classes == 2)
    top = torch.maximum(slopes[first:].abs().max(), shifts[first:].abs().max())
    return float(top) / len(rows)


def _continue(problem: Problem, begun: Solution, tol: float, max_iter: int) -> Solution:
    """Where fp32 stalls above the tolerance: the rest of the way in fp64.

    Under a strong penalty (C of 1e-4 and less) rounding can leave a Gram matrix with an eigenvalue below 0, along
    which the objective falls without end. Such a fit begins again, by the rows.
    """
    z = problem.z if problem.index is None else problem.z[problem.index]
    wide = replace(problem, z=z.double(), index=None, gram=None)
    solution, taken = begun, begun.iterations
    if _possible(problem, begun):
        gram = None if problem.gram is None else wide.z @ wide.z.T
        again = replace(wide, gram=gram)
        solution = minimise([again], tol=tol, max_iter=max_iter - taken, start=[begun])[0]
        taken += solution.iterations
    if not _possible(problem, solution) and taken < max_iter:
        solution = minimise([wide], tol=tol, max_iter=max_iter - taken)[0]
        taken += solution.iterations
    return replace(solution, iterations=taken)


def _possible(problem: Problem, solution: Solution) -> bool:
    """Whether the objective is one that a descent from 0 can have: it is never negative, and n log K at 0."""
    return 0 <= solution.objective <= len(problem.codes) * math.log(problem.classes) * (1 + 1e-6)


def _problem(z: torch.Tensor, gram: torch.Tensor | None, request: Request, strength: float) -> Problem:
    classes = len(request.present)
    if request.rows is None:
        return Problem(z, request.codes, classes, strength, gram=gram)
    index = _index(request.rows, z)
    if gram is None:
        return Problem(z, request.codes, classes, strength, index=index)
    part = gram.index_select(0, index).index_select(1, index)
    return Problem(z, request.codes, classes, strength, index=index, gram=part)


def _gram(z: torch.Tensor) -> torch.Tensor:
    if z.device.type == "cpu" and z.dtype == torch.float32:
        rows = z.numpy()
        return torch.from_numpy(rows @ rows.T)  # numpy calls syrk: half the multiply-adds of torch's product
    return z @ z.T


def _batches(problems: Sequence[Problem], *, together: bool) -> Iterator[list[int]]:
    if not together:
        yield from ([i] for i in range(len(problems)))
        return
    for gram in (True, False):
        if batch := [i for i, p in enumerate(problems) if (p.gram is not None) == gram]:
            yield batch


def _groups(x: torch.Tensor, jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Jobs that fit in the device's memory together."""
    room = _SHARE * torch.cuda.mem_get_info(x.device)[0] if x.device.type == "cuda" else _HOST
    group: list[Job] = []
    taken = 0.0
    for job in jobs:
        need = _bytes(job, x.shape[1])
        if group and taken + need > room:
            yield group
            group, taken = [], 0.0
        group.append(job)
        taken += need
    if group:
        yield group


def _bytes(job: Job, width: int) -> float:
    """fp32 bytes of a job: rows, Gram matrices twice (their own and in the batch), L-BFGS vectors."""
    n = len(job.train)
    total = 2.0 * (n + len(job.test)) * width
    for request in job.requests:
        used = len(request.codes)
        total += 2.0 * used**2 * uses_gram(n, width) + 60 * used * len(request.present)
    return 4 * total


def _index(rows: Codes, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(rows)).to(like.device)


@contextmanager
def _full_precision() -> Iterator[None]:
    """No tf32 or bf16 inside fp32 products, whatever the process has chosen."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
