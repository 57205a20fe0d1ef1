"""Logistic regressions in the space of their rows, padded to one batch.

With weights W = Z'A, Z [n, d] the z-scored rows, the loss sum_i C ce_i + |W|^2 / 2 depends on A [n, K] only
through G A, where G = Z Z' is computed once a split: with fewer rows than 2 d, a product with G takes fewer
multiply-adds than Z W and Z'R. With more rows the product is Z (Z'R), and no G is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        """Z'a [d, K] of coefficients [n, K]."""
        if self.index is None:
            return self.z.T @ a
        full = a.new_zeros(len(self.z), a.shape[1])
        return self.z.T @ full.index_copy_(0, self.index, a)

    def times(self, a: torch.Tensor) -> torch.Tensor:
        """Z Z'a [n, K]."""
        if self.gram is not None:
            return self.gram @ a
        product = self.z @ self.primal(a)
        return product if self.index is None else product[self.index]


class Batch:
    """Problems side by side: [B, n, K] with zero rows and barred classes where one is smaller.

    Attributes:
        problems: the problems.
        rows: rows of each.
        shape: (B, n, K).
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        """Pad the problems: of one device and dtype, all with a Gram matrix or none."""
        self.problems = tuple(problems)
        self.rows = tuple(len(p.codes) for p in problems)
        n, classes = max(self.rows), max(p.classes for p in problems)
        self.shape = (len(problems), n, classes)
        z = problems[0].z
        self._gram: torch.Tensor | None = None
        if len(problems) > 1 and all(p.gram is not None for p in problems):
            self._gram = z.new_zeros(len(problems), n, n)
            for into, problem in zip(self._gram, problems, strict=True):
                assert problem.gram is not None
                into[: len(problem.codes), : len(problem.codes)] = problem.gram
        codes = np.zeros((len(problems), n), dtype=np.int64)
        counted = np.zeros((len(problems), n, 1), dtype=np.float32)
        free = np.zeros((len(problems), 1, classes), dtype=np.float32)
        barred = np.zeros((len(problems), 1, classes), dtype=np.float32)
        for b, problem in enumerate(problems):
            codes[b, : self.rows[b]] = problem.codes
            counted[b, : self.rows[b]] = 1
            free[b, 0, int(problem.classes == 2) : problem.classes] = 1
            barred[b, 0, problem.classes :] = -np.inf
        self._codes = torch.from_numpy(codes[..., None]).to(z.device)
        self._counted = torch.from_numpy(counted).to(z.device, z.dtype)
        self._free = torch.from_numpy(free).to(z.device, z.dtype)
        self._barred = torch.from_numpy(barred).to(z.device, z.dtype)
        self._even = bool((counted == 1).all() and (free == 1).all())
        self.strength = np.array([p.C for p in problems])

    def times(self, a: torch.Tensor) -> torch.Tensor:
        """G a [B, n, K]."""
        if self._gram is not None:
            return torch.bmm(self._gram, a)
        if len(self.problems) == 1:
            return self.problems[0].times(a[0])[None]
        out = torch.zeros_like(a)
        for b, (problem, n) in enumerate(zip(self.problems, self.rows, strict=True)):
            out[b, :n] = problem.times(a[b, :n])
        return out

    def steepest(self, a: torch.Tensor) -> NDArray[np.float64]:
        """Largest |entry| of Z'a, one a problem [B]."""
        found = [
            problem.primal(a[b, :n]).abs().max()
            for b, (problem, n) in enumerate(zip(self.problems, self.rows, strict=True))
        ]
        return host(torch.stack(found))

    def residual(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(P - Y [B, n, K], sum of the cross-entropies [B] in fp64) at logits [B, n, K], which are overwritten."""
        logits += self._barred
        own = logits.gather(2, self._codes)
        top = logits.amax(2, keepdim=True)
        logits.sub_(top).exp_()
        # The own class apart: 1 - P of a row that is fitted well would be rounding error alone.
        mine = (own - top).exp_()
        logits.scatter_(2, self._codes, 0)
        others = logits.sum(2, keepdim=True)
        total = others + mine
        loss = torch.where(own == top, others.log1p(), total.log() + top - own) * self._counted
        logits.scatter_(2, self._codes, -others).div_(total)
        if not self._even:
            logits.mul_(self._counted).mul_(self._free)
        return logits, loss.sum((1, 2), dtype=torch.float64)


def host(values: torch.Tensor) -> NDArray[np.float64]:
    """The values in fp64 on the host; waits for the device."""
    return np.asarray(values.to("cpu", torch.float64).numpy())
