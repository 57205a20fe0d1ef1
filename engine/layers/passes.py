"""The passes of layer streaming: first everything before the decoder's layers, then one layer after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from modegap.engine.capture.capturer import Block, Capturer, check_finite
from modegap.engine.capture.collect import to_device
from modegap.engine.capture.feed import Feed, Item, Prepared
from modegap.engine.capture.job import Job, Shape
from modegap.engine.capture.parity import compared, tolerance
from modegap.engine.capture.rows import token_columns
from modegap.engine.models.collate import Inputs
from modegap.engine.models.fused import fused_layers
from modegap.engine.models.points import HookPoint

from .calls import pack, unpack
from .decoder import LayerRunner
from .feed import LayerFeed
from .parts import MomentsPart, Part, RowsPart, shape_json, shapes_of
from .working import StateWriter, WorkingStore

CHECKED = 2
"""Samples of the first batch that also run alone, through every layer: padding must change nothing."""


class _Check:
    """Compares the first samples of the first batch with the same samples alone."""

    def __init__(self, job: Job, points: Sequence[HookPoint]) -> None:
        self._points, self._dtype = points, job.config.store_dtype
        fused = job.fused and job.loaded.device.type == "cuda"  # these samples run the model's own code
        self._limit = tolerance(job.loaded, self._dtype, fused=fused)
        self.ids: list[str] = []
        self._kept: dict[str, list[torch.Tensor]] = {}
        self._worst: dict[str, tuple[float, float]] = {point.name: (0.0, 0.0) for point in points}

    def keep(self, blocks: Mapping[str, Block], ids: Sequence[str]) -> None:
        """Remembers the first batch's rows."""
        self.ids = list(ids[:CHECKED])
        self._kept = {
            name: [block.rows(index).cpu() for index in range(len(self.ids))]
            for name, block in blocks.items()
        }

    def compare(self, blocks: Mapping[str, Block], ids: Sequence[str]) -> None:
        """Compares a sample that ran alone."""
        check_finite(blocks, ids)
        for point in self._points:
            ours = self._kept[point.name][self.ids.index(ids[0])]
            alone = blocks[point.name].rows(0).cpu()
            gap = compared(point, ids[0], ours, alone, self._dtype, self._limit)
            worst = self._worst[point.name]
            self._worst[point.name] = (max(worst[0], gap[0]), max(worst[1], gap[1]))

    def to_json(self) -> dict[str, Any]:
        """The largest differences by point, as `Parity.to_json` gives them."""
        return {
            name: {
                "max_abs": float(f"{gap[0]:.3g}"),
                "max_rel": float(f"{gap[1]:.3g}"),
                "tolerance": float(f"{self._limit:.3g}"),
                "samples": len(self.ids),
            }
            for name, gap in self._worst.items()
        }


