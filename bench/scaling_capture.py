"""Weak scaling of a capture under torchrun: `extract` by one process over its samples, by two over twice as many.

The model has the shape of LLaVA-1.5-7B and random weights, the same on each GPU (on the CPU a small one). In turn the
first process captures N samples alone while the other waits, the other one does the next N (in the first round), and
both capture the 2N into one store, with the ranks that `modegap extract` passes under torchrun. Timed is the whole
call: tokenising, the parity check of the first batch, forwards, writing, the last commit.

What one process stored must be what both did: the pooled rows of all samples and the token rows of some agree within
the tolerance of the capture's own parity check, and the store of both is complete and verified.

Beside it, measured the same way: the bare forwards of a batch that is there, and writing rows of that shape.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .scaling_pair import GOAL_WEAK, Clock, Pair, Watched, by_torchrun, spread

if TYPE_CHECKING:
    from modegap.engine.datasets import Sample
    from modegap.engine.models import LoadedModel
    from modegap.engine.parallel import Ranks
    from modegap.stores import ActivationStore

Rows = Literal["pooled", "both"]
CASES: dict[str, Rows] = {"capture": "pooled", "tokens": "both"}
"""Rows that are stored: a mean a sample at four points, bound by the forward; at two points token rows too."""
ROUNDS, FORWARDS, PICTURES = 2, 2, 32
SOME = 8
"""Samples of each process whose token rows are compared."""


@dataclass(frozen=True, slots=True)
class Size:
    """Of a process: samples that it captures, samples a batch, samples that it writes where nothing is computed.

    And bytes of a chunk, and height and width of a picture. Samples are multiples of a chunk of pooled rows.
    """

    samples: int
    batch: int
    written: int
    chunk_bytes: int
    picture: tuple[int, int]


GPU = Size(512, 32, 128, 16 << 20, (480, 640))
CPU = Size(64, 16, 64, 4096, (48, 64))


def by_captures(
    options: argparse.Namespace, env: dict[str, str], names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """What was found in each case: from one torchrun, so that models are built once."""
    words = ["--gpus", "--share", ",".join(names), "--device", options.device]
    words += ["--rounds", str(options.rounds or ROUNDS)]
    words += [] if options.samples is None else ["--samples", str(options.samples)]
    found: dict[str, dict[str, Any]] = by_torchrun(words, options.dir / "share.pt", env)
    for one in found.values():
        ratio = one["weak scaling"]
        one["weak scaling"] = {
            "ratio": ratio,
            "of the bare forwards'": ratio / one["forwards"]["weak scaling"],
            "goal": GOAL_WEAK,
            "met": ratio >= GOAL_WEAK,
        }
        one["met"] = one["weak scaling"]["met"]
    return found


def share(options: argparse.Namespace, ranks: Ranks, names: Sequence[str]) -> dict[str, Any]:
    """What each of torchrun's two processes does."""
    import torch
    import transformers as hf

    from bench.llava import LARGE, SMALL, build

    hf.logging.set_verbosity_error()
    large = options.device == "cuda"
    size = GPU if large else CPU
    count = options.samples or size.samples
    pair = Pair(options.device, ranks)
    begin = time.perf_counter()
    dtype = torch.bfloat16 if large else torch.float32
    loaded = build(LARGE if large else SMALL, str(pair.place), dtype, torchvision=True)
    pair.sync()
    built = time.perf_counter() - begin
    middle = f"llm_hidden_{(LARGE if large else SMALL).layers // 2}"
    points = {
        "capture": ("encoder_output", "adapter_output", middle, "llm_final"),
        "tokens": ("adapter_output", "llm_final"),
    }
    found = {}
    for name in names:
        folder = options.dir.parent / f"scaling-{name}"
        case = _Case(pair, loaded, points[name], CASES[name], size, count, folder)
        found[name] = {
            "build of the model, seconds": pair.slowest([built])[0],
            **case.measured(options.rounds),
        }
    return found


@dataclass(frozen=True, slots=True)
class _Point:
    """Width of a point, token rows of a sample there (0 where none are stored), and their stream."""

    width: int
    length: int
    stream: str | None

    @property
    def sample_bytes(self) -> int:
        """Bytes of a sample, its mean included."""
        return 2 * self.width * (self.length + 1)


