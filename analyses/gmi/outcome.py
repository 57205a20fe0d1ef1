"""The result of the GMI estimates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modegap.analyses.replayed.intervals import Estimate
from modegap.analyses.replayed.opening import notes_of
from modegap.analyses.result import Column, Json, NotebookRepr, Table, jsonable

from .config import GmiConfig

if TYPE_CHECKING:
    from modegap.engine.certificate import Certificate


@dataclass(frozen=True, slots=True, eq=False)
class LawGmi:
    """GMI of the decoder under one law, nats (a token, where the score is a mean).

    Attributes:
        law: `modal` or `text`.
        source: the store.
        point: hook point of its rows.
        ids: samples with alternatives.
        values: each one's contribution [n].
        gmi: their mean, with its interval.
        bias: by how much the finite number of alternatives raises it, estimated; None for one alternative.
        supremum: largest GMI over the scale of the score, the own rows among the alternatives (K of them give at
            most log(K + 1)).
        scale: where it is.
        failures: (id, reason) of samples that were left out.
    """

    law: str
    source: str
    point: str
    ids: tuple[str, ...]
    values: NDArray[np.float64]
    gmi: Estimate
    bias: float | None
    supremum: float
    scale: float
    failures: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Attribute:
    """A label under one law; `message` says why the numbers are missing, where they are.

    Attributes:
        law: `modal` or `text`.
        label: label column.
        n: samples.
        classes: its values.
        entropy: H(S), nats.
        information: lower bound on I(Z;S) from the probe, nats.
        gmi: GMI(S | q), the supremum over the scale of the decoder's scores, nats; the interval is for that scale.
        scale: the scale.
        delta: Delta_access = information - gmi, with a paired interval.
        probe_accuracy: held out.
        decoder_accuracy: share of the samples whose own value the decoder scores highest.
        chance: share of the largest class.
        trust: mean weight of the probe's log-likelihood ratio after calibration (1: as it is, 0: none).
        message: why there are no numbers.
        notes: who was left out.
    """

    law: str
    label: str
    n: int = 0
    classes: tuple[str, ...] = ()
    entropy: float | None = None
    information: Estimate | None = None
    gmi: Estimate | None = None
    scale: float | None = None
    delta: Estimate | None = None
    probe_accuracy: float | None = None
    decoder_accuracy: float | None = None
    chance: float | None = None
    trust: float | None = None
    message: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class GmiResult(NotebookRepr):
    """What the decoder can use, under each law, and what it cannot of each attribute.

    Attributes:
        config: the options used.
        model: name of the model.
        laws: the modal law, then the text law where a text store was given.
        gap: modal minus text GMI; None with one law.
        attributes: one entry a law and label.
        vocabulary: words of the decoder, at whose uniform score log q is clipped.
        retried: batches that ran again at half their size.
        certificate: of the replays.
    """

    config: GmiConfig
    model: str
    laws: tuple[LawGmi, ...]
    gap: Estimate | None
    attributes: tuple[Attribute, ...]
    vocabulary: int
    retried: int
    certificate: Certificate

    def law(self, name: str) -> LawGmi:
        """The law of that name.

        Raises:
            KeyError: it was not estimated.
        """
        for one in self.laws:
            if one.law == name:
                return one
        raise KeyError(f"no law {name!r}, only {', '.join(one.law for one in self.laws)}")

    def attribute(self, label: str, law: str = "modal") -> Attribute:
        """The label's entry under a law.

        Raises:
            KeyError: it was not estimated.
        """
        for one in self.attributes:
            if (one.label, one.law) == (label, law):
                return one
        raise KeyError(f"no label {label!r} under the {law} law")

    def to_json(self) -> dict[str, Json]:
        """Strict JSON with every sample's contribution."""
        return {
            "analysis": "gmi",
            "config": jsonable(self.config),
            "model": self.model,
            "laws": jsonable(self.laws),
            "gap": jsonable(self.gap),
            "attributes": jsonable(self.attributes),
            "vocabulary": self.vocabulary,
            "retried": self.retried,
            "certificate": jsonable(self.certificate),
        }

    def tables(self) -> list[Table]:
        """The laws, then the attributes where some were asked for."""
        return [self.table(), *([self.attribute_table()] if self.attributes else [])]

    def table(self) -> Table:
        """One row a law."""
        rows = [
            (x.law, x.point, len(x.values), x.gmi.value, x.gmi.low, x.gmi.high, x.bias, x.supremum, x.scale)
            for x in self.laws
        ]
        unit = "nats/token" if self.config.score == "mean" else "nats"
        columns = (
            "law",
            "hook point",
            "n",
            Column("GMI", unit, ".4g"),
            Column("low", format=".4g"),
            Column("high", format=".4g"),
            Column("bias", format=".2g"),
            Column("sup over s", format=".4g"),
            Column("s", format=".3g"),
        )
        return Table(f"GMI of the decoder of {self.model}", columns, rows, self._notes())

    def attribute_table(self) -> Table:
        """One row a law and label."""
        rows: list[tuple[Any, ...]] = []
        for a in self.attributes:
            cells = (a.label, a.law, a.n or None, len(a.classes) or None, a.entropy)
            found = (None if e is None else e.value for e in (a.information, a.gmi, a.delta))
            ends = (None, None) if a.delta is None else (a.delta.low, a.delta.high)
            rows.append((*cells, *found, *ends, a.probe_accuracy, a.decoder_accuracy, a.chance))
        columns: tuple[Column | str, ...] = (
            "label",
            "law",
            "n",
            "classes",
            *(Column(name, "nats", ".3f") for name in ("H(S)", "I(Z;S) ≥", "GMI(S|q)", "Δ_access")),
            Column("low", format=".3f"),
            Column("high", format=".3f"),
            *(Column(name, format=".3f") for name in ("probe accuracy", "decoder accuracy", "chance")),
        )
        level = 100 * self.config.level
        notes = [
            "I(Z;S): H(S) minus the held-out cross-entropy of a calibrated linear probe of the mean rows, a lower "
            "bound; GMI(S|q): supremum over the scale of the decoder's scores of the verbalised values; Δ_access: "
            f"the difference, low, high: {level:g} % paired bootstrap over samples",
            *(
                f"{a.label} ({a.law}): {note}"
                for a in self.attributes
                for note in (a.message, *a.notes)
                if note
            ),
        ]
        return Table(f"What {self.model} holds and can use of each label", columns, rows, notes)

    def figure(self) -> Any:
        """I(Z;S) and GMI(S|q) of every label; of the laws where no label was asked for."""
        from modegap.analyses.report.figures import access_bars, access_rows, law_bars, law_rows

        rows = access_rows(self)
        return access_bars(rows) if rows else law_bars(law_rows(self))

    def _notes(self) -> tuple[str, ...]:
        c = self.config
        which = "of the same target (the formula as printed)" if c.given_target else "of any target"
        notes = [
            f"GMI = E[l - log E exp l'], l the {c.score} log q of the target's tokens, clipped at the uniform "
            f"decoder's ({self.vocabulary} words), l' under {c.alternatives} rows of other samples {which}",
            f"low, high: {100 * c.level:g} % bootstrap over samples; bias: what the finite number of alternatives "
            "adds, estimated and not taken off; sup over s: of E[s l - log E exp s l'] with the own rows among the "
            f"alternatives, at most log {c.alternatives + 1} = {np.log(c.alternatives + 1):.3g}",
        ]
        if self.gap is not None:
            g = self.gap
            span = "" if g.low is None or g.high is None else f" [{g.low:.4g}, {g.high:.4g}]"
            notes.append(f"modal minus text: {g.value:.4g}{span}")
        failures = [entry for law in self.laws for entry in law.failures]
        return (*notes, *notes_of(failures, self.retried))
