"""Weak scaling of the covariance: passes of one GPU and of two at once, by torchrun and by Dask, and the host's limit.

One torchrun of two processes measures in turn: a pass of the first process alone over its rows while the other waits,
and a pass of both over twice as many. A process that knows of no other on its machine reads larger pieces, which suits
one but not two: such passes are timed apart, and what counts is the faster way of one GPU. What the host allows is
measured the same way: processes that read the same chunk files out of the page cache, those of one GPU, and of both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from modegap.engine.machine import PROCESSES

from .scaling_pair import GOAL_WEAK, Pair, by_torchrun, spread
from .synthetic import POINT

if TYPE_CHECKING:
    from modegap.engine.parallel import Ranks
    from modegap.stores import ActivationStore

MODES = ("precise", "exact")
"""Bound by reading the rows, and by computing on them."""
ROWS, FEW_ROWS = 1 << 20, 1 << 14
ROUNDS, EXACT_ROUNDS, PHASE_ROUNDS, HOST_ROUNDS, DASK_PASSES = 7, 5, 3, 3, 4
READERS, PIECE = 16, 1 << 20


def by_gpus(options: argparse.Namespace, env: dict[str, str], tolerance: float) -> dict[str, Any]:
    """One GPU over the first rows, two over twice as many."""
    rows = options.rows or ROWS
    store = repeated(options.dir / f"repeated-{2 * rows}x{options.width}.zarr", 2 * rows, options.width)
    rounds = options.rounds or ROUNDS
    found, wanted = _by_torchrun(store, rows, rounds, options, env)
    gap = found.pop("largest relative difference")
    dask = {}
    for count in (1, 2):
        dask[count], covariance = _by_dask(store, count, rows, options.device)
        gap = max(gap, _gap(covariance, wanted[count]))
    host = found["host"]["weak scaling"]
    keys = ("weak scaling", "weak scaling, from one by itself")
    scaling = {mode: min(found[mode][key] for key in keys) for mode in MODES}
    return {
        "rows a GPU": rows,
        "width": options.width,
        "bytes a GPU": rows * options.width * 2,
        "device": options.device,
        "torchrun": found,
        "weak scaling": {
            mode: {
                "ratio": ratio,
                "of the host's reads": ratio / host,
                "goal": GOAL_WEAK,
                "met": ratio >= GOAL_WEAK,
            }
            for mode, ratio in scaling.items()
        },
        "weak scaling of the host's reads": host,
        "dask": dask,
        "dask, times the pass without it": {
            n: dask[n]["seconds"]["median"] / found["precise"][key]["median"]
            for n, key in ((1, "one GPU"), (2, "two GPUs"))
        },
        "largest relative difference": gap,
        "agrees": gap <= tolerance,
        "met": all(ratio >= GOAL_WEAK for ratio in scaling.values()),
    }


def _by_torchrun(
    store: ActivationStore, rows: int, rounds: int, options: argparse.Namespace, env: dict[str, str]
) -> tuple[dict[str, Any], dict[int, Any]]:
    words = ["--gpus", "--share", "covariance", "--store", str(store.path), "--rows", str(rows)]
    words += ["--rounds", str(rounds), "--device", options.device]
    kept = by_torchrun(words, options.dir / "share.pt", env)
    return kept["found"], kept["covariance"]


def _by_dask(store: ActivationStore, count: int, rows: int, device: str) -> tuple[dict[str, Any], Any]:
    """Passes of `count` workers, the first apart: it compiles kernels and pins memory."""
    from modegap.engine.cluster import connect
    from modegap.engine.moments import Moments
    from modegap.engine.reduce import reduce

    times = []
    begin = time.perf_counter()
    with connect(f"local:{count}") as cluster:
        cluster.ready()
        started = time.perf_counter() - begin
        for _ in range(1 + DASK_PASSES):
            begin = time.perf_counter()
            found = reduce(store, POINT, Moments(), stop=count * rows, device=device, cluster=cluster)
            times.append(time.perf_counter() - begin)
    said = {"start of workers": started, "first pass": times[0], "seconds": spread(times[1:])}
    return said, found.covariance.cpu()


def share(options: argparse.Namespace, ranks: Ranks) -> dict[str, Any]:
    """What each of torchrun's two processes does."""
    from modegap.stores import ActivationStore

    rows, rounds = options.rows, options.rounds
    passes = _Passes(ActivationStore.open(options.store), options.device, ranks)
    covariance, gap = passes.agreed(rows)
    found = {
        "precise": passes.scaling(rows, rounds, "precise", apart=True),
        "exact": passes.scaling(rows, min(rounds, EXACT_ROUNDS), "exact", apart=True),
        "parts of a pass": {mode: passes.phases(rows, min(rounds, PHASE_ROUNDS), mode) for mode in MODES},
        f"few rows, {min(rows, FEW_ROWS):,} a GPU": passes.scaling(min(rows, FEW_ROWS), rounds, "precise"),
        "host": passes.host(min(rounds, HOST_ROUNDS)),
        "largest relative difference": gap,
    }
    return {"covariance": covariance, "found": found}