class _Case:
    """Captures of one kind by a pair of processes."""

    def __init__(
        self,
        pair: Pair,
        loaded: LoadedModel,
        points: Sequence[str],
        rows: Rows,
        size: Size,
        count: int,
        folder: Path,
    ) -> None:
        """`count` samples a process; stores lie in `folder` while they are needed."""
        self._pair, self._loaded, self._points, self._rows = pair, loaded, tuple(points), rows
        self._size, self._count, self._folder = size, count, folder
        self._samples = _samples(count * pair.ranks.world, size.picture)
        self._parts: dict[str, list[dict[str, float]]] = {"one GPU": [], "two GPUs": []}
        self._captured = 0

    def measured(self, rounds: int) -> dict[str, Any]:
        """Everything about the case."""
        pair, count = self._pair, self._count
        self._folder.mkdir(parents=True, exist_ok=True)
        self._clear()
        # kernels are compiled, page-locked memory is taken and threads start in the first capture of a process
        first = pair.seconds(lambda: self._alone(min(2 * self._size.batch, count)))
        self._clear()
        self._parts["one GPU"].clear()
        seconds: dict[str, list[float]] = {"one GPU": [], "the other one": [], "two GPUs": []}
        agreement, layout = {}, {}
        for turn in range(rounds):
            for rank, key in enumerate(("one GPU", "the other one")[: 1 if turn else 2]):
                pair.meet()
                working = pair.ranks.rank == rank
                seconds[key] += pair.slowest([pair.seconds(self._alone) if working else 0.0])
            took, both = self._together()
            seconds["two GPUs"].append(took)
            if not turn:
                agreement, layout = self._agreement(both), self._layout(both)
            self._clear()
        forwards, writing = self._forwards(), self._writing(layout)
        self._clear()
        one, two = (statistics.median(seconds[key]) for key in ("one GPU", "two GPUs"))
        nbytes = count * sum(point.sample_bytes for point in layout.values())
        parts = pair.everyones({key: _means(found) for key, found in self._parts.items()})
        return {
            "model": f"{self._loaded.name}, random weights, {self._loaded.dtype}",
            "device": pair.device,
            "points": self._points,
            "rows": self._rows,
            "samples a GPU": count,
            "batch": self._size.batch,
            "bytes a GPU": nbytes,
            "samples that each of two captured": pair.everyones(self._captured),
            "first capture of a process, seconds": pair.slowest([first])[0],
            "seconds": {key: spread(times) for key, times in seconds.items()},
            "samples a second": {"one GPU": count / one, "two GPUs": pair.ranks.world * count / two},
            "parts": {"one GPU": parts[0]["one GPU"], "two GPUs": [each["two GPUs"] for each in parts]},
            "forwards": {
                **forwards,
                "of one GPU's time": count * forwards["one GPU, ms a sample"] / 1e3 / one,
            },
            "writing": {**writing, "of one GPU's time": nbytes / 1e9 / writing["one process, GB/s"] / one},
            "weak scaling": pair.weak(seconds["one GPU"], seconds["two GPUs"]),
            **agreement,
        }

    def _path(self, name: str | int) -> Path:
        return self._folder / f"{name}.zarr"

    def _clear(self) -> None:
        """Removes all stores, when nobody needs them."""
        self._pair.meet()
        if self._pair.ranks.first:
            shutil.rmtree(self._folder)
            self._folder.mkdir()
        self._pair.meet()

    def _alone(self, count: int | None = None) -> None:
        rank = self._pair.ranks.rank
        start = rank * self._count
        self._extract(self._path(rank), start, start + (count or self._count), None)

    def _together(self) -> tuple[float, ActivationStore]:
        """Seconds of the slower process, and the store."""
        ranks = self._pair.ranks
        watched = Watched(ranks.rank, ranks.world, ranks.local)
        made: list[ActivationStore] = []

        def work() -> None:
            made.append(self._extract(self._path("both"), 0, len(self._samples), watched))

        self._pair.meet()
        return self._pair.slowest([self._pair.seconds(work)])[0], made[0]

    def _extract(self, path: Path, start: int, stop: int, ranks: Watched | None) -> ActivationStore:
        from modegap.engine.capture import ExtractConfig, extract
        from modegap.engine.datasets import ListDataset

        config = ExtractConfig(
            "bench",
            "bench",
            str(path),
            self._points,
            rows=self._rows,
            batch_size=self._size.batch,
            chunk_bytes=self._size.chunk_bytes,
            resume=False,
        )
        data = ListDataset(self._samples[start:stop])
        clock = Clock()
        store = extract(config, model=self._loaded, data=data, progress=clock, ranks=ranks)
        parts = clock.parts([] if ranks is None else ranks.waits)
        self._parts["one GPU" if ranks is None else "two GPUs"].append(parts)
        self._captured = clock.samples
        return store

    def _agreement(self, both: ActivationStore) -> dict[str, Any]:
        """How far the rows of this process's samples are from what it stored alone; the larger of the two."""
        from bench.capture.common import relative
        from modegap.engine.capture.parity import tolerance
        from modegap.stores import ActivationStore, verify

        rank, count = self._pair.ranks.rank, self._count
        own = ActivationStore.open(self._path(rank))
        some = sorted({*np.linspace(0, count - 1, min(SOME, count)).astype(int).tolist()})
        gap, differing = 0.0, 0
        for point in self._points:
            ours, theirs = both.rows(point, "pooled"), own.rows(point, "pooled")
            pairs = [(ours.read(rank * count, (rank + 1) * count), theirs.read(0, count))]
            if self._rows == "both":
                ours, theirs = both.rows(point), own.rows(point)
                pairs += [(ours.sample(rank * count + i), theirs.sample(i)) for i in some]
            gap = max(gap, *(relative(a, b) for a, b in pairs))
            differing += sum(not np.array_equal(a, b) for a, b in pairs)
        limit = tolerance(self._loaded, "float16")
        whole = not self._pair.ranks.first or (
            verify(both).ok and both.n_complete == count * self._pair.ranks.world
        )
        gap, differed, damaged = self._pair.slowest([gap, float(differing), float(not whole)])
        return {
            "largest relative difference": gap,
            "tolerance": limit,
            "same bits": not differed,
            "complete and verified": not damaged,
            "agrees": gap <= limit and not damaged,
        }

    def _layout(self, store: ActivationStore) -> dict[str, _Point]:
        def length(name: str) -> int:
            found = None if self._rows == "pooled" else store.rows(name).lengths()
            return 0 if found is None else int(found.max())

        return {name: _Point(info.width, length(name), info.stream) for name, info in store.points.items()}

    def _forwards(self) -> dict[str, float]:
        """The model without head, hooks and storing, on a batch that is there already."""
        import torch

        from modegap.engine.models.fused import fused_layers

        loaded, size = self._loaded, self._size
        inputs = loaded.collate(self._samples[: size.batch])
        known = {name: value for name, value in inputs.tensors.items() if name != "labels"}

        def run() -> None:
            for _ in range(FORWARDS):
                loaded.model.model(**known, use_cache=False)

        with torch.no_grad(), fused_layers(loaded.model):
            one, _, two = self._pair.in_turn(1, run, run, warm=0)
        each = 1e3 / (FORWARDS * size.batch)
        return {
            "one GPU, ms a sample": each * statistics.median(one),
            "two GPUs, ms a sample of each": each * statistics.median(two),
            "weak scaling": self._pair.weak(one, two),
        }

    def _writing(self, layout: dict[str, _Point]) -> dict[str, float]:
        """Rows of that shape, random ones, into a store of one process, and into parts of one store by both."""
        from modegap.stores import SampleRows

        pair, rank = self._pair, self._pair.ranks.rank
        each = sum(point.sample_bytes for point in layout.values())
        count = min(self._count, self._size.written)
        rng = np.random.default_rng(0)
        given = {}
        for name, point in layout.items():
            values = rng.standard_normal((point.length + 1, point.width), dtype=np.float32).astype(np.float16)
            given[name] = SampleRows(values[1:] if point.length else None, values[0])

        def writes(store: ActivationStore, part: tuple[int, int]) -> Callable[[], None]:
            def run() -> None:
                with store.writer(*part) as writer:
                    for sample in writer.todo.tolist():
                        writer.put(sample, given)

            return run

        own = self._empty(f"written by {rank}", layout, count)
        if pair.ranks.first:
            self._empty("written by both", layout, pair.ranks.world * count)
        pair.meet()
        shared = self._empty("written by both", layout, pair.ranks.world * count)
        part = shared.parts(pair.ranks.world)[rank]
        one, _, two = pair.in_turn(1, writes(own, (0, count)), writes(shared, part), warm=0)
        return {
            "one process, GB/s": count * each / 1e9 / statistics.median(one),
            "two processes, GB/s": pair.ranks.world * count * each / 1e9 / statistics.median(two),
            "weak scaling": pair.weak(one, two),
        }

    def _empty(self, name: str, layout: dict[str, _Point], samples: int) -> ActivationStore:
        from modegap.stores import ActivationStore, PointPlan, StorePlan

        points = {
            key: PointPlan(
                point.width,
                self._rows,
                np.full(samples, point.length) if point.length else None,
                stream=point.stream,
            )
            for key, point in layout.items()
        }
        ids = [f"w{i:06d}" for i in range(samples)]
        plan = StorePlan(points, ids, {}, chunk_bytes=self._size.chunk_bytes)
        return ActivationStore.create(self._path(name), plan, exist_ok=True)


def _samples(count: int, picture: tuple[int, int]) -> list[Sample]:
    """A few pictures again and again: resizing and normalising is part of a capture, decoding files is not."""
    from PIL import Image

    from modegap.engine.datasets import Sample

    rng = np.random.default_rng(0)
    made = [
        Image.fromarray(rng.integers(0, 256, size=(*picture, 3), dtype=np.uint8)) for _ in range(PICTURES)
    ]
    return [Sample(f"i{i:06d}", f"w{3 + i % 20}", made[i % PICTURES]) for i in range(count)]


def _means(found: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(one[name] for one in found) for name in (found[0] if found else ())}
