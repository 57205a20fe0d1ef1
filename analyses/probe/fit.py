"""The fits of one hook point: which solver, on how many threads, and what each seed scores."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .calibration import calibrated
from .config import ProbeConfig
from .reference import Fitted, fit_reference
from .splits import Codes, Request, Task, tasks

if TYPE_CHECKING:
    import torch

    from .batched import Job

# Multiply-adds of one pass over the rows below which threads cost more than they save: each of L-BFGS's hundreds of
# passes wakes them. Measured on two busy cores, 1,152 x 128 with 8 classes: 0.2 s on one thread, 17 s on two.
_THREADED = 2**26
# The batched solver is the faster one on a CPU from so many multiply-adds a pass, where its Gram matrix is the
# smaller operand. Measured on one core, ms a fit, scikit-learn and batched: 600 x 256, 8 classes (2^20) 31 and 65;
# 600 x 1,024, 8 classes (2^22) 91 and 76; 2,000 x 256, 16 classes, more than 2 d rows, 89 and 150.
_BATCHED = 2**22
# Bytes that the seeds fitted at a time may take together where their number is not given.
_MEMORY = 2e9


@dataclass(frozen=True, slots=True)
class Scores:
    """One seed's test scores.

    Attributes:
        seed: of the split.
        accuracy: share of the test samples whose class was given.
        macro_f1: mean over the classes.
        converged: the gradient fell to the tolerance.
        n_train: samples fitted to.
        n_test: samples tested on.
        cross_entropy: on the test samples after calibration, nats; None without calibration.
        uncalibrated: the same of the probabilities as fitted, nats.
        trust: the calibration's weight of the probe's log-likelihood ratio.
        control: accuracy of the same fit to random classes; None unless asked for.
        iterations: of L-BFGS.
        gradient: max |gradient of the mean loss| at the end; None from scikit-learn, which does not say.
        audit: the same recomputed in fp64 from the weights, where the batched solver was audited.
    """

    seed: int
    accuracy: float
    macro_f1: float
    converged: bool
    n_train: int
    n_test: int
    cross_entropy: float | None = None
    uncalibrated: float | None = None
    trust: float | None = None
    control: float | None = None
    iterations: int = 0
    gradient: float | None = None
    audit: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """What is probed at a point.

    Attributes:
        keep: rows of the store that have a class [n].
        codes: their classes 0..K-1 [n].
        groups: groups that no split divides [n], or None.
        kinds: what the control task draws one random class for [n], or None for every sample.
    """

    keep: Codes
    codes: Codes
    groups: Codes | None = None
    kinds: Codes | None = None


@dataclass(frozen=True, slots=True)
class CellFit:
    """A cell's scores, one a seed, and the solver that fitted them with the reason for it."""

    scores: tuple[Scores, ...]
    solver: str
    why: str


def choose(n_train: int, width: int, classes: int, config: ProbeConfig) -> tuple[str, str]:
    """(solver, why) for fits of n_train rows of `width` channels."""
    work = n_train * width * classes
    if config.solver != "auto":
        return config.solver, "asked for"
    if config.on_device:
        return "batched", f"the rows are on {config.device}"
    if config.law == "paper":
        return "sklearn", "the paper's law: scikit-learn's own iterates, stopped where its scripts stop"
    if n_train >= 2 * width:
        return "sklearn", f"{n_train:,} rows, at least twice the {width:,} channels"
    if work < _BATCHED:
        return "sklearn", f"{work:,} multiply-adds a pass, fewer than {_BATCHED:,}"
    return "batched", f"{work:,} multiply-adds a pass, at least {_BATCHED:,}, and fewer rows than 2 d"


Drawn = dict[tuple[bytes | None, ...], list[Task]]
"""Tasks by the cell they were drawn for; 15 splits of 50 classes take a quarter of a GPU's time to fit them."""


def fit_point(
    x: NDArray[np.float32], cells: Sequence[Labelled], config: ProbeConfig, drawn: Drawn | None = None
) -> Iterator[CellFit]:
    """Scores of every seed of the cells of one hook point, one cell after the other.

    On a GPU all splits of the point are fitted side by side. On the host `config.n_jobs` splits are fitted at a
    time, on threads, with an equal share of the cores each for their linear algebra, small ones with one core. A
    running split holds one z-scored copy of its rows and, in the batched solver with fewer than 2 d rows, their
    Gram matrix.

    Args:
        x: pooled rows of all samples [N, d].
        cells: labels to probe.
        config: the options.
        drawn: tasks of cells that other hook points share, under the same options; what is drawn here is added.
    """
    planned = [_tasks(cell, config, {} if drawn is None else drawn) for cell in cells]
    shapes = [
        (len(p[0].train), x.shape[1], int(c.codes.max()) + 1) for p, c in zip(planned, cells, strict=True)
    ]
    chosen = [choose(*shape, config) for shape in shapes]
    every = [task for plan in planned for task in plan]
    fits = (
        _on_device(x, planned, config) if config.on_device else _on_host(x, planned, shapes, chosen, config)
    )
    scores: Iterator[Scores] = map(_scores, every, fits)
    if config.on_device and config.calibration:
        # A calibration takes 20 ms of a core, a fit half of that; without it starting threads takes the longest.
        with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="modegap-probe") as pool:
            scores = iter(list(pool.map(_scores, every, fits)))
    for plan, (name, why) in zip(planned, chosen, strict=True):
        yield CellFit(tuple(islice(scores, len(plan))), name, why)


