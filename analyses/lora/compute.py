"""`lora`: train a decoder for a label on stored rows, and measure what that unlocks and what else it moves."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modegap.analyses.gmi import gmi
from modegap.analyses.lipschitz import lipschitz
from modegap.analyses.probe import ProbeConfig, probe
from modegap.analyses.replayed.intervals import Estimate
from modegap.analyses.replayed.opening import replay_certificate
from modegap.analyses.result import jsonable, with_options
from modegap.engine.capture.replayed import extract_replayed
from modegap.engine.errors import EngineError
from modegap.engine.lora.adapters import adapted, fresh
from modegap.engine.lora.config import Epoch, TrainConfig, Training
from modegap.engine.lora.threads import threads_for
from modegap.engine.lora.trainer import train
from modegap.engine.replay import Replay, ReplaySource
from modegap.stores import ActivationStore, as_store

from .asking import Choice, ask, choices_of, write
from .config import LoraConfig
from .folder import HELD_OUT, SPLIT, STORE, OtherRunError, claim, empty, write_json
from .outcome import BASE, CONTROL, LABEL, Arm, LoraResult, PerSample
from .task import Task, settle, text_column

if TYPE_CHECKING:
    from modegap.engine.models import LoadedModel

Progress = Callable[[str, int, int], None]


def lora(
    loaded: LoadedModel,
    store: ActivationStore | str | Path,
    label: str,
    out: str | Path,
    config: LoraConfig | None = None,
    *,
    replace: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> LoraResult:
    """The paper's intervention: the decoder's objective is changed, encoder and adapter are not, nor are they run.

    A LoRA of the decoder is trained to answer a question about the label from stored adapter rows, another one (the
    control) to say the samples' texts. Base and both are then measured on held-out samples: forced-choice accuracy,
    GMI(S | q) and Delta_access of every label, L_log, GMI of the texts, and, captured again by replay, what probes
    read from the hidden states.

    `out` then holds `training/split.json`, `held_out.zarr`, and for each trained decoder `NAME/adapter` in peft's
    format, `NAME/store.zarr` and `NAME/training.json`. A call with the same arguments goes on where an earlier one was
    stopped, in the middle of an epoch too, and trains nothing twice.

    Args:
        loaded: the model; unchanged afterwards.
        store: a store with token rows of the adapter's output, labels, and texts for the control.
        label: label column to train for.
        out: folder for adapters, stores and split.
        config: options; `options` are fields of it given by name.
        replace: remove what a call with other arguments left in `out` as far as it does not hold for this one,
            instead of refusing the folder; an adapter that another one would be trained for is not kept.
        progress: called as `progress(what, done, total)`.

    Raises:
        ValueError: unknown options, a label without classes or with too few samples of one, another run's folder.
        EngineError: a model that cannot be replayed or adapted, no texts for the control, a loss that is not finite.
        StoreError: a store cannot be read, or an unknown label column.
    """
    config = with_options(config or LoraConfig(), options)
    store = as_store(store)
    say = progress or (lambda what, done, total: None)
    with threads_for(loaded):
        try:
            work = _Intervention(loaded, store, label, Path(out), config, say)
        except OtherRunError as other:
            if not replace:
                raise
            empty(Path(out), other.differ)
            work = _Intervention(loaded, store, label, Path(out), config, say)
        return work()


class _Intervention:
    """The steps of `lora`."""

    def __init__(
        self,
        loaded: LoadedModel,
        store: ActivationStore,
        label: str,
        out: Path,
        config: LoraConfig,
        progress: Progress,
    ) -> None:
        self.loaded, self.store, self.config, self.progress = loaded, store, config, progress
        self.out = out
        self.task: Task = settle(loaded, store, label, config, out / SPLIT, partial(progress, "rows"))
        self._check_folder()

    def __call__(self) -> LoraResult:
        task, config = self.task, self.config
        test = task.numbers(task.split.test)
        source = task.prompts.subset(test, "it is not held out")
        self.held_out = self._capture(self.out / HELD_OUT, source, BASE)
        choices, refused = choices_of(self.loaded, self.store, self.held_out, task, config)
        if task.label in refused:
            raise ValueError(f"label {task.label!r} cannot be tested: {refused[task.label]}")
        arms = [self._measure(BASE, None, None, self.held_out, choices)]
        trained = {LABEL: task.source, **({CONTROL: task.texts} if config.control and task.texts else {})}
        for name, texts in trained.items():
            training = self._train(name, texts)
            folder = self.out / name / "adapter"
            with adapted(self.loaded, folder):
                captured = self._capture(self.out / name / STORE, source, name)
                arms.append(self._measure(name, folder, training, captured, choices))
        return LoraResult(
            config=config,
            model=self.loaded.name,
            source=str(self.store.path),
            dataset=str(self.store.provenance.get("dataset") or ""),
            label=task.label,
            question=task.question,
            choices=task.choices,
            n_train=len(task.split.train),
            n_validation=len(task.split.validation),
            n_test=len(task.split.test),
            arms=tuple(arms),
            refused=tuple(refused.items()),
            failures=task.left_out,
            certificate=replay_certificate(Replay(self.loaded, source, batch_size=config.batch_size)),
        )

    def _facts(self) -> dict[str, Any]:
        """What decides the adapters' weights, beside the training's own options."""
        c, task = self.config, self.task
        return {
            "model": self.loaded.name,
            "revision": self.loaded.revision,
            "dtype": str(self.loaded.dtype),
            "store": task.prompts.content_hash,
            "label": task.label,
            "question": task.question,
            "verbalise": c.verbalise,
            "target_label": text_column(self.store, c),
            "lora": jsonable(task.spec),
        }

    def _check_folder(self) -> None:
        """Refuse a folder with another run's adapters and stores; note what this one is."""
        options = {one.name: getattr(self.config, one.name) for one in fields(TrainConfig)}
        for name in ("save_every",):  # decides nothing
            del options[name]
        claim(self.out, {**self._facts(), **options, "points": self.task.points})

    def _train(self, name: str, source: ReplaySource) -> Training:
        folder = self.out / name
        record = folder / "training.json"
        if record.exists() and (folder / "adapter").is_dir():
            return _training(json.loads(record.read_text()))
        say = partial(self.progress, f"training: {name}")
        with fresh(self.loaded, self.task.spec, seed=self.config.seed) as adapter:
            found = train(
                self.loaded,
                adapter,
                source,
                self.task.numbers(self.task.split.train),
                self.task.numbers(self.task.split.validation),
                self.config.training(),
                checkpoint=folder / "checkpoint.safetensors",
                facts={**self._facts(), "arm": name},
                progress=say,
            )
            if not (folder / "adapter").is_dir():
                adapter.save(folder / "adapter")
        write_json(record, asdict(found))
        (folder / "checkpoint.safetensors").unlink(missing_ok=True)
        return found

    def _capture(self, path: Path, source: ReplaySource, name: str) -> ActivationStore:
        """The decoder's hook points over the held-out samples; the base's store has the rows to replay too."""
        task, provenance = self.task, self.store.provenance
        rows: dict[str, Any] = {}
        if name == BASE:
            rows[source.point] = "both"
            if any(info.stream == "llm" for info in self.store.points.values()):
                rows[task.points[1]] = "both"  # with it go the prompts' token ids
        kept = ("model", "revision", "dtype", "prompt", "dataset", "family", "pool")
        said = {key: provenance[key] for key in kept if key in provenance}
        weights = None if name == BASE else _digest(self.out / name / "adapter" / "adapter_model.safetensors")
        return extract_replayed(
            self.loaded,
            source,
            path,
            self._points(name),
            rows=rows,
            pool=provenance.get("pool", "all"),
            dtype=self.store.points[source.point].dtype,
            batch_size=self.config.batch_size,
            kinds={label: column.kind for label, column in self.store.labels.items()},
            provenance={**said, "replayed_from": source.content_hash, "adapter": weights},
            progress=partial(self.progress, f"capture: {name}"),
        )

    def _points(self, name: str) -> tuple[str, ...]:
        """Hook points of a decoder; the adapter's rows, the same under every one, with the base only."""
        return self.task.points if name == BASE else self.task.points[1:]

    def _measure(
        self,
        name: str,
        adapter: Path | None,
        training: Training | None,
        captured: ActivationStore,
        choices: list[Choice],
    ) -> Arm:
        config = self.config
        asked = []
        for number, choice in enumerate(choices):
            asked.append(ask(self.loaded, choice, config))
            self.progress(f"choices: {name}", number + 1, len(choices))
        written = write(self.loaded, choices[0], config) if config.generate else None
        probes = probe(
            captured,
            config=ProbeConfig(
                points=self._points(name), group=config.group, level=config.level, calibration=0
            ),
            progress=partial(self.progress, f"probes: {name}"),
        )
        sensitivity = gmi_of_texts = None
        column = text_column(self.store, config)
        if column is not None:
            common: Mapping[str, Any] = {
                "target_label": column,
                "batch_size": config.batch_size,
                "seed": config.seed,
                "draws": config.draws,
                "level": config.level,
            }
            norms = lipschitz(
                self.loaded, self.held_out, **common, progress=partial(self.progress, f"gradients: {name}")
            )
            mean = Estimate(norms.overall.mean, norms.overall.mean_low, norms.overall.mean_high)
            sensitivity = PerSample(mean, norms.ids, norms.norms)
            found = gmi(
                self.loaded,
                self.held_out,
                **common,
                alternatives=config.alternatives,
                progress=partial(self.progress, f"gmi: {name}"),
            )
            law = found.laws[0]
            gmi_of_texts = PerSample(law.gmi, law.ids, law.values)
        return Arm(
            name=name,
            adapter=None if adapter is None else str(adapter),
            training=training,
            asked=tuple(asked),
            written=written,
            probes=probes,
            sensitivity=sensitivity,
            gmi=gmi_of_texts,
        )


def _training(content: dict[str, Any]) -> Training:
    epochs = tuple(Epoch(**entry) for entry in content.pop("epochs"))
    return Training(epochs=epochs, **content)


def _digest(path: Path) -> str:
    import hashlib

    if not path.is_file():
        raise EngineError(f"{path.parent} holds no weights; remove the folder, and train again")
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
