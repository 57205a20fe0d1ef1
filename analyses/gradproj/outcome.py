"""The result of projecting gradients on modes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modegap.analyses.replayed.intervals import Estimate
from modegap.analyses.replayed.opening import notes_of
from modegap.analyses.result import Column, Json, NotebookRepr, Table, jsonable

from .config import GradprojConfig

if TYPE_CHECKING:
    from modegap.engine.certificate import Certificate


@dataclass(frozen=True, slots=True)
class Contrast:
    """Does the sensitivity depend on the alignment?

    Attributes:
        ms: mean g over the modality-specific modes; None without any.
        ta: mean g over the text-aligned modes.
        ratio: ta / ms with a bootstrap interval over samples; NaN where one class is empty.
        spearman: rank correlation of g with rho over the considered modes.
        p: its two-sided p value.
        pearson: linear correlation, which the published script prints.
    """

    ms: float | None
    ta: float | None
    ratio: Estimate
    spearman: float | None
    p: float | None
    pearson: float | None


@dataclass(frozen=True, slots=True, eq=False)
class GradprojResult(NotebookRepr):
    """g_k = mean over samples of |<grad_z log q, u_k>|.

    Attributes:
        config: the options used.
        model: name of the model.
        source: the store.
        point: hook point of z.
        n: samples.
        considered: numbers of the modes that the alignment considers [k].
        rho: their alignment [k].
        is_ms: which of them are modality-specific [k].
        threshold: rho below which a mode is.
        g: of every mode, the gradient averaged over positions first, as published [d].
        g_tokens: of every mode, the mean over positions of the absolute projections [d].
        isotropic: what g would be if the mean gradients pointed in random directions.
        published: contrast of `g`.
        tokens: contrast of `g_tokens`.
        failures: (id, reason) of samples without a gradient.
        retried: batches that ran again at half their size.
        certificate: of the replay.
    """

    config: GradprojConfig
    model: str
    source: str
    point: str
    n: int
    considered: NDArray[np.int64]
    rho: NDArray[np.float64]
    is_ms: NDArray[np.bool_]
    threshold: float
    g: NDArray[np.float64]
    g_tokens: NDArray[np.float64]
    isotropic: float
    published: Contrast
    tokens: Contrast
    failures: tuple[tuple[str, str], ...]
    retried: int
    certificate: Certificate

    def to_json(self) -> dict[str, Json]:
        """Strict JSON with g of every mode."""
        return {
            "analysis": "gradproj",
            "config": jsonable(self.config),
            "model": self.model,
            "source": self.source,
            "point": self.point,
            "n": self.n,
            "considered": jsonable(self.considered),
            "rho": jsonable(self.rho),
            "is_ms": jsonable(self.is_ms),
            "threshold": self.threshold,
            "g": jsonable(self.g),
            "g_tokens": jsonable(self.g_tokens),
            "isotropic": jsonable(self.isotropic),
            "published": jsonable(self.published),
            "tokens": jsonable(self.tokens),
            "failures": jsonable(self.failures),
            "retried": self.retried,
            "certificate": jsonable(self.certificate),
        }

    def table(self) -> Table:
        """One row for each way of averaging over positions."""
        rows = [
            (name, self.n, c.ms, c.ta, c.ratio.value, c.ratio.low, c.ratio.high, c.spearman, c.p, c.pearson)
            for name, c in (("mean gradient (published)", self.published), ("single positions", self.tokens))
        ]
        columns = (
            "projected",
            "n",
            Column("g of MS modes", format=".4g"),
            Column("g of TA modes", format=".4g"),
            Column("TA / MS", format=".3f"),
            Column("low", format=".3f"),
            Column("high", format=".3f"),
            Column("Spearman with ρ", format=".3f"),
            Column("p", format=".2g"),
            Column("Pearson", format=".3f"),
        )
        notes = (
            f"g: mean over {self.n} samples of the absolute projection of the gradient of log q at {self.point} on "
            f"a mode; {int(self.is_ms.sum())} of {len(self.considered)} considered modes are modality-specific "
            f"(ρ < {self.threshold:g})",
            f"gradients in random directions would have g = {self.isotropic:.4g} (mean gradient)",
            f"low, high: {100 * self.config.level:g} % bootstrap over samples; Spearman over the considered modes",
            *notes_of(self.failures, self.retried),
        )
        return Table(f"Gradients along the modes of {self.model}", columns, rows, notes)

    def figure(self) -> Any:
        """g of every considered mode against its rho."""
        from modegap.analyses.report.figures import sensitivity, sensitivity_rows

        return sensitivity(sensitivity_rows(self), isotropic=self.isotropic, threshold=self.threshold)
