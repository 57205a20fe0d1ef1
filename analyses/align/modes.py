"""The modes of a modal store and their alignment with the text."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modegap.analyses.result import Column, Json, NotebookRepr, Table, jsonable
from modegap.stores.durable import replaced

from .config import AlignConfig

if TYPE_CHECKING:
    from modegap.engine.certificate import Certificate

Float = NDArray[np.float64]

PAPER_CLAMP = 1e-10
_FORMAT = "modegap.modes/1"
_ARRAYS = (
    "eigenvalues",
    "U",
    "text_variance",
    "rho",
    "rho_low",
    "rho_high",
    "floor",
    "considered",
)


@dataclass(frozen=True, slots=True, eq=False)
class Modes(NotebookRepr):
    """Eigenmodes of Sigma_M with rho_k = u_k' Sigma_T u_k / lambda_k.

    Attributes:
        point: hook point of the modal rows.
        text_point: hook point of the text rows.
        rows: `tokens` or `pooled`.
        config: the options used.
        eigenvalues: lambda, descending [d] (after shrinkage, where asked for).
        U: modes in columns [d, d]; the largest component of each is positive.
        text_variance: u_k' Sigma_T u_k [d] (after shrinkage).
        text_trace: tr Sigma_T.
        rho: [d]; NaN for modes under the noise floor.
        rho_low: lower end of the interval on rho [d]; NaN where not computed.
        rho_high: upper end.
        floor: variance that arithmetic alone could produce along each mode [d]; 0 under the paper's law.
        considered: indices of the modes that count, in order of variance [at most `config.top`].
        n: modal rows.
        n_text: text rows.
        n_samples: modal samples.
        n_samples_text: text samples.
        shrinkage: weights used for (Sigma_M, Sigma_T).
        groups: groups of samples behind the intervals; 0 for no intervals.
        paired: whether a group is the same samples in both stores (they hold the same sample ids).
        warnings: what a reader must know before quoting a number.
        certificate: of Sigma_M, with the numerical rank and both stores.
        text_certificate: of Sigma_T.
    """

    point: str
    text_point: str
    rows: str
    config: AlignConfig
    eigenvalues: Float
    U: Float
    text_variance: Float
    text_trace: float
    rho: Float
    rho_low: Float
    rho_high: Float
    floor: Float
    considered: NDArray[np.int64]
    n: int
    n_text: int
    n_samples: int
    n_samples_text: int
    shrinkage: tuple[float, float]
    groups: int
    paired: bool
    warnings: tuple[str, ...]
    certificate: Certificate
    text_certificate: Certificate

    @property
    def d(self) -> int:
        """Width of the hook point."""
        return len(self.eigenvalues)

    @property
    def rank(self) -> int:
        """Numerical rank of Sigma_M: eigenvalues above the floor (paper's law: above its clamp)."""
        return int(self.certificate.rank or 0)

    @property
    def n_over_d(self) -> float:
        """Modal rows over the width."""
        return self.n / self.d

    @property
    def is_ms(self) -> NDArray[np.bool_]:
        """Modality-specific: considered and rho < threshold [d]."""
        out = np.zeros(self.d, dtype=bool)
        out[self.considered] = self.rho[self.considered] < self.config.threshold
        return out

    @property
    def is_ta(self) -> NDArray[np.bool_]:
        """Text-aligned: considered and not modality-specific [d]."""
        out = np.zeros(self.d, dtype=bool)
        out[self.considered] = True
        return out & ~self.is_ms

    @property
    def ms(self) -> NDArray[np.int64]:
        """Indices of the modality-specific modes, in order of variance."""
        return np.flatnonzero(self.is_ms)

    @property
    def ta(self) -> NDArray[np.int64]:
        """Indices of the text-aligned modes, in order of variance."""
        return np.flatnonzero(self.is_ta)

    @property
    def cumulative_variance(self) -> Float:
        """Share of the whole variance in modes 0..k [d]."""
        return np.asarray(np.cumsum(self.eigenvalues) / self.eigenvalues.sum())

    @property
    def ms_variance(self) -> float:
        """Variance of the modality-specific modes over that of the considered modes."""
        return self.share(self.ms)

    @property
    def undecided(self) -> NDArray[np.int64]:
        """Considered modes whose interval holds the threshold."""
        k, t = self.considered, self.config.threshold
        return np.asarray(k[(self.rho_low[k] < t) & (t <= self.rho_high[k])])

    @property
    def trace_ratio(self) -> float:
        """tr Sigma_T / tr Sigma_M: the factor that a difference in scale puts on every rho."""
        return self.text_trace / float(self.eigenvalues.sum())

    def share(self, indices: NDArray[np.int64]) -> float:
        """Variance of the given modes over that of the considered modes."""
        return float(self.eigenvalues[indices].sum() / self.eigenvalues[self.considered].sum())

    def mean_rho(self, first: int = 10) -> float:
        """Mean rho of the first considered modes."""
        return float(self.rho[self.considered[:first]].mean())

    def to_json(self) -> dict[str, Json]:
        """Strict JSON: the summary, all eigenvalues and every considered mode; no eigenvectors."""
        cumulative = self.cumulative_variance
        modes = [
            {
                "mode": k,
                "eigenvalue": self.eigenvalues[k],
                "cumulative_variance": cumulative[k],
                "text_variance": self.text_variance[k],
                "rho": self.rho[k],
                "rho_low": self.rho_low[k],
                "rho_high": self.rho_high[k],
                "modality_specific": self.rho[k] < self.config.threshold,
            }
            for k in self.considered.tolist()
        ]
        return {
            "analysis": "align",
            **self._scalars(),
            "considered": len(self.considered),
            "rank": self.rank,
            "d": self.d,
            "n_over_d": jsonable(self.n_over_d),
            "trace_ratio": jsonable(self.trace_ratio),
            "ms_modes": len(self.ms),
            "ms_variance": jsonable(self.ms_variance),
            "undecided": jsonable(self.undecided),
            "modes": jsonable(modes),
            "eigenvalues": jsonable(self.eigenvalues),
        }

    def table(self) -> Table:
        """One row with the numbers of the paper's Table 11, and n/d and rank."""
        first = self.considered[0]
        row = (
            self.point,
            self.text_point,
            self.rows,
            self.n,
            self.n_over_d,
            self.rank,
            float(self.rho[first]),
            self.mean_rho(),
            f"{len(self.ms)}/{len(self.considered)}",
            100 * self.ms_variance,
            len(self.undecided) if self.groups else None,
            self.trace_ratio,
        )
        columns = (
            "hook point",
            "text hook point",
            "rows",
            Column("n"),
            Column("n/d", format=".3g"),
            "rank",
            Column("ρ of the first mode", format=".3g"),
            Column("mean ρ of top 10", format=".3g"),
            f"ρ < {self.config.threshold:g}",
            Column("MS variance", "%", ".1f"),
            "undecided",
            Column("tr Σ_T / tr Σ_M", format=".3g"),
        )
        return Table("Mode alignment with the text", columns, [row], self.notes())

    def mode_table(self) -> Table:
        """One row a considered mode."""
        cumulative = self.cumulative_variance
        total = self.eigenvalues.sum()
        rows = [
            (
                k,
                float(self.eigenvalues[k]),
                float(100 * self.eigenvalues[k] / total),
                float(100 * cumulative[k]),
                float(self.rho[k]),
                float(self.rho_low[k]),
                float(self.rho_high[k]),
                "MS" if self.rho[k] < self.config.threshold else "TA",
            )
            for k in self.considered.tolist()
        ]
        columns = (
            "mode",
            Column("λ", format=".4g"),
            Column("variance", "%", ".2f"),
            Column("cumulative", "%", ".2f"),
            Column("ρ", format=".3g"),
            Column("low", format=".3g"),
            Column("high", format=".3g"),
            "class",
        )
        return Table(f"Modes of {self.point}", columns, rows, self.notes())

    def notes(self) -> tuple[str, ...]:
        """Conditions and warnings, as sentences."""
        c = self.config
        law = (
            "the paper's law: pooled rows, λ clamped at 1e-10, no rank rule"
            if c.law == "paper"
            else "modes above the noise floor of fp64, fp16 storage and accumulation"
            if c.rank_tol is None
            else f"modes with λ above {c.rank_tol:g} of the largest"
        )
        notes = [
            f"{law}; first {len(self.considered)} modes considered",
            f"modality-specific (MS): ρ < {c.threshold:g}; MS variance in percent of the considered modes'",
        ]
        if not 0.1 <= self.trace_ratio <= 10:
            notes.append(
                f"the text's whole variance is {self.trace_ratio:.3g} times the modal one: every ρ carries "
                "that factor of scale"
            )
        if any(self.shrinkage):
            modal, text = self.shrinkage
            notes.append(f"shrunk towards the scaled identity: modal {modal:.3g}, text {text:.3g}")
        if self.groups:
            pairing = "the same in both stores" if self.paired else "independent in the two stores"
            notes.append(
                f"{100 * c.level:g} % {c.interval} intervals for fixed modes, over {self.groups} groups of "
                f"samples, {pairing}"
            )
        return (*notes, *self.warnings)

    def figure(self) -> Any:
        """Variance and rho of the considered modes, with intervals and the threshold."""
        from modegap.analyses.report.figures import mode_rows, mode_spectrum

        title = f"{self.point} against {self.text_point}"
        return mode_spectrum(mode_rows(self, title), threshold=self.config.threshold)

    def save(self, path: str | Path) -> Path:
        """Write everything to one safetensors file (its header holds the JSON part); replaces atomically."""
        from safetensors.numpy import save_file

        path = Path(path)
        arrays = {
            f.name: np.ascontiguousarray(getattr(self, f.name)) for f in fields(self) if f.name in _ARRAYS
        }
        header = {"format": _FORMAT, "modes": json.dumps(self._scalars(), allow_nan=False)}
        with replaced(path) as aside:
            save_file(arrays, aside, metadata=header)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Modes:
        """The modes that `save` wrote.

        Raises:
            ValueError: no file, one that holds no modes, or those of another format.
        """
        from safetensors import SafetensorError, safe_open

        from modegap.engine.certificate import Certificate

        if not Path(path).is_file():
            raise ValueError(
                f"no file of modes {path}; write one with `modegap align MODAL TEXT --out {path}`"
            )
        try:
            with safe_open(path, framework="numpy") as file:
                header = file.metadata() or {}
                if header.get("format") != _FORMAT:
                    raise ValueError(
                        f"{path}: expected a {_FORMAT} file written by Modes.save, "
                        f"got format {header.get('format')!r}"
                    )
                arrays = {name: file.get_tensor(name) for name in _ARRAYS}
        except SafetensorError as error:
            raise ValueError(f"{path}: not a safetensors file of modes ({error}); save it again") from error
        scalars = json.loads(header["modes"])
        scalars["config"] = AlignConfig(**scalars["config"])
        scalars["shrinkage"] = tuple(scalars["shrinkage"])
        scalars["warnings"] = tuple(scalars["warnings"])
        for name in ("certificate", "text_certificate"):
            scalars[name] = Certificate(**scalars[name])
        return cls(**scalars, **arrays)

    def _scalars(self) -> dict[str, Json]:
        """Every field that is not an array."""
        out = {f.name: jsonable(getattr(self, f.name)) for f in fields(self) if f.name not in _ARRAYS}
        out["config"] = jsonable(asdict(self.config))
        return out
