"""L-BFGS on the weights W = A Z, in the coefficients A [K, n].

The gradient in W is g Z with g = A + C (P - Y), and inner products of weights are <a, b> = tr a G b'. Every vector
is kept as its coefficients and its product with G; a direction is a combination of stored vectors, so its product
is the same combination, and an iteration needs one product, (P - Y) G. The two loops run on the matrix of inner
products (as in Chen, Wang and Zhou, "Large-scale L-BFGS using MapReduce", 2014). Memory, first step and the Wolfe
constants are those of L-BFGS-B, which scikit-learn calls, so that the iterates are its iterates up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .problems import Batch, Problem, host

_MEMORY = 10
_DECREASE, _CURVATURE = 1e-3, 0.9
# fp32 cross-entropies are known to about 1e-8 of their sum: a step may seem to go up by so much.
_NOISE = 1e-7
_TRIALS = 20
_REFRESH = 50  # iterations after which A G is computed anew
# Blocks of threads that keep a GPU busy, and entries that are worth one.
_BLOCKS, _SHORTEST = 1024, 1024

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """Where one problem's fit ended.

    Attributes:
        coefficients: A [K, n]; the weights are A Z [K, d]. With two classes the first row is 0.
        intercept: b [K].
        iterations: of L-BFGS.
        gradient: max |gradient of the mean loss|, weights and intercepts, at these coefficients.
        objective: sum of the cross-entropies + |W|^2 / (2 C), nats.
        converged: the gradient is at most the tolerance.
    """

    coefficients: torch.Tensor
    intercept: torch.Tensor
    iterations: int
    gradient: float
    objective: float
    converged: bool


def minimise(
    problems: Sequence[Problem], *, tol: float, max_iter: int, start: Sequence[Solution] | None = None
) -> list[Solution]:
    """Fit all problems side by side.

    Args:
        problems: on one device and of one dtype; all with a Gram matrix or none.
        tol: a problem is done when max |gradient of its mean loss| is at most this, scikit-learn's rule.
        max_iter: iterations.
        start: where to begin, one a problem; None begins at 0.
    """
    run = _Run(Batch(problems), tol, start)
    while run.active.any() and run.iteration < max_iter:
        run.step()
        if 0 < run.active.sum() <= len(run.active) / 2:
            run.drop_ended()
    if run.active.any():
        run.check(run.active)
    return run.solutions()


class _Run:
    """State of a batch. Vectors are [K n + K]: coefficients (or their product with G), then intercepts."""

    def __init__(self, batch: Batch, tol: float, start: Sequence[Solution] | None = None) -> None:
        self.batch, self.tol, self.iteration = batch, tol, 0
        count, classes, n = batch.shape
        like = batch.problems[0].z
        self.size = n * classes
        pieces = _pieces(like.device.type, count, self.size + classes)
        length = -(-(self.size + classes) // pieces)
        self.a = like.new_zeros(count, pieces * length)  # A and b, then 0
        self.product = torch.zeros_like(self.a)  # A G and b
        self.gradient, self.gradient_image = torch.zeros_like(self.a), torch.zeros_like(self.a)
        # 0: gradient; 1 + 2 j: step j, 2 + 2 j: change of the gradient along it; each in pieces
        self.basis = like.new_zeros(count * pieces, 1 + 2 * _MEMORY, length)
        self.image = torch.zeros_like(self.basis)
        self.inner = np.zeros((count, 1 + 2 * _MEMORY, 1 + 2 * _MEMORY))
        self.pairs: list[int] = []  # slots, oldest first
        self.strength = torch.from_numpy(batch.strength).to(self.a)[:, None]
        self.scale = batch.strength * np.array(batch.rows)
        self.numbers = np.arange(count)  # places of the problems still here among all
        self.dropped: dict[int, Solution] = {}
        self.active = np.ones(count, dtype=bool)
        self.ended = np.zeros(count, dtype=np.int64)
        self.reached = np.full(count, np.nan)
        self.stalled = np.zeros(count, dtype=bool)
        width = like.shape[1]
        entries = np.array([max(width * p.classes, 2) for p in batch.problems])
        # largest entry over norm of a gradient, guessed as for normal entries until one is looked at
        self.guess = np.sqrt(2 * np.log(entries) / entries).clip(max=1)
        self.ratio = self.guess.copy()
        self.checked = np.zeros(count, dtype=np.int64)
        for b, solution in enumerate(start or ()):
            known, rows = solution.coefficients.shape
            grid = self.a[b, : self.size].view(classes, n)
            grid[:known, :rows] = solution.coefficients.to(like.dtype)
            self.a[b, self.size : self.size + known] = solution.intercept.to(like.dtype)
        self._refresh()
        self._write_gradient()
        self._store_gradient()

    def step(self) -> None:
        """One iteration: direction, line search, new gradient, and where it may be small enough a check."""
        used = 1 + 2 * len(self.pairs)
        weights = self._direction(used)
        slope = np.einsum("bi,bi->b", weights, self.inner[:, 0, :used])
        uphill = self.active & ~(slope < 0)
        if uphill.any():
            weights[uphill] = 0
            weights[uphill, 0] = -1
            slope[uphill] = -self.inner[uphill, 0, 0]
        pieces = len(self.basis) // len(weights)
        mix = self._device(weights).repeat_interleave(pieces, 0)[:, None]
        along = torch.bmm(mix, self.basis[:, :used]).view_as(self.a)
        image = torch.bmm(mix, self.image[:, :used]).view_as(self.a)
        start = np.ones(len(slope))
        if not self.pairs:
            start = 1 / np.sqrt(np.maximum(self.inner[:, 0, 0], 1e-300))
        alpha = self._search(along, image, slope, start)
        self.iteration += 1
        moved = self._device(alpha)[:, None]
        along.mul_(moved)
        image.mul_(moved)
        self.a += along
        self.product += image
        if self.iteration % _REFRESH == 0:
            self._refresh()
        slot = self.pairs.pop(0) if len(self.pairs) == _MEMORY else len(self.pairs)
        s, y = 1 + 2 * slot, 2 + 2 * slot
        self.pairs.append(slot)
        self._write_gradient()
        for stored, step, new in (
            (self.basis, along, self.gradient),
            (self.image, image, self.gradient_image),
        ):
            stored[:, s] = step.view_as(stored[:, s])
            torch.sub(new.view_as(stored[:, 0]), stored[:, 0], out=stored[:, y])
        self._store_gradient(s, y)
        self._stop(alpha)

    def _stop(self, alpha: Float) -> None:
        stuck = self.active & (alpha == 0)
        again = stuck & self.stalled
        self.stalled = stuck
        if stuck.any():
            # Without its pairs the next direction is the gradient; a problem that stalls twice is at its end.
            self.inner[stuck, 1:, 1:] = 0
        norm = np.sqrt(np.maximum(self.inner[:, 0, 0], 0)) / self.scale
        near = norm * self.ratio <= self.tol
        overdue = (norm * self.guess <= self.tol) & (self.iteration - self.checked >= 10)
        look = self.active & (near | overdue | again)
        if look.any():
            self.check(look)
        self.active &= ~again

    def check(self, which: NDArray[np.bool_]) -> None:
        """Compute max |gradient| where asked; end what has converged, after computing its A G anew."""
        found = self._largest(which)
        passed = which & (found <= self.tol)
        if passed.any():
            self._refresh()
            self._write_gradient()
            self._store_gradient()
            found = np.where(passed, self._largest(passed), found)
            passed = which & (found <= self.tol)
        norm = np.sqrt(np.maximum(self.inner[:, 0, 0], 1e-300)) / self.scale
        self.ratio = np.where(which, np.minimum(found / norm, 1), self.ratio)
        self.checked[which] = self.iteration
        self.reached[which] = found[which]
        self.ended[which] = self.iteration
        self.active &= ~passed

    def drop_ended(self) -> None:
        """Go on with the problems that are not done: random classes take 20 times the iterations of real ones."""
        kept = np.flatnonzero(self.active)
        found = zip(self.numbers.tolist(), self._here(), strict=True)
        self.dropped |= {n: s for (n, s), going in zip(found, self.active, strict=True) if not going}
        on = torch.from_numpy(kept).to(self.a.device)
        for name in ("a", "product", "gradient", "gradient_image", "residual", "loss", "strength"):
            setattr(self, name, getattr(self, name).index_select(0, on))
        for name in ("basis", "image"):
            stored = getattr(self, name)
            by_problem = stored.view(len(self.active), -1, *stored.shape[1:])
            setattr(self, name, by_problem.index_select(0, on).flatten(0, 1))
        self.batch = self.batch.subset(kept)
        for name in ("numbers", "inner", "scale", "ended", "reached", "stalled", "guess", "ratio", "checked"):
            setattr(self, name, getattr(self, name)[kept])
        self.active = self.active[kept]

    def solutions(self) -> list[Solution]:
        """Every problem's, in their order."""
        found = self.dropped | dict(zip(self.numbers.tolist(), self._here(), strict=True))
        return [found[number] for number in sorted(found)]

    def _here(self) -> list[Solution]:
        """Those of the problems that were not dropped, without the padding."""
        count, classes, n = self.batch.shape
        grid = self.a[:, : self.size].view(count, classes, n)
        image = self.product[:, : self.size]
        penalty = host(torch.linalg.vecdot(self.a[:, : self.size], image)) / (2 * self.batch.strength)
        objective = host(self.loss) + penalty
        return [
            Solution(
                coefficients=grid[b, : problem.classes, :rows],
                intercept=self.a[b, self.size : self.size + problem.classes],
                iterations=int(self.ended[b]),
                gradient=float(self.reached[b]),
                objective=float(objective[b]),
                converged=bool(self.reached[b] <= self.tol),
            )
            for b, (problem, rows) in enumerate(zip(self.batch.problems, self.batch.rows, strict=True))
        ]

    def _device(self, values: Float) -> torch.Tensor:
        return torch.from_numpy(values).to(self.a)

    def _largest(self, which: NDArray[np.bool_]) -> Float:
        """max |gradient of the mean loss| where asked, 0 elsewhere."""
        asked = np.flatnonzero(which)
        weights = self.batch.steepest(self.gradient[:, : self.size].view(self.batch.shape), asked)
        intercepts = self.gradient[:, self.size :].abs().amax(1)
        out = np.zeros(len(which))
        out[asked] = host(torch.maximum(weights, intercepts[asked])) / self.scale[asked]
        return out

    def _logits(self, point: torch.Tensor) -> torch.Tensor:
        _, classes, _ = self.batch.shape
        grid, shift = point[:, : self.size].view(self.batch.shape), point[:, self.size : self.size + classes]
        return grid + shift[:, :, None]

    def _refresh(self) -> None:
        """A G anew, against the drift of adding up steps, and what follows from it."""
        self.product[:, : self.size] = self.batch.times(
            self.a[:, : self.size].view(self.batch.shape)
        ).flatten(1)
        self.product[:, self.size :] = self.a[:, self.size :]
        self.residual, self.loss = self.batch.residual(self._logits(self.product))

    def _write_gradient(self) -> None:
        image = self.batch.times(self.residual).flatten(1)
        size, end = self.size, self.size + self.batch.shape[1]
        residual = self.residual.flatten(1)
        torch.addcmul(self.a[:, :size], self.strength, residual, out=self.gradient[:, :size])
        torch.addcmul(self.product[:, :size], self.strength, image, out=self.gradient_image[:, :size])
        self.gradient[:, size:end] = self.strength * self.residual.sum(2)
        self.gradient_image[:, size:end] = self.gradient[:, size:end]

    def _store_gradient(self, *fresh: int) -> None:
        """Take the gradient into its slot; inner products of it and of what is in the slots `fresh` with all."""
        self.basis[:, 0] = self.gradient.view_as(self.basis[:, 0])
        self.image[:, 0] = self.gradient_image.view_as(self.image[:, 0])
        used, slots = 1 + 2 * len(self.pairs), [0, *fresh]
        images = torch.stack([self.image[:, slot] for slot in slots], 1)
        parts = torch.bmm(self.basis[:, :used], images.transpose(1, 2))
        count = len(self.inner)
        found = host(parts.view(count, -1, used, len(slots)).sum(1, dtype=torch.float64))
        self.inner[:, :used, slots] = found
        self.inner[:, slots, :used] = found.transpose(0, 2, 1)

    def _direction(self, used: int) -> Float:
        """Weights [B, used] of the stored vectors in -H g, by the two loops on their inner products."""
        inner = self.inner[:, :used, :used]
        q = np.zeros(inner.shape[:2])
        q[:, 0] = 1
        kept: list[tuple[int, Float, Float]] = []
        scale: Float | None = None
        for slot in reversed(self.pairs):
            s, y = 1 + 2 * slot, 2 + 2 * slot
            sy, yy = inner[:, s, y], inner[:, y, y]
            usable = sy > 1e-12 * np.sqrt(np.maximum(inner[:, s, s] * yy, 0))
            inverse = np.where(usable, 1 / np.where(usable, sy, 1), 0)
            if scale is None:
                scale = np.where(usable, sy / np.where(usable, yy, 1), 1)
            along = inverse * np.einsum("bi,bi->b", q, inner[:, s])
            q[:, y] -= along
            kept.append((slot, inverse, along))
        if scale is not None:
            q *= scale[:, None]
        for slot, inverse, along in reversed(kept):
            q[:, 1 + 2 * slot] += along - inverse * np.einsum("bi,bi->b", q, inner[:, 2 + 2 * slot])
        q[~self.active] = 0
        return -q

    def _search(self, along: torch.Tensor, image: torch.Tensor, slope: Float, start: Float) -> Float:
        """Step lengths that satisfy the Wolfe conditions, 0 where none was found; sets residual and loss.

        Logits are linear in the step, so a trial costs no product. The loss is convex along the line, so the
        root of its slope is bracketed and approached by secants.
        """
        size, strength = self.size, self.batch.strength
        base, line = self._logits(self.product), self._logits(image)
        # read with the first trial, so that the device need not be waited for twice
        facts = [
            torch.linalg.vecdot(self.a[:, :size], image[:, :size]).double(),
            torch.linalg.vecdot(along[:, :size], image[:, :size]).double(),
            self.loss,
        ]
        linear = square = before = np.zeros(0)
        alpha = np.where(self.active, start, 0.0)
        low, high = np.zeros_like(alpha), np.full_like(alpha, math.inf)
        slope_low, slope_high = slope.copy(), np.zeros_like(slope)
        done = ~self.active
        for trial in range(_TRIALS + 1):
            steps = self._device(alpha)[:, None, None]
            self.residual, self.loss = self.batch.residual(torch.addcmul(base, line, steps))
            now = torch.linalg.vecdot(self.residual.flatten(1), line.flatten(1))
            loss, now_slope, *known = host(torch.stack([self.loss, now.double(), *facts]))
            if known:
                linear, square, before = known[0], known[1], strength * known[2]
                facts = []
            slopes = strength * now_slope + linear + alpha * square
            change = strength * loss - before + alpha * linear + 0.5 * alpha**2 * square
            lower = change <= _DECREASE * alpha * slope + _NOISE * np.abs(before)
            done |= lower & (np.abs(slopes) <= _CURVATURE * np.abs(slope))
            if done.all() or trial == _TRIALS:
                break
            long = ~done & (~lower | (slopes > 0))
            short = ~done & ~long
            high, slope_high = np.where(long, alpha, high), np.where(long, slopes, slope_high)
            low, slope_low = np.where(short, alpha, low), np.where(short, slopes, slope_low)
            alpha = np.where(done, alpha, _next(low, high, slope_low, slope_high))
            if trial == _TRIALS - 1:
                alpha = np.where(done, alpha, low)
                done |= low > 0
        return alpha


def _pieces(device: str, count: int, length: int) -> int:
    """Parts that the vectors of `count` problems are cut into for their inner products.

    cuBLAS gives each batch entry of such a product (21 x length by length x 3) one block of threads, which left an
    H100 with 15 problems nine tenths idle: 3.5 ms, half of an iteration.
    """
    return 1 if device == "cpu" else max(1, min(_BLOCKS // count, length // _SHORTEST))


def _next(low: Float, high: Float, slope_low: Float, slope_high: Float) -> Float:
    """The next trial: twice the lower end until there is an upper one, then the safeguarded secant."""
    width = np.where(np.isfinite(high), high - low, 0)
    rise = slope_high - slope_low
    share = np.where(rise > 0, -slope_low / np.where(rise > 0, rise, 1), 0.5)
    return np.where(np.isfinite(high), low + width * share.clip(0.1, 0.9), 2 * low)
