"""The section on LoRA interventions: the objective is changed, what becomes accessible, what else moves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from modegap.analyses.lora.outcome import CONTROL, LABEL
from modegap.analyses.report import Item

from .topics import Topic, stacked

if TYPE_CHECKING:
    from modegap.analyses.lora import LoraResult

    from .model import Study

_PROSE = (
    "Encoder and adapter stay as they are; a LoRA of the decoder is trained to answer a question about one label. If "
    "the label becomes readable then, it was in the representation before and the decoder did not use it. A control is "
    "trained on the texts of the same samples by the same recipe. Everything is measured on samples that no training "
    "saw."
)


def _own(study: Study) -> list[Item]:
    items: list[Item] = []
    for one in study.lora:
        name = f"lora-{study.name}-{one.label}"
        items.append(Item(one, name=name, title=f"{study.name}: trained for {one.label}"))
        items += [Item(table, name=f"{name}-{number}") for number, table in enumerate(one.tables()[1:], 2)]
    return items


def _across(studies: Sequence[Study]) -> list[Item]:
    """The comparison tables of all studies as one."""
    found = [(f"{study.name}, {one.label}", one.table()) for study in studies for one in study.lora]
    return [Item(stacked("Trained for a label", found), name="lora-models")]


INTERVENTION = Topic("A change of the objective", "lora", _PROSE, _own, _across)


def intervention_findings(study: Study) -> Iterator[str]:
    """A sentence an intervention for the top of the report."""
    for one in study.lora:
        yield f"**{study.name}**: {finding(one)}"


def finding(result: LoraResult) -> str:
    """What training for the label did, in one sentence."""
    arms = {arm.name: arm.ask(result.label) for arm in result.arms}
    base, trained = result.arms[0].ask(result.label), arms[LABEL]
    low, high = trained.accuracy.low, trained.accuracy.high
    span = "" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
    text = (
        f"trained for {result.label}, the decoder answers {100 * trained.accuracy.value:.1f} %{span} of "
        f"{result.n_test} held-out samples rightly instead of {100 * base.accuracy.value:.1f} % "
        f"(chance {100 * base.chance:.0f} %)"
    )
    if CONTROL in arms:
        text += f", a control trained on the texts {100 * arms[CONTROL].accuracy.value:.1f} %"
    probes = [x for x in result.changes() if x.arm == LABEL and x.quantity == "probe accuracy"]
    others = [x for x in probes if x.label != result.label and x.point == result.final_point]
    moved = [x.label for x in others if x.moved]
    text += f"; of {len(others)} other probes at {result.final_point}, {len(moved)} moved"
    return f"{text} ({', '.join(moved)})." if moved else f"{text}."