class Passes:
    """Runs the passes of a job over a working store.

    Args:
        job: prepared.
        working: begun.
        runner: of the job's model.
        last: the last layer to run; -1 for none.
    """

    def __init__(self, job: Job, working: WorkingStore, runner: LayerRunner, last: int) -> None:
        """Sorts the points by the pass that they come by."""
        self.job, self.working, self.runner, self.last = job, working, runner, last
        self.points: dict[int, list[HookPoint]] = {}
        for point in job.points:
            self.points.setdefault(pass_of(job, point), []).append(point)

    def before(self) -> None:
        """Embeddings, encoder and adapter: what enters the first layer, and the calls of the decoder."""
        if self.working.noted("pass--1") is not None:
            return
        job, points = self.job, self.points.get(-1, [])
        batches: list[list[int]] = []
        with ExitStack() as stack:
            states = stack.enter_context(self.working.writer(0)) if self.last >= 0 else None
            run = _Run(self, -1, points, states)
            stack.push(run.leave)
            feed = stack.enter_context(
                Feed(
                    job.loaded,
                    job.data,
                    job.batches,
                    collate=job.collate,
                    workers=job.config.workers,
                    most=lambda: job.backoff.limit,
                )
            )
            fused = stack.enter_context(self._fused())
            done = 0
            job.progress("embed", 0, job.count)
            for prepared in feed:
                for part, _ in job.backoff.run(prepared.items, self._entering(prepared, run, batches)):
                    done += len(part)
                    job.progress("embed", done, job.count)
            fused.close()  # what runs alone is compared with: it runs the model's own code
            alone = batches[0][:CHECKED]
            for item in job.samples(alone):
                host = job.collate([item[1]])
                run.enter(len(batches), host, job.loaded.place(host), [item[0]], checked=True)
                batches.append([item[0]])
        if states is not None:
            self.working.commit(0, states.sums)
        self.working.note("batches", {"batches": batches, "alone": len(alone)})
        run.finish()

    def _fused(self) -> ExitStack:
        """The model's layers as a capture runs them, until the stack is closed."""
        stack = ExitStack()
        if self.job.fused:
            stack.enter_context(fused_layers(self.job.loaded.model))
        return stack

    def _entering(
        self, prepared: Prepared, run: _Run, batches: list[list[int]]
    ) -> Callable[[Sequence[Item]], bool]:
        def work(part: Sequence[Item]) -> bool:
            if len(part) == len(prepared.items):
                host, placed = prepared.host, prepared.receive(self.job.loaded)
            else:
                host = self.job.collate([sample for _, sample in part])
                placed = self.job.loaded.place(host)
            indices = [index for index, _ in part]
            run.enter(len(batches), host, placed, indices)
            batches.append(indices)
            return True

        return work

    def layer(self, k: int, feed: LayerFeed) -> None:
        """Layer k over all batches; its weights are asked of `feed`."""
        listed = self.working.noted("batches")
        batches, alone = listed["batches"], int(listed["alone"])
        job, device = self.job, self.job.loaded.device
        title = f"layer {k + 1} of {self.last + 1}"
        feed.take(k)
        with ExitStack() as stack:
            states = stack.enter_context(self.working.writer(k + 1)) if k < self.last else None
            run = _Run(self, k, self.points.get(k, []), states)
            stack.push(run.leave)
            fused = stack.enter_context(self._fused())
            done = 0
            job.progress(title, 0, job.count)
            for number, rows in self.working.read(k, range(len(batches))):
                tensors, facts = self.working.call(number)
                host = _host(tensors, facts)
                call = {n: to_device(t, device) for n, t in tensors.items() if n.startswith("call.")}
                kwargs = unpack(facts["tree"], {n.removeprefix("call."): t for n, t in call.items()})
                checked = number >= len(batches) - alone
                if checked:
                    fused.close()
                run.layer(number, host, kwargs, rows, batches[number], checked=checked)
                if not checked:
                    done += len(batches[number])
                    job.progress(title, done, job.count)
        if states is not None:
            self.working.commit(k + 1, states.sums)
        run.finish()
        self.working.keep_only(k + 1)
        feed.drop(k)


