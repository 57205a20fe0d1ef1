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

    def _ask(self, line: str) -> str:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(f"{line}\n")
        self._server.stdin.flush()
        return self._server.stdout.readline()

    def start(self, first: int, last: int) -> int:
        return int(self._ask(f"{self._path} {self._profile} {self._n} {first} {last}"))

    def wait(self) -> dict[int, int]:
        """Exit code of each, once all have ended."""
        pairs = (pair.split(":") for pair in self._ask("wait").split())
        return {int(pid): int(code) for pid, code in pairs}

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


def check_reopened(path: Path, whole: ActivationStore, rng: random.Random) -> np.ndarray:
    """A store that was just opened shows whole committed samples and nothing else; return which."""
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
    return complete


def kill_until_done(store: Path, whole: ActivationStore, longest: float, rng: random.Random) -> int:
    """Write a store with three processes, killing one, two or all at random moments, until it is complete.

    Returns how many were killed before their part was done. Each is started again at the next round.
    """
    n = len(whole.samples)
    parts = whole.parts(WRITERS)
    assert len(parts) == WRITERS
    seen: dict[str, tuple[int, int]] = {}
    complete = np.zeros(n, dtype=bool)
    kills = 0
    with writers(store, whole.header.profile, n) as at_work:  # type: ignore[arg-type]
        while not complete.all():
            busy = {at_work.start(*part) for part in parts if not complete[slice(*part)].all()}
            time.sleep(rng.random() * longest)
            for pid in rng.sample(sorted(busy), rng.randint(1, len(busy))):
                at_work.kill(pid)
                # The others go on meanwhile: what is read here is being written.
                if store.exists() and rng.random() < 0.3:
                    check_reopened(store, whole, rng)
            for pid in busy:
                at_work.kill(pid)
            ended = at_work.wait()
            assert set(ended.values()) <= {0, -signal.SIGKILL}
            kills += sum(code != 0 for code in ended.values())
            if store.exists():
                now = committed(store)
                assert seen.items() <= now.items()
                # On a busy machine they may be killed before they write; they get more time then.
                longest *= 1.0 if len(now) > len(seen) else 1.5
                seen = now
                complete = check_reopened(store, whole, rng)
    assert ActivationStore.open(store).content_hash() == whole.content_hash()
    sound = files_of(whole.path)
    # The last kill may have come between the last commit and the end of the writer.
    found = {name: data for name, data in files_of(store).items() if not name.startswith("_owner/")}
    assert found == sound
    return kills


def kill_many(path: Path, profile: Profile, n: int, kills: int, longest: float) -> None:
    """Write stores, one after another, until so many writers have been killed."""
    whole = make_store(path / "whole.zarr", small_plan(n, profile=profile))
    done = stores = 0
    while done < kills:
        done += kill_until_done(path / f"{stores}.zarr", whole, longest, random.Random(stores))
        stores += 1
    print(f"{profile}: {done} writers killed, {stores} stores completed")


@pytest.mark.parametrize("profile", PROFILES)
def test_ten_kills_of_three_writers(tmp_path: Path, profile: Profile) -> None:
    kill_many(tmp_path, profile, n=240, kills=10, longest=0.08)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("profile", PROFILES)
def test_two_hundred_kills_of_three_writers(tmp_path: Path, profile: Profile) -> None:
    kill_many(tmp_path, profile, n=1200, kills=200, longest=0.1)


def test_two_processes_write_their_parts_at_once(tmp_path: Path) -> None:
    plan = small_plan(60)
    whole = make_store(tmp_path / "whole.zarr", plan)
    path = tmp_path / "parts.zarr"
    with writers(path, "raw", 60) as at_work:
        for part in ActivationStore.create(path, plan).parts(2):
            at_work.start(*part)
        assert set(at_work.wait().values()) == {0}
    assert files_of(path) == files_of(whole.path)
