"""Writers killed at random moments, again and again, end with the store that an undisturbed one makes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from store_material import files_of, make_store, small_plan

from modegap.stores import ActivationStore, NotCommittedError, verify
from modegap.stores.plan import Profile

CHILD = Path(__file__).with_name("child_writer.py")
PROFILES: list[Profile] = ["raw", "sharded", "archive"]
WRITERS = 3


class Writers:
    """Processes that write parts of one store."""

    def __init__(self, server: subprocess.Popen[str], path: Path, profile: Profile, n: int) -> None:
        self._server, self._path, self._profile, self._n = server, path, profile, n
        self.pids: list[int] = []

    def _ask(self, line: str) -> str:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(f"{line}\n")
        self._server.stdin.flush()
        return self._server.stdout.readline()

    def start(self, first: int, last: int) -> None:
        self.pids.append(int(self._ask(f"{self._path} {self._profile} {self._n} {first} {last}")))

    def wait(self) -> dict[int, int]:
        """Exit code of each, once all have ended."""
        ended = dict(tuple(map(int, pair.split(":"))) for pair in self._ask("wait").split())
        self.pids.clear()
        return ended

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)


@contextmanager
def writers(path: Path, profile: Profile, n: int) -> Iterator[Writers]:
    command = [sys.executable, str(CHILD)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        made = Writers(server, path, profile, n)
        yield made
        assert server.stdin is not None
        server.stdin.close()
        assert server.wait(30) == 0


def committed(path: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every committed chunk's file: a rewrite would change both."""
    found = {}
    for record in (path / "_commit").rglob("*.json"):
        array = record.parent.relative_to(path / "_commit")
        file = path / array / "c" / record.stem
        file = file / "0" if file.is_dir() else file
        if record.name != "header.json":
            status = file.stat()
            found[f"{array}/{record.stem}"] = (status.st_ino, status.st_mtime_ns)
    return found


def check_reopened(path: Path, whole: ActivationStore, rng: random.Random) -> int:
    """A store that was just opened shows whole committed samples and nothing else; return how many."""
    store = ActivationStore.open(path)
    assert verify(store, threads=1).ok
    complete = store.complete_samples()
    for point, kind in (("llm_hidden_1", "tokens"), ("adapter_output", "tokens"), ("wide", "pooled")):
        ours, theirs = store.rows(point, kind), whole.rows(point, kind)  # type: ignore[arg-type]
        done, missing = np.flatnonzero(complete).tolist(), np.flatnonzero(~complete).tolist()
        for sample in rng.sample(done, min(5, len(done))):
            np.testing.assert_array_equal(ours.sample(sample), theirs.sample(sample))
        for sample in rng.sample(missing, min(5, len(missing))):
            start, stop = ours.sample_range(sample)
            if stop > start:
                with pytest.raises(NotCommittedError, match="is incomplete"):
                    ours.sample(sample)
    return int(complete.sum())


def kill_until_done(path: Path, profile: Profile, n: int, kills: int, longest: float, seed: int) -> None:
    """Kill one of three writers, some, or all, `kills` times; each killed one is started again at once."""
    plan = small_plan(n, profile=profile)
    whole = make_store(path / "whole.zarr", plan)
    sound = files_of(whole.path)
    store = path / "killed.zarr"
    rng = random.Random(seed)
    parts = whole.parts(WRITERS)
    assert len(parts) == WRITERS
    seen: dict[str, tuple[int, int]] = {}
    stages, killed = set(), 0
    with writers(store, profile, n) as at_work:
        while killed < kills:
            for part in parts:
                at_work.start(*part)
            pids = list(at_work.pids)
            time.sleep(rng.random() * longest)
            for pid in rng.sample(pids, rng.randint(1, WRITERS)):
                at_work.kill(pid)
                killed += 1
                # The others go on meanwhile: what is read here is being written.
                if store.exists() and rng.random() < 0.5:
                    check_reopened(store, whole, rng)
                else:
                    time.sleep(rng.random() * longest / 3)
            for pid in pids:
                at_work.kill(pid)
            assert set(at_work.wait().values()) <= {0, -signal.SIGKILL}
            if not store.exists():
                continue
            now = committed(store)
            assert seen.items() <= now.items()
            seen = now
            stages.add(len(now))
            check_reopened(store, whole, rng)
        print(f"{profile}: {killed} kills, committed chunks at each {sorted(stages)}")
        total = sum(array.spec.n_chunks for array in whole.arrays)
        assert len(stages) > 1, "the kills came before or after all the work"
        assert min(stages) < total
        for part in parts:
            at_work.start(*part)
        assert set(at_work.wait().values()) == {0}
    finished = committed(store)
    assert seen.items() <= finished.items()
    assert check_reopened(store, whole, rng) == n
    assert ActivationStore.open(store).content_hash() == whole.content_hash()
    assert files_of(store) == sound


@pytest.mark.parametrize("profile", PROFILES)
def test_ten_kills_of_three_writers(tmp_path: Path, profile: Profile) -> None:
    kill_until_done(tmp_path, profile, n=500, kills=10, longest=0.15, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("profile", PROFILES)
def test_two_hundred_kills_of_three_writers(tmp_path: Path, profile: Profile) -> None:
    for seed in range(5):
        (tmp_path / str(seed)).mkdir()
        kill_until_done(tmp_path / str(seed), profile, n=1500, kills=40, longest=0.25, seed=seed)


def test_two_processes_write_their_parts_at_once(tmp_path: Path) -> None:
    plan = small_plan(60)
    whole = make_store(tmp_path / "whole.zarr", plan)
    path = tmp_path / "parts.zarr"
    with writers(path, "raw", 60) as at_work:
        for part in ActivationStore.create(path, plan).parts(2):
            at_work.start(*part)
        assert set(at_work.wait().values()) == {0}
    assert files_of(path) == files_of(whole.path)