class _Passes(Pair):
    """Passes over a store."""

    def __init__(self, store: ActivationStore, device: str, ranks: Ranks) -> None:
        super().__init__(device, ranks)
        self._store = store

    def _one(self, rows: int, mode: Any = "precise") -> Any:
        from modegap.engine.moments import Moments
        from modegap.engine.reduce import reduce

        return reduce(self._store, POINT, Moments(mode), stop=rows, device=self.place)

    def _two(self, rows: int, mode: Any = "precise", ended: Callable[[str], None] | None = None) -> Any:
        from modegap.engine.moments import Moments
        from modegap.engine.parallel import reduce

        stop = self.ranks.world * rows
        return reduce(
            self._store, POINT, Moments(mode), stop=stop, device=self.device, ranks=self.ranks, ended=ended
        )

    def agreed(self, rows: int) -> tuple[dict[int, Any], float]:
        """Covariances by one process over its rows and over all, and how far shared ones of each mode are from that."""
        world = self.ranks.world
        wanted = {n: self._one(n * rows).covariance.cpu() for n in (1, world)}
        exact = self._one(world * rows, "exact").covariance.cpu()
        pairs = [(self._two(rows), wanted[world]), (self._two(rows, "exact"), exact)]
        return wanted, max(_gap(found.covariance.cpu(), whole) for found, whole in pairs)

    def scaling(self, rows: int, rounds: int, mode: str, *, apart: bool = False) -> dict[str, Any]:
        """Seconds of a pass, in turn by one process, by the other, and by both; `apart` also of one by itself."""
        one, other, two = self.in_turn(rounds, lambda: self._one(rows, mode), lambda: self._two(rows, mode))
        said: dict[str, Any] = {
            "one GPU": spread(one),
            "the other one": spread(other),
            "two GPUs": spread(two),
        }
        said["weak scaling"] = self.weak(one, two)
        if apart:
            itself = self._by_itself(rows, rounds, mode)
            said["one GPU, a process by itself"] = spread(itself)
            said["weak scaling, from one by itself"] = self.weak(itself, two)
        return said

    def _by_itself(self, rows: int, rounds: int, mode: str) -> list[float]:
        """Seconds of passes of the first process as if it were the only one of its run on the machine."""
        times = []
        before = os.environ.get(PROCESSES)
        os.environ[PROCESSES] = "1"
        try:
            for _ in range(1 + rounds):
                self.meet()
                times.append(self.seconds(lambda: self._one(rows, mode)) if self.ranks.first else 0.0)
        finally:
            if before is None:
                del os.environ[PROCESSES]
            else:
                os.environ[PROCESSES] = before
        return self.slowest(times[1:])

    def phases(self, rows: int, rounds: int, mode: str) -> dict[str, dict[str, Any]]:
        """Seconds of each part of a pass, the GPU waited for at its end, of the slower process.

        Of the exchange those of the process that came to it last: the other one's are spent waiting for it.
        """
        parts: dict[str, dict[str, list[float]]] = {"one GPU": {}, "two GPUs": {}}
        last = 0.0

        def ended(name: str) -> None:
            nonlocal last
            self.sync()
            now = time.perf_counter()
            took.setdefault(name, []).append(now - last)
            last = now

        for _ in range(rounds):
            for key, take in (("one GPU", self._one_by_parts), ("two GPUs", self._two)):
                took = parts[key]
                self.meet()
                last = time.perf_counter()
                take(rows, mode, ended)
        return {
            key: {name: spread(self._over(name, t)) for name, t in of.items()} for key, of in parts.items()
        }

    def _over(self, name: str, times: Sequence[float]) -> list[float]:
        if name != "exchange":
            return self.slowest(times)
        return [-t for t in self.slowest([-t for t in times])]

    def _one_by_parts(self, rows: int, mode: Any, ended: Callable[[str], None]) -> None:
        """What `engine.reduce.reduce` does, by the first process; the other has nothing to do in these parts."""
        from modegap.engine.moments import Moments
        from modegap.engine.stream import stream

        if not self.ranks.first:
            for name in ("settle", "rows", "finalize"):
                ended(name)
            return
        moments, name = Moments(mode), "settle"
        batches = cast("Any", stream(self._store, POINT, stop=rows, device=self.place))
        with closing(batches):
            for batch in batches:
                if name == "settle":
                    ended(name)  # here the first rows are there, and no more
                    name = "rows"
                moments.update(batch)
        ended("rows")
        moments.finalize()
        self._store.content_hash()
        ended("finalize")

    def host(self, rounds: int) -> dict[str, Any]:
        """GB/s at which `READERS` processes a GPU read its chunks into a little memory each.

        Threads would say less: 16 of them get 20 to 27 GB/s for the interpreter's lock.
        """
        rank, world = self.ranks.rank, self.ranks.world
        files = sorted(Path(str(self._store.path)).glob(f"points/{POINT}/rows/c/*/0"))
        files = files[rank::world] or files  # a small store is one file
        parts = [files[i::READERS] for i in range(READERS)]
        with ProcessPoolExecutor(READERS, get_context("spawn")) as pool:
            nbytes = sum(pool.map(_read, parts))
            one, _, two = self.in_turn(rounds, *[lambda: list(pool.map(_read, parts))] * 2)
        return {
            "processes a GPU": READERS,
            "of one GPU, GB/s": nbytes / statistics.median(one) / 1e9,
            "of two GPUs, GB/s": world * nbytes / statistics.median(two) / 1e9,
            "weak scaling": self.weak(one, two),
        }


