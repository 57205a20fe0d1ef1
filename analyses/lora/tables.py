"""The tables of a LoRA intervention."""

from __future__ import annotations

from typing import Any

from modegap.analyses.replayed.intervals import Estimate
from modegap.analyses.replayed.opening import notes_of
from modegap.analyses.result import Column, Table

from .outcome import BASE, CONTROL, LABEL, Arm, LoraResult, cell_of


def title_of(result: LoraResult, arm: str) -> str:
    """A decoder as people call it."""
    return {BASE: "base", LABEL: f"LoRA: {result.label}", CONTROL: "LoRA: texts (control)"}[arm]


def comparison_table(result: LoraResult) -> Table:
    """One row a decoder: task accuracy, the probes of every label at the last hook point, L_log, GMI, Delta_access."""
    point = result.final_point
    probed = [x for x in result.arms[0].probes.labels if cell_of(result.arms[0].probes, x, point) is not None]
    rows = []
    for arm in result.arms:
        asked = arm.ask(result.label)
        probes = [_probe(arm, label, point) for label in probed]
        rows.append(
            (
                title_of(result, arm.name),
                *_ends(asked.accuracy),
                None if arm.written is None else arm.written.accuracy.value,
                *probes,
                None if arm.sensitivity is None else arm.sensitivity.mean.value,
                None if arm.gmi is None else arm.gmi.mean.value,
                None if asked.access.delta is None else asked.access.delta.value,
            )
        )
    columns: tuple[Column | str, ...] = (
        "decoder",
        Column("task accuracy", format=".3f"),
        Column("low", format=".3f"),
        Column("high", format=".3f"),
        Column("as written", format=".3f"),
        *(Column(f"probe {label}", format=".3f") for label in probed),
        Column("L_log", format=".4g"),
        Column("GMI of the texts", "nats/token", ".3f"),
        Column("Δ_access", "nats", ".3f"),
    )
    return Table(f"LoRA for {result.label} in the decoder of {result.model}", columns, rows, _notes(result))


def changes_table(result: LoraResult) -> Table:
    """One row a decoder and quantity: base, trained, difference with its interval."""
    rows: list[tuple[Any, ...]] = [
        (
            title_of(result, x.arm),
            x.quantity,
            x.label,
            x.point,
            x.before,
            x.after,
            *_ends(x.difference),
            x.moved,
        )
        for x in result.changes()
    ]
    columns: tuple[Column | str, ...] = (
        "decoder",
        "quantity",
        "label",
        "hook point",
        Column("base", format=".4g"),
        Column("trained", format=".4g"),
        Column("difference", format="+.4f"),
        Column("low", format="+.4f"),
        Column("high", format="+.4f"),
        "moved",
    )
    level = 100 * result.config.level
    notes = [
        f"low, high: {level:g} % interval of the difference, a bootstrap over samples paired by sample; of probe "
        "accuracies Student's t over seeds paired by split, its variance corrected for overlapping splits; moved: it "
        f"excludes 0. {len(rows)} differences, none corrected for their number",
    ]
    return Table("What moved", columns, rows, notes)


def training_table(result: LoraResult) -> Table:
    """One row an epoch of every training."""
    rows: list[tuple[Any, ...]] = []
    notes = []
    for arm in result.arms:
        if arm.training is None:
            continue
        name = title_of(result, arm.name)
        for epoch in arm.training.epochs:
            rate = epoch.samples / epoch.seconds if epoch.seconds else None
            best = epoch.number == arm.training.best_epoch
            rows.append((name, epoch.number, epoch.train_loss, epoch.validation_loss, rate, best))
        early = "stopped early" if arm.training.stopped_early else "ran all its epochs"
        notes.append(
            f"{name}: {arm.training.steps} steps, {arm.training.parameters:,} weights, {early}; adapter in "
            f"{arm.adapter}"
        )
    columns: tuple[Column | str, ...] = (
        "decoder",
        "epoch",
        Column("training loss", "nats", ".4f"),
        Column("validation loss", "nats", ".4f"),
        Column("samples/s", format=".1f"),
        "kept",
    )
    return Table("Training", columns, rows, notes)


def _probe(arm: Arm, label: str, point: str) -> float | None:
    cell = cell_of(arm.probes, label, point)
    return None if cell is None else cell.accuracy


def _ends(found: Estimate) -> tuple[float, float | None, float | None]:
    return found.value, found.low, found.high


def _notes(result: LoraResult) -> tuple[str, ...]:
    c = result.config
    asked = result.arms[0].ask(result.label)
    side = f", no {c.group} in two of them" if c.group else ""
    return (
        f"trained on {result.n_train} samples, stopped by {result.n_validation}, measured on {result.n_test} that no "
        f"training saw{side}; question: {asked.question!r}; chance {asked.chance:.3f}, largest class "
        f"{asked.access.chance:.3f}",
        f"r {c.rank}, alpha {c.alpha}, dropout {c.dropout:g} on {', '.join(c.modules)}; AdamW {c.lr:g}, weight decay "
        f"{c.weight_decay:g}, effective batch {c.effective_batch}, clip {c.clip:g}, at most {c.epochs} epochs, "
        f"patience {c.patience}; loss on the answer's tokens",
        f"task accuracy: the choice of the highest {c.score} log q, low, high: {100 * c.level:g} % bootstrap over "
        f"samples; as written: the first choice named in a greedy answer; probes at {result.final_point}",
        *(f"{label} was not asked for: {why}" for label, why in result.refused),
        *notes_of(result.failures),
    )
