"""The result of a subspace swap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modegap.analyses.ablate.statistics import Paired
from modegap.analyses.replayed.intervals import Estimate
from modegap.analyses.replayed.opening import notes_of
from modegap.analyses.result import Column, Json, NotebookRepr, Table, jsonable

from .config import SwapConfig

if TYPE_CHECKING:
    from modegap.engine.certificate import Certificate


@dataclass(frozen=True, slots=True, eq=False)
class Swapped:
    """One subspace; per-sample arrays [n] are means over the donors.

    Attributes:
        name: of the subspace.
        modes: its modes.
        variance: their share of the considered modes' variance.
        loss: cross-entropy after the swap, nats a token.
        kl: divergence from the unedited to the edited predictions, nats a token.
        squared: squared norm of the perturbation of a position.
        kl_per_move: kl over squared.
        change: of the loss against no swap.
        mean_kl: with its interval.
        median_kl: over samples.
        mean_norm: norm of the perturbation, mean over samples and donors.
        mean_kl_per_move: with its interval.
    """

    name: str
    modes: tuple[int, ...]
    variance: float
    loss: NDArray[np.float64]
    kl: NDArray[np.float64]
    squared: NDArray[np.float64]
    kl_per_move: NDArray[np.float64]
    change: Paired
    mean_kl: Estimate
    median_kl: float
    mean_norm: float
    mean_kl_per_move: Estimate


@dataclass(frozen=True, slots=True, eq=False)
class SwapResult(NotebookRepr):
    """What the decoder notices of a swapped class component.

    Attributes:
        config: the options used.
        model: name of the model.
        source: the store.
        point: hook point of the rows.
        classes: class names.
        ids: samples.
        codes: class of each sample [n].
        donors: donor class of each sample [donors, n].
        baseline: cross-entropy without a swap, nats a token [n].
        swapped: one entry a subspace.
        contrasts: (first, other, ratio of mean KL, ratio of mean KL per squared norm), other over first.
        failures: (id, reason) of samples that were left out.
        retried: batches that ran again at half their size.
        certificate: of the replay.
    """

    config: SwapConfig
    model: str
    source: str
    point: str
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    codes: NDArray[np.int64]
    donors: NDArray[np.int64]
    baseline: NDArray[np.float64]
    swapped: tuple[Swapped, ...]
    contrasts: tuple[tuple[str, str, Estimate, Estimate], ...]
    failures: tuple[tuple[str, str], ...]
    retried: int
    certificate: Certificate

    def of(self, name: str) -> Swapped:
        """The subspace of that name.

        Raises:
            KeyError: it was not swapped.
        """
        for one in self.swapped:
            if one.name == name:
                return one
        raise KeyError(f"no subspace {name!r}, only {', '.join(one.name for one in self.swapped)}")

    def to_json(self) -> dict[str, Json]:
        """Strict JSON with every sample's divergence and loss."""
        return {
            "analysis": "swap",
            "config": jsonable(self.config),
            "model": self.model,
            "source": self.source,
            "point": self.point,
            "n": len(self.ids),
            "classes": jsonable(self.classes),
            "ids": jsonable(self.ids),
            "codes": jsonable(self.codes),
            "donors": jsonable(self.donors),
            "baseline": jsonable(self.baseline),
            "baseline_mean": jsonable(self.baseline.mean()),
            "swapped": jsonable(self.swapped),
            "contrasts": jsonable(self.contrasts),
            "failures": jsonable(self.failures),
            "retried": self.retried,
            "certificate": jsonable(self.certificate),
        }

    def table(self) -> Table:
        """One row a subspace."""
        rows = [
            (
                s.name,
                len(s.modes),
                100 * s.variance,
                s.mean_kl.value,
                s.mean_kl.low,
                s.mean_kl.high,
                s.median_kl,
                s.mean_norm,
                s.mean_kl_per_move.value,
                s.change.percent,
                s.change.percent_low,
                s.change.percent_high,
                s.change.t,
                s.change.p,
                len(self.ids),
            )
            for s in self.swapped
        ]
        columns = (
            "swapped",
            "modes",
            Column("variance", "%", ".1f"),
            Column("KL", "nats/token", ".4g"),
            Column("low", format=".4g"),
            Column("high", format=".4g"),
            Column("median KL", format=".4g"),
            Column("‖δ‖", format=".4g"),
            Column("KL / ‖δ‖²", format=".4g"),
            Column("change of loss", "%", "+.2f"),
            Column("low", "%", "+.2f"),
            Column("high", "%", "+.2f"),
            Column("t", format=".2f"),
            Column("p", format=".2g"),
            "n",
        )
        return Table(
            f"{self.config.by} swapped at {self.point} of {self.model}", columns, rows, self._notes()
        )

    def figure(self) -> Any:
        """Divergence of every sample against the size of its perturbation, by subspace."""
        from modegap.analyses.report.figures import swap_rows, swap_scatter

        return swap_scatter(swap_rows(self))

    def _notes(self) -> tuple[str, ...]:
        c = self.config
        paper = c.target == "paper"
        what = "of the two classes' means (as published)" if paper else "of what is added to every position"
        notes = [
            f"the component of a sample's mean in the subspace becomes that of another {c.by} "
            f"({len(self.classes)} classes, {c.donors} donors a sample); each position keeps its residual",
            f"KL from the unedited to the edited predictions of "
            f"{'the prompt (as published)' if paper else 'the target tokens'}; ‖δ‖: norm {what}; low, high: "
            f"{100 * c.level:g} % bootstrap over samples; t, p: paired, of the loss",
        ]
        for first, other, kl, per_move in self.contrasts:
            notes.append(f"{other} over {first}: KL {_shown(kl)}, KL / ‖δ‖² {_shown(per_move)}")
        return (*notes, *notes_of(self.failures, self.retried))


def _shown(ratio: Estimate) -> str:
    if ratio.low is None or ratio.high is None:
        return f"{ratio.value:.3g}"
    return f"{ratio.value:.3g} [{ratio.low:.3g}, {ratio.high:.3g}]"