class _Run:
    """One pass: the points captured by it, and the states it hands on."""

    def __init__(
        self, passes: Passes, number: int, points: Sequence[HookPoint], states: StateWriter | None
    ) -> None:
        self._passes, self._number, self._points, self._states = passes, number, points, states
        self._job = passes.job
        folder = passes.working.folder / "parts" / str(number)
        kind = RowsPart if self._job.config.stored else MomentsPart
        self._part: Part | None = kind(self._job, points, folder) if points else None
        self._check = _Check(self._job, points)
        self._shapes: dict[str, Shape] = {}

    def enter(
        self, number: int, host: Inputs, placed: Inputs, indices: list[int], *, checked: bool = False
    ) -> None:
        """A batch up to the first layer."""
        entered: list[Any] = []

        def forward(inputs: Inputs) -> None:
            entered.append(self._passes.runner.enter(lambda: self._job.loaded.forward(inputs)))

        run = self._passes.last >= 0 or any(point.stream != "text" for point in self._points)
        self._captured(forward if run else lambda _: None, host, placed, indices, checked)
        if self._states is None:
            return
        kwargs, hidden = entered[0]
        tensors, tree = pack(kwargs, self._passes.runner.path)
        kept = {
            "attention": host.attention,
            "modality": host.modality,
            "input_ids": host.tensors["input_ids"],
            **{f"call.{name}": tensor for name, tensor in tensors.items()},
        }
        self._passes.working.put_call(number, kept, {"tree": tree, "ids": host.ids})
        self._states.put(number, _unpadded(hidden, host.attention))

    def layer(
        self,
        number: int,
        host: Inputs,
        kwargs: dict[str, Any],
        rows: torch.Tensor,
        indices: list[int],
        *,
        checked: bool,
    ) -> None:
        """A batch through this pass's layer."""
        hidden = _padded(rows, host.attention)
        after: list[torch.Tensor | None] = []

        def forward(_: Inputs) -> None:
            after.append(self._passes.runner.layer(self._number, kwargs, hidden))

        self._captured(forward, host, host, indices, checked)
        if self._states is not None:
            assert after[0] is not None
            self._states.put(number, _unpadded(after[0], host.attention))

    def _captured(
        self,
        forward: Callable[[Inputs], None],
        host: Inputs,
        placed: Inputs,
        indices: list[int],
        checked: bool,
    ) -> None:
        if not self._points:
            with torch.no_grad():
                forward(placed)
            return
        with Capturer(self._job.loaded, self._points, forward) as capturer:
            blocks = capturer(placed, host)
        if checked:
            self._check.compare(blocks, host.ids)
            return
        if not self._check.ids:
            check_finite(blocks, host.ids)
            self._check.keep(blocks, host.ids)
            self._shapes = shapes_of(blocks)
        assert self._part is not None
        found = self._part.collector(blocks, host.ids)
        columns = []
        if self._part.collector.rows != "pooled":
            streams = {point.stream: point.name for point in self._points}
            columns = [
                {
                    stream: token_columns(self._job.loaded, host, at, stream, found[name].lengths[at])
                    for stream, name in streams.items()
                }
                for at in range(len(indices))
            ]
        self._part.sink(self._shapes).take(self._part.shuttle.send(indices, host.ids, columns, found))

    def leave(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Ends the part, with the pass."""
        if self._part is not None and error is not None:
            self._part.abandon(error)
        elif self._part is not None:
            self._part.close()

    def finish(self) -> None:
        """Notes that the pass is complete."""
        self._passes.working.note(
            f"pass-{self._number}",
            {
                "shapes": {name: shape_json(shape) for name, shape in self._shapes.items()},
                "parity": self._check.to_json(),
            },
        )


def pass_of(job: Job, point: HookPoint) -> int:
    """The pass in which a point's tensor comes by: -1 before the layers, k for layer k or, at last, the norm."""
    structure = job.loaded.structure
    assert structure is not None
    last = structure.n_layers - 1
    if point.stream == "text":
        return -1
    if point.module_path.startswith(f"{structure.layers}."):
        return int(point.module_path.removeprefix(f"{structure.layers}.").split(".")[0])
    if point.stream == "llm" and not (point.module_path == structure.decoder and point.pick == "input"):
        return last if _after(job, point) else -1
    return -1


def _after(job: Job, point: HookPoint) -> bool:
    """Whether a module of the decoder comes after its layers."""
    structure = job.loaded.structure
    assert structure is not None
    if point.module_path in (structure.decoder, structure.norm):
        return True
    inside = point.module_path.removeprefix(f"{structure.decoder}.").split(".")[0]
    children = [name for name, _ in job.loaded.model.get_submodule(structure.decoder).named_children()]
    stack = structure.layers.rpartition(".")[2]
    return inside in children and children.index(inside) > children.index(stack)


def _host(tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> Inputs:
    """What is known of a batch without its media."""
    attention = tensors["attention"]
    ids: list[str] = list(facts["ids"])
    return Inputs(
        {"input_ids": tensors["input_ids"]},
        attention,
        tensors["modality"],
        torch.zeros_like(attention),
        ids,
        [[] for _ in ids],
        (),
    )


def _unpadded(hidden: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    """The real rows [n, d] of [B, T, d]."""
    index = to_device(attention.flatten().nonzero().squeeze(1), hidden.device)
    return hidden.reshape(-1, hidden.shape[-1]).index_select(0, index)


def _padded(rows: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    """[B, T, d] with zeros where `_unpadded` left rows out."""
    index = to_device(attention.flatten().nonzero().squeeze(1), rows.device)
    whole = rows.new_zeros((attention.numel(), rows.shape[1]))
    return whole.index_copy_(0, index, rows).reshape(*attention.shape, rows.shape[1])