def _tasks(cell: Labelled, config: ProbeConfig, drawn: Drawn) -> list[Task]:
    parts = (cell.keep, cell.codes, cell.groups, cell.kinds)
    key = tuple(None if part is None else part.tobytes() for part in parts)
    if key not in drawn:
        drawn[key] = tasks(cell.keep, cell.codes, config, cell.groups, cell.kinds)
    return drawn[key]


def _on_host(
    x: NDArray[np.float32],
    planned: Sequence[Sequence[Task]],
    shapes: Sequence[tuple[int, int, int]],
    chosen: Sequence[tuple[str, str]],
    config: ProbeConfig,
) -> Iterator[list[Fitted]]:
    from joblib import Parallel, delayed
    from threadpoolctl import threadpool_limits

    cores = os.cpu_count() or 1
    jobs = config.n_jobs
    if jobs is None:
        # Products of 40 columns gain little from a second thread, a second split twice the speed.
        rows = max((n for n, _, _ in shapes), default=0)
        room = int(_MEMORY // max(4 * rows * (x.shape[1] + min(rows, 2 * x.shape[1])), 1))
        batched = any(name == "batched" for name, _ in chosen)
        jobs = max(1, min(cores, room)) if batched else 1
    jobs = min(jobs, max(sum(map(len, planned)), 1))
    large = max((n * d * k for n, d, k in shapes), default=0) >= _THREADED
    threads = max(1, cores // jobs) if large else 1
    with threadpool_limits(threads):
        yield from Parallel(n_jobs=jobs, prefer="threads", return_as="generator")(
            delayed(_one)(x, task, config, name, threads, first=i == 0)
            for plan, (name, _) in zip(planned, chosen, strict=True)
            for i, task in enumerate(plan)
        )


def _one(
    x: NDArray[np.float32], task: Task, config: ProbeConfig, solver: str, threads: int, *, first: bool
) -> list[Fitted]:
    if solver == "sklearn":
        options = {"tol": config.tol, "max_iter": config.iterations}
        strengths = _strengths(task.requests, config)
        return fit_reference(x, task.train, task.test, task.requests, strengths, **options)  # type: ignore[arg-type]
    import torch

    from .batched import fit_batched

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        job = _job(task, config, audit=first)
        return fit_batched(torch.from_numpy(x), [job], tol=config.tol, max_iter=config.iterations)[0]
    finally:
        torch.set_num_threads(before)


def _on_device(
    x: NDArray[np.float32], planned: Sequence[Sequence[Task]], config: ProbeConfig
) -> list[list[Fitted]]:
    import torch

    from .batched import fit_batched

    jobs = [_job(task, config, audit=i == 0) for plan in planned for i, task in enumerate(plan)]
    rows: torch.Tensor = torch.from_numpy(x).to(config.device)
    return fit_batched(rows, jobs, tol=config.tol, max_iter=config.iterations)


def _job(task: Task, config: ProbeConfig, *, audit: bool) -> Job:
    from .batched import Job

    return Job(task.train, task.test, task.requests, _strengths(task.requests, config), audit)


def _strengths(requests: Sequence[Request], config: ProbeConfig) -> list[float]:
    return [config.strength(len(request.codes)) for request in requests]


def _scores(task: Task, fits: Sequence[Fitted]) -> Scores:
    fit, *others = fits
    train, test = task.codes
    guess = task.requests[0].present[fit.logits.argmax(axis=1)]
    control = None
    if task.control is not None:
        random, *others = others
        said = task.requests[1].present[random.logits.argmax(axis=1)]
        control = float((said == task.control[1]).mean())
    calibration = None
    if others:
        inner = [
            (found.logits, request.present, train[request.held])
            for found, request in zip(others, task.requests[-len(others) :], strict=True)
        ]
        classes = int(max(train.max(), test.max())) + 1
        calibration = calibrated((fit.logits, task.requests[0].present, test), inner, train, classes)
    return Scores(
        seed=task.seed,
        accuracy=float((guess == test).mean()),
        macro_f1=macro_f1(test, guess),
        converged=fit.converged,
        n_train=len(train),
        n_test=len(test),
        cross_entropy=calibration.cross_entropy if calibration else None,
        uncalibrated=calibration.uncalibrated if calibration else None,
        trust=calibration.trust if calibration else None,
        control=control,
        iterations=fit.iterations,
        gradient=fit.gradient,
        audit=fit.audit,
    )


def macro_f1(codes: Codes, guess: Codes) -> float:
    """Mean F1 of the classes that occur among `codes` [n] or `guess` [n], as scikit-learn's f1_score gives it.

    scikit-learn's own took 4 ms a fit, a fit on a GPU 10.
    """
    classes = int(max(codes.max(), guess.max())) + 1
    right = np.bincount(codes[codes == guess], minlength=classes)
    named = np.bincount(codes, minlength=classes) + np.bincount(guess, minlength=classes)
    return float((2 * right[named > 0] / named[named > 0]).mean())