def _read(files: Sequence[Path]) -> int:
    """Bytes of the files, each read in pieces into the same memory."""
    buffer, total = np.empty(PIECE, dtype=np.uint8), 0
    for file in files:
        with file.open("rb", buffering=0) as opened:
            at = 0
            while count := os.preadv(opened.fileno(), [buffer], at):
                at += count
        total += at
    return total


def repeated(path: Path, rows: int, width: int) -> ActivationStore:
    """A store of one random sample over and over: written as fast as the disk takes it."""
    from modegap.stores import ActivationStore, PointPlan, SampleRows, StorePlan

    count = 2048
    lengths = np.diff([*range(0, rows, count), rows]).astype(np.int64)
    plan = StorePlan(
        points={POINT: PointPlan(width, "tokens", lengths, stream="adapter")},
        sample_ids=[f"{i:06d}" for i in range(len(lengths))],
        labels={},
        provenance={"generator": "bench.scaling"},
    )
    store = ActivationStore.create(path, plan, exist_ok=True)
    values = np.random.default_rng(0).standard_normal((count, width), dtype=np.float32).astype(np.float16)
    with store.writer() as writer:
        for sample in writer.todo.tolist():
            writer.put(sample, {POINT: SampleRows(tokens=values[: lengths[sample]])})
    return ActivationStore.open(path)


def _gap(found: Any, wanted: Any) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())
