"""The result of a LoRA intervention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modegap.analyses.gmi.outcome import Attribute
from modegap.analyses.probe.intervals import corrected_interval
from modegap.analyses.probe.outcome import Cell, ProbeResult
from modegap.analyses.replayed.intervals import Estimate, mean_interval
from modegap.analyses.result import Json, NotebookRepr, Table, jsonable
from modegap.engine.lora.config import Training

from .config import LoraConfig

if TYPE_CHECKING:
    from modegap.engine.certificate import Certificate

Float = NDArray[np.float64]
BASE, LABEL, CONTROL = "base", "label", "control"


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A label that a decoder was asked for, every choice scored.

    Attributes:
        label: label column.
        question: the prompt.
        accuracy: share of the samples whose own value has the highest score.
        chance: 1 / K.
        access: I(Z;S), GMI(S | q) and Delta_access.
        ids: held-out samples.
        correct: 1 where the own value won [n].
        used: contributions to GMI(S | q), nats [n].
        held: contributions to I(Z;S), nats [n].
    """

    label: str
    question: str
    accuracy: Estimate
    chance: float
    access: Attribute
    ids: tuple[str, ...]
    correct: NDArray[np.float64]
    used: NDArray[np.float64]
    held: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Written:
    """The same label, the decoder writing its answer.

    Attributes:
        label: label column.
        accuracy: share of the samples where the first choice named is the own value.
        unanswered: share of the samples where none is named.
        ids: held-out samples.
        correct: 1 where it is right [n].
        examples: the first answers as written.
    """

    label: str
    accuracy: Estimate
    unanswered: float
    ids: tuple[str, ...]
    correct: NDArray[np.float64]
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class PerSample:
    """A mean over held-out samples with what it is of.

    Attributes:
        mean: with its bootstrap interval.
        ids: samples.
        values: of each [n].
    """

    mean: Estimate
    ids: tuple[str, ...]
    values: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """One decoder: as it was (`base`), trained for the label (`label`), or for the texts (`control`).

    Attributes:
        name: which.
        adapter: folder of its adapter in peft's format; None for the base.
        training: how it went; None for the base.
        asked: one entry a label, the trained one first.
        written: generated answers to the trained label's question; None where not asked for.
        probes: of every label at the hook points captured again.
        sensitivity: L_log; None where the store has no texts.
        gmi: of the texts; None where the store has none.
    """

    name: str
    adapter: str | None
    training: Training | None
    asked: tuple[Asked, ...]
    written: Written | None
    probes: ProbeResult
    sensitivity: PerSample | None
    gmi: PerSample | None

    def ask(self, label: str) -> Asked:
        """The entry of a label.

        Raises:
            KeyError: it was not asked for.
        """
        for one in self.asked:
            if one.label == label:
                return one
        raise KeyError(f"{label!r} was not asked for, only {', '.join(one.label for one in self.asked)}")


@dataclass(frozen=True, slots=True)
class Change:
    """A quantity of a trained decoder minus that of the base, on the same held-out samples.

    Attributes:
        arm: which decoder.
        quantity: what.
        label: of which label; empty where it is of none.
        point: at which hook point; empty where it is at none.
        before: of the base.
        after: of the decoder.
        difference: after - before, its interval paired by sample (probes: by seed).
    """

    arm: str
    quantity: str
    label: str
    point: str
    before: float
    after: float
    difference: Estimate

    @property
    def moved(self) -> bool | None:
        """Whether the interval excludes 0; None without one."""
        low, high = self.difference.low, self.difference.high
        return None if low is None or high is None else low > 0 or high < 0


