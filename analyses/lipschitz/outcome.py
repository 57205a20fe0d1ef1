"""The result of an L_log estimate."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modegap.analyses.replayed.opening import notes_of
from modegap.analyses.result import Column, Json, NotebookRepr, Table, jsonable

from .config import LipschitzConfig
from .diameter import Diameter

if TYPE_CHECKING:
    from modegap.engine.certificate import Certificate


@dataclass(frozen=True, slots=True)
class Spread:
    """Statistics of per-sample norms; intervals are bootstraps over samples, None for a single one."""

    n: int
    mean: float
    mean_low: float | None
    mean_high: float | None
    std: float
    median: float
    p5: float
    p25: float
    p75: float
    p95: float
    p95_low: float | None
    p95_high: float | None
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class Group:
    """The same for the samples of one class of a label."""

    label: str
    value: str
    norms: Spread


@dataclass(frozen=True, slots=True, eq=False)
class LipschitzResult(NotebookRepr):
    """Per-sample norms of grad_z log q(y | z, c).

    Attributes:
        config: the options used.
        model: name of the model.
        source: the store.
        dataset: its data set.
        point: hook point of z.
        ids: samples, in the order of the norms.
        norms: per-sample norm over positions and channels, nats a token and unit of z [n].
        shifts: norm of the gradient's sum over positions: by how much a shift that all positions share, hence of
            the mean row, changes log q [n].
        log_q: mean target log-probability, nats a token [n].
        lengths: positions of z of each sample [n].
        overall: statistics of all norms.
        groups: statistics by the classes of the labels that were asked for.
        diameter: D and D_eff of the samples' mean rows.
        failures: (id, reason) of samples without a norm.
        retried: batches that ran again at half their size.
        certificate: of the replay.
    """

    config: LipschitzConfig
    model: str
    source: str
    dataset: str
    point: str
    ids: tuple[str, ...]
    norms: NDArray[np.float64]
    shifts: NDArray[np.float64]
    log_q: NDArray[np.float64]
    lengths: NDArray[np.int64]
    overall: Spread
    groups: tuple[Group, ...]
    diameter: Diameter
    failures: tuple[tuple[str, str], ...]
    retried: int
    certificate: Certificate

    def to_json(self) -> dict[str, Json]:
        """Strict JSON with every sample's norm."""
        return {
            "analysis": "lipschitz",
            "config": jsonable(self.config),
            "model": self.model,
            "source": self.source,
            "dataset": self.dataset,
            "point": self.point,
            "n": len(self.norms),
            "L": jsonable(asdict(self.overall)),
            "groups": jsonable(self.groups),
            "diameter": jsonable(self.diameter),
            "ids": jsonable(self.ids),
            "norms": jsonable(self.norms),
            "shifts": jsonable(self.shifts),
            "log_q": jsonable(self.log_q),
            "lengths": jsonable(self.lengths),
            "failures": jsonable(self.failures),
            "retried": self.retried,
            "certificate": jsonable(self.certificate),
        }

    def table(self) -> Table:
        """The paper's Table 8 with its other statistics: all samples, then every class."""
        rows = [("all", "", self.overall), *((g.label, g.value, g.norms) for g in self.groups)]
        cells = [
            (
                label,
                value,
                s.n,
                s.mean,
                s.mean_low,
                s.mean_high,
                s.median,
                s.p5,
                s.p25,
                s.p75,
                s.p95,
                s.p99,
                s.max,
            )
            for label, value, s in rows
        ]
        columns: tuple[Column | str, ...] = (
            "label",
            "class",
            "n",
            *(Column(name, format=".4g") for name in ("mean", "low", "high", "median")),
            *(Column(name, format=".4g") for name in ("p5", "p25", "p75", "p95", "p99", "max")),
        )
        return Table(f"L_log at {self.point} of {self.model}", columns, cells, self._notes())

    def figure(self) -> Any:
        """Cumulative distribution of the norms, one line a class of the first label."""
        from modegap.analyses.report.figures import norm_curves, norm_rows

        return norm_curves(norm_rows(self))

    def _notes(self) -> tuple[str, ...]:
        d, paper = self.diameter, self.config.target == "paper"
        scored = "the prompt's own tokens (as published)" if paper else "the target text's tokens"
        return (
            f"norm over positions and channels of the gradient of log q, averaged over {scored}, with respect "
            f"to the rows at {self.point}; low, high: {100 * self.config.level:g} % bootstrap over samples of the mean",
            f"for a shift that all positions share: mean {self.shifts.mean():.4g}, p95 "
            f"{np.percentile(self.shifts, 95):.4g}",
            f"D = {d.D:.4g} (std √d {d.from_std:.4g}, largest of {d.pairs} distances {d.from_pairs:.4g}); "
            f"D_eff = {d.D_eff:.4g}, participation ratio {d.participation:.4g} of {self.certificate.width}",
            *notes_of(self.failures, self.retried),
        )
