"""Logistic regressions in the space of their rows, padded to one batch.

With weights W = A Z [K, d], Z [n, d] the z-scored rows, the loss sum_i C ce_i + |W|^2 / 2 depends on A [K, n] only
through A G, where G = Z Z' is computed once a split: with fewer rows than 2 d, a product with G takes fewer
multiply-adds than W Z' and R Z. With more rows the product is (R Z) Z', and no G is kept.

Classes come before rows, unlike in the rows of a store: [40, 2096] times [2096, 2096] took 2.8 ms on two cores and
[2096, 2096] times [2096, 40] 6.3 ms, and sums over the classes run along whole vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """One l2 logistic regression; two classes have one weight vector, more have one each, as in scikit-learn.

    Attributes:
        z: rows [N, d], z-scored.
        codes: classes 0..K-1 of the rows used, int64 [n].
        classes: K, at least 2, each with a row.
        C: inverse l2 strength, of the sum of the cross-entropies.
        index: which n of the N rows are used, on the device of z; None for all.
        gram: z z' of the rows used [n, n], or None to multiply by the rows.
    """

    z: torch.Tensor
    codes: NDArray[np.int64]
    classes: int
    C: float
    index: torch.Tensor | None = None
    gram: torch.Tensor | None = None

    def primal(self, a: torch.Tensor) -> torch.Tensor:
        """Weights a Z [K, d] of coefficients [K, n]."""
        if self.index is None:
            return a @ self.z
        full = a.new_zeros(a.shape[0], len(self.z))
        return full.index_copy_(1, self.index, a) @ self.z

    def times(self, a: torch.Tensor) -> torch.Tensor:
        """a Z Z' [K, n]."""
        if self.gram is not None:
            return a @ self.gram
        found = self.primal(a) @ self.z.T
        return found if self.index is None else found[:, self.index]


class Batch:
    """Problems side by side: [B, K, n] with zero rows and barred classes where one is smaller.

    Attributes:
        problems: the problems.
        rows: rows of each.
        shape: (B, K, n).
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        """Pad the problems: of one device and dtype, all with a Gram matrix or none."""
        self.problems = tuple(problems)
        self.rows = tuple(len(p.codes) for p in problems)
        n, classes = max(self.rows), max(p.classes for p in problems)
        self.shape = (len(problems), classes, n)
        z = problems[0].z
        self._gram: torch.Tensor | None = None
        if len(problems) > 1 and all(p.gram is not None for p in problems):
            self._gram = z.new_zeros(len(problems), n, n)
            for into, problem in zip(self._gram, problems, strict=True):
                assert problem.gram is not None
                into[: len(problem.codes), : len(problem.codes)] = problem.gram
        codes = np.zeros((len(problems), n), dtype=np.int64)
        counted = np.zeros((len(problems), 1, n), dtype=np.float32)
        free = np.zeros((len(problems), classes, 1), dtype=np.float32)
        barred = np.zeros((len(problems), classes, 1), dtype=np.float32)
        for b, problem in enumerate(problems):
            codes[b, : self.rows[b]] = problem.codes
            counted[b, 0, : self.rows[b]] = 1
            free[b, int(problem.classes == 2) : problem.classes] = 1
            barred[b, problem.classes :] = -np.inf
        self._codes = torch.from_numpy(codes[:, None]).to(z.device)
        self._counted = torch.from_numpy(counted).to(z.device, z.dtype)
        self._free = torch.from_numpy(free).to(z.device, z.dtype)
        self._barred = torch.from_numpy(barred).to(z.device, z.dtype)
        self._even = bool((counted == 1).all() and (free == 1).all())
        self.strength = np.array([p.C for p in problems])

    def subset(self, which: NDArray[np.int64]) -> Batch:
        """The problems `which`, with the padding that they have here."""
        out = copy(self)
        out.problems = tuple(self.problems[b] for b in which)
        out.rows = tuple(self.rows[b] for b in which)
        out.shape = (len(which), *self.shape[1:])
        on = torch.from_numpy(which).to(self._codes.device)
        for name in ("_gram", "_codes", "_counted", "_free", "_barred"):
            of = getattr(self, name)
            setattr(out, name, None if of is None else of.index_select(0, on))
        out.strength = self.strength[which]
        return out

    def times(self, a: torch.Tensor) -> torch.Tensor:
        """a G [B, K, n]."""
        if self._gram is not None:
            return torch.bmm(a, self._gram)
        if len(self.problems) == 1 and self.rows[0] == self.shape[2]:
            return self.problems[0].times(a[0])[None]
        out = torch.zeros_like(a)
        for b, (problem, n) in enumerate(zip(self.problems, self.rows, strict=True)):
            out[b, :, :n] = problem.times(a[b, :, :n])
        return out

    def steepest(self, a: torch.Tensor, which: NDArray[np.int64]) -> torch.Tensor:
        """Largest |entry| of a Z of each of the problems `which`, for a [B, K, n]."""
        found = [self.problems[b].primal(a[b, :, : self.rows[b]]).abs().max() for b in which]
        return torch.stack(found)

    def residual(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(P - Y [B, K, n], sum of the cross-entropies [B] in fp64) at logits [B, K, n], which are overwritten."""
        logits += self._barred
        own = logits.gather(1, self._codes)
        top = logits.amax(1, keepdim=True)
        logits.sub_(top).exp_()
        # The own class apart: 1 - P of a row that is fitted well would be rounding error alone.
        mine = (own - top).exp_()
        logits.scatter_(1, self._codes, 0)
        others = logits.sum(1, keepdim=True)
        total = others + mine
        loss = torch.where(own == top, others.log1p(), total.log() + top - own) * self._counted
        logits.scatter_(1, self._codes, -others).div_(total)
        if not self._even:
            logits.mul_(self._counted).mul_(self._free)
        return logits, loss.sum((1, 2), dtype=torch.float64)


def host(values: torch.Tensor) -> NDArray[np.float64]:
    """The values in fp64 on the host; waits for the device."""
    return np.asarray(values.to("cpu", torch.float64).numpy())
