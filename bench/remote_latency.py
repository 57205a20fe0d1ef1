"""What reading ahead does for a store behind a network: `python -m bench.remote_latency [--out DIR]`.

A store in fsspec's memory file system, with every request delayed: a stand-in for an object store whose
bandwidth does not bind. Each way of reading takes all rows of a point, chunk after chunk; what comes must be
what was stored before any time counts. `one after another` switches reading ahead off.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import fsspec
import numpy as np

from modegap.engine.stream import stream
from modegap.stores import ActivationStore, PointPlan, SampleRows, StorePlan, ahead

from .environment import environment

URL = "memory://modegap-bench/s.zarr"
WIDTH, SAMPLE_ROWS = 1024, 512


class Delay:
    """Delays requests; counts the most that were under way at once."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.now = self.most = 0
        self.lock = threading.Lock()

    def around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            with self.lock:
                self.now += 1
                self.most = max(self.most, self.now)
            time.sleep(self.seconds)
            try:
                return original(*given, **more)
            finally:
                with self.lock:
                    self.now -= 1

        return call


@contextmanager
def delayed(seconds: float) -> Iterator[Delay]:
    system = fsspec.filesystem("memory")
    delay = Delay(seconds)
    whole, ranges = system.cat_file, system.cat_ranges
    # Ranges are read from the files themselves, not by requests that would be delayed twice.
    system.cat_ranges = delay.around(
        lambda paths, starts, ends, **_: [whole(*at) for at in zip(paths, starts, ends, strict=True)]
    )
    system.cat_file = delay.around(whole)
    try:
        yield delay
    finally:
        del system.cat_file, system.cat_ranges
        assert system.cat_ranges == ranges


@contextmanager
def nothing_ahead() -> Iterator[None]:
    original = ahead.ReadAhead._plan
    ahead.ReadAhead._plan = lambda self, block, *, follows: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        ahead.ReadAhead._plan = original  # type: ignore[method-assign]


def make(chunks: int, profile: str) -> np.ndarray:
    """A store of `chunks` chunks of 1 MiB; returns its rows."""
    lengths = np.full(chunks, SAMPLE_ROWS)
    point = PointPlan(WIDTH, "tokens", lengths)
    ids = [str(k) for k in range(chunks)]
    plan = StorePlan({"p": point}, ids, chunk_bytes=2**20, profile=profile, shard_bytes=2**23)  # type: ignore[arg-type]
    rows = np.random.default_rng(0).standard_normal((chunks * SAMPLE_ROWS, WIDTH)).astype(np.float16)
    store = ActivationStore.create(URL, plan)
    with store.writer() as writer:
        for k in range(chunks):
            writer.put(k, {"p": SampleRows(rows[k * SAMPLE_ROWS : (k + 1) * SAMPLE_ROWS])})
    return rows


def chunk_by_chunk(store: ActivationStore) -> Iterator[np.ndarray]:
    rows = store.rows("p")
    for k in range(rows.n_chunks):
        yield rows.chunk(k)[1]


def streamed(store: ActivationStore) -> Iterator[np.ndarray]:
    for batch in stream(store, "p"):
        yield batch.x.numpy()


def timed(way: Callable[[ActivationStore], Iterator[np.ndarray]], seconds: float) -> tuple[float, int]:
    """Seconds for all rows of a store whose commit records are known, and requests at once."""
    store = ActivationStore.open(URL)
    store.content_hash()
    _ = store.rows("p"), store.samples
    with delayed(seconds) as delay:
        begin = time.perf_counter()
        sum(len(piece) for piece in way(store))
        return time.perf_counter() - begin, delay.most


def run(chunks: int, seconds: float, profile: str, rounds: int = 3) -> dict[str, Any]:
    """Medians of `rounds`, interleaved."""
    wanted = make(chunks, profile)
    ways = {"one after another": chunk_by_chunk, "read ahead": chunk_by_chunk, "stream": streamed}
    times: dict[str, list[float]] = {name: [] for name in ways}
    most: dict[str, int] = {}
    try:
        for name, way in ways.items():
            got = np.concatenate([piece.copy() for piece in way(ActivationStore.open(URL))])
            assert np.array_equal(got, wanted), f"{name} reads something else"
        for _ in range(rounds):
            for name, way in ways.items():
                with nothing_ahead() if name == "one after another" else nullcontext():
                    taken, most[name] = timed(way, seconds)
                times[name].append(taken)
    finally:
        fsspec.filesystem("memory").rm("/modegap-bench", recursive=True)
    found = {name: statistics.median(taken) for name, taken in times.items()}
    return {
        "profile": profile,
        "chunks": chunks,
        "chunk_bytes": 2**20,
        "latency_s": seconds,
        "seconds": found,
        "requests_at_once": most,
        "speedup": {name: found["one after another"] / value for name, value in found.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for remote_latency.json")
    parser.add_argument("--chunks", type=int, default=64)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds a request")
    options = parser.parse_args()
    results = [run(options.chunks, options.latency, profile) for profile in ("raw", "sharded")]
    report = {"environment": environment("cpu"), "results": results}
    print(json.dumps(report, indent=1))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "remote_latency.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