@dataclass(frozen=True, slots=True, eq=False)
class LoraResult(NotebookRepr):
    """What training the decoder for a label does to what it can use and to what its hidden states hold.

    Attributes:
        config: the options used.
        model: name of the model.
        source: the store.
        dataset: its data set.
        label: label column trained for.
        question: the prompt.
        choices: its values.
        n_train: samples trained on.
        n_validation: samples that early stopping looked at.
        n_test: held-out samples, on which everything is measured.
        arms: base, label, and control where there is one.
        refused: label columns that could not be asked for, with the reason.
        failures: (id, reason) of samples that were left out.
        certificate: of the base's replay.
    """

    config: LoraConfig
    model: str
    source: str
    dataset: str
    label: str
    question: str
    choices: tuple[str, ...]
    n_train: int
    n_validation: int
    n_test: int
    arms: tuple[Arm, ...]
    refused: tuple[tuple[str, str], ...]
    failures: tuple[tuple[str, str], ...]
    certificate: Certificate

    def arm(self, name: str) -> Arm:
        """A decoder by name.

        Raises:
            KeyError: there is none.
        """
        for one in self.arms:
            if one.name == name:
                return one
        raise KeyError(f"no arm {name!r}, only {', '.join(one.name for one in self.arms)}")

    @property
    def final_point(self) -> str:
        """The last hook point that was probed."""
        return self.arms[0].probes.points[-1]

    def changes(self) -> tuple[Change, ...]:
        """Every quantity of every trained decoder against the base."""
        base, *others = self.arms
        return tuple(change for arm in others for change in _changes(self, base, arm))

    def to_json(self) -> dict[str, Json]:
        """Strict JSON with every sample's numbers and the changes."""
        return {
            "analysis": "lora",
            "config": jsonable(self.config),
            "model": self.model,
            "source": self.source,
            "dataset": self.dataset,
            "label": self.label,
            "question": self.question,
            "choices": jsonable(self.choices),
            "n_train": self.n_train,
            "n_validation": self.n_validation,
            "n_test": self.n_test,
            "arms": jsonable(self.arms),
            "changes": jsonable(self.changes()),
            "refused": jsonable(self.refused),
            "failures": jsonable(self.failures),
            "certificate": jsonable(self.certificate),
        }

    def tables(self) -> list[Table]:
        """Before and after, every change with its interval, and the trainings."""
        from .tables import changes_table, comparison_table, training_table

        return [comparison_table(self), changes_table(self), training_table(self)]

    def table(self) -> Table:
        """The paper's Table 3: one row a decoder."""
        from .tables import comparison_table

        return comparison_table(self)

    def figure(self) -> Any:
        """Task accuracy and probe accuracy of every label, one mark a decoder."""
        from .figure import intervention_chart

        return intervention_chart(self)


def cell_of(probes: ProbeResult, label: str, point: str) -> Cell | None:
    """The probe of a label at a hook point; None where it could not be fitted."""
    for cell in probes.cells:
        if (cell.label, cell.point) == (label, point) and cell.scores:
            return cell
    return None


def _changes(result: LoraResult, base: Arm, arm: Arm) -> Iterator[Change]:
    config = result.config
    for asked in arm.asked:
        before = base.ask(asked.label)
        pairs: Sequence[tuple[str, Float, Float]] = (
            ("task accuracy", before.correct, asked.correct),
            ("GMI(S|q)", before.used, asked.used),
            ("Δ_access", before.held - before.used, asked.held - asked.used),
        )
        for quantity, old, new in pairs:
            yield _paired(arm.name, quantity, asked.label, old, new, config)
    if arm.written is not None and base.written is not None:
        label = arm.written.label
        yield _paired(arm.name, "written accuracy", label, base.written.correct, arm.written.correct, config)
    for label in arm.probes.labels:
        for point in arm.probes.points:
            cells = cell_of(base.probes, label, point), cell_of(arm.probes, label, point)
            if cells[0] is not None and cells[1] is not None:
                yield _probe_change(arm.name, cells[0], cells[1], config.level)
    for quantity, old_one, new_one in (
        ("L_log", base.sensitivity, arm.sensitivity),
        ("GMI of the texts", base.gmi, arm.gmi),
    ):
        if old_one is None or new_one is None:
            continue
        at = {name: number for number, name in enumerate(new_one.ids)}
        both = [number for number, name in enumerate(old_one.ids) if name in at]
        new = new_one.values[[at[old_one.ids[number]] for number in both]]
        yield _paired(arm.name, quantity, "", old_one.values[both], new, config)


def _paired(arm: str, quantity: str, label: str, old: Float, new: Float, config: LoraConfig) -> Change:
    found = mean_interval(new - old, draws=config.draws, level=config.level, seed=config.seed)
    return Change(arm, quantity, label, "", float(old.mean()), float(new.mean()), found)


def _probe_change(arm: str, old: Cell, new: Cell, level: float) -> Change:
    values = [b.accuracy - a.accuracy for a, b in zip(old.scores, new.scores, strict=True)]
    ends = corrected_interval(values, old.test_share, level)
    low, high = (None, None) if ends is None else ends
    before, after = (float(np.mean([s.accuracy for s in cell.scores])) for cell in (old, new))
    found = Estimate(float(np.mean(values)), low, high)
    return Change(arm, "probe accuracy", old.label, old.point, before, after, found)
