"""Options of the mode alignment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Rows = Literal["tokens", "pooled"]
Law = Literal["default", "paper"]


@dataclass(frozen=True, slots=True)
class AlignConfig:
    """What is compared and how.

    Attributes:
        point: hook point of the modal store.
        text_point: hook point of the text store; None follows the law: by default `text_embedding` for
            `adapter_output` (the text that lives in the same space) and the same name elsewhere; under the
            paper's law `llm_hidden_16`, else `llm_final`.
        rows: `tokens` or `pooled`; None takes token rows where both stores have them, else pooled rows
            (the paper's law: always pooled).
        threshold: modes with rho below it are modality-specific.
        top: how many modes are considered, in the order of their variance.
        law: `paper` is the published formula to the letter: pooled rows, fp64, rho = u' Sigma_T u /
            max(lambda, 1e-10), the first `top` modes whatever the rank.
        rank_tol: modes count above this fraction of the largest eigenvalue; None estimates the noise floor.
        shrinkage: weight in [0, 1] of the scaled identity tr(S)/d I in both covariances, or `oas`
            (oracle approximating shrinkage, which takes the rows to be independent).
        precision: `precise` | `exact` | `fast` accumulation; None is `precise` (the paper's law: `exact`).
        interval: `jackknife` | `bootstrap` over groups of samples, or None for no interval on rho.
        groups: number of groups of samples.
        level: coverage of the interval.
        draws: bootstrap draws.
        seed: of the assignment of samples to groups and of the bootstrap.

    Raises:
        ValueError: an option out of its range, or one that the paper's law fixes otherwise.
    """

    point: str = "adapter_output"
    text_point: str | None = None
    rows: Rows | None = None
    threshold: float = 0.5
    top: int = 100
    law: Law = "default"
    rank_tol: float | None = None
    shrinkage: float | Literal["oas"] = 0.0
    precision: Literal["precise", "exact", "fast"] | None = None
    interval: Literal["jackknife", "bootstrap"] | None = "jackknife"
    groups: int = 20
    level: float = 0.95
    draws: int = 2000
    seed: int = 42

    def __post_init__(self) -> None:
        """Check the options."""
        _one_of("rows", self.rows, ("tokens", "pooled", None))
        _one_of("law", self.law, ("default", "paper"))
        _one_of("precision", self.precision, ("precise", "exact", "fast", None))
        _one_of("interval", self.interval, ("jackknife", "bootstrap", None))
        _positive("threshold", self.threshold)
        _positive("top", self.top)
        _positive("draws", self.draws)
        if self.groups < 2:
            raise ValueError(f"groups: got {self.groups}, expected at least 2")
        if not 0 < self.level < 1:
            raise ValueError(f"level: got {self.level}, expected a number between 0 and 1")
        if self.rank_tol is not None and not 0 <= self.rank_tol < 1:
            raise ValueError(f"rank_tol: got {self.rank_tol}, expected a fraction in [0, 1)")
        weight: object = self.shrinkage
        if weight != "oas" and not (isinstance(weight, int | float) and 0 <= weight <= 1):
            raise ValueError(f"shrinkage: got {weight!r}, expected a number in [0, 1] or 'oas'")
        if self.law == "paper":
            self._check_paper()

    def _check_paper(self) -> None:
        fixed = {
            "rows": (self.rows, "pooled", None),
            "precision": (self.precision, "exact", None),
            "shrinkage": (self.shrinkage, 0.0, 0.0),
            "rank_tol": (self.rank_tol, None, None),
        }
        for name, (value, wanted, unset) in fixed.items():
            if value not in (wanted, unset):
                raise ValueError(f"law='paper' fixes {name}={wanted!r}, got {value!r}; drop one of the two")


def _one_of(name: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, known))}")


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name}: got {value}, expected more than 0")
