"""A writer killed at random moments, again and again, ends with the store that an undisturbed one makes."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from store_material import files_of, make_store, small_plan

from modegap.stores import ActivationStore, verify

CHILD = Path(__file__).with_name("child_writer.py")


def start(path: Path, n: int, first: int, last: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(CHILD), str(path), *map(str, (n, first, last))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def committed(path: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every committed chunk's file: a rewrite would change both."""
    found = {}
    for record in (path / "_commit").rglob("*.json"):
        array = record.parent.relative_to(path / "_commit")
        file = path / array / "c" / record.stem
        file = file / "0" if file.is_dir() else file
        status = file.stat()
        found[f"{array}/{record.stem}"] = (status.st_ino, status.st_mtime_ns)
    return found


def kill_until_done(path: Path, n: int, kills: int, longest: float, seed: int) -> None:
    plan = small_plan(n)
    whole = make_store(path / "whole.zarr", plan)
    store = path / "killed.zarr"
    rng = random.Random(seed)
    seen: dict[str, tuple[int, int]] = {}
    stages = set()
    for _ in range(kills):
        with start(store, n, 0, n) as child:
            assert child.stdout is not None
            assert child.stderr is not None
            child.stdout.readline()
            time.sleep(rng.random() * longest)
            child.kill()
            assert "Error" not in child.stderr.read()
        now = committed(store)
        assert seen.items() <= now.items()
        seen = now
        stages.add(len(now))
        reader = ActivationStore.open(store)
        assert verify(reader, threads=1).ok
    total = sum(array.spec.n_chunks for array in whole.arrays)
    assert len(stages) > 2, "the kills came before or after all the work"
    assert min(stages) < total
    with start(store, n, 0, n) as child:
        _, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors
    finished = committed(store)
    assert seen.items() <= finished.items()
    assert ActivationStore.open(store).content_hash() == whole.content_hash()
    assert files_of(store) == files_of(whole.path)


def test_a_dozen_kills(tmp_path: Path) -> None:
    kill_until_done(tmp_path, n=250, kills=12, longest=0.12, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_and_twenty_kills(tmp_path: Path) -> None:
    for seed in range(4):
        (tmp_path / str(seed)).mkdir()
        kill_until_done(tmp_path / str(seed), n=600, kills=30, longest=0.2, seed=seed)


def test_two_processes_write_their_parts_at_once(tmp_path: Path) -> None:
    plan = small_plan(60)
    whole = make_store(tmp_path / "whole.zarr", plan)
    path = tmp_path / "parts.zarr"
    parts = ActivationStore.create(path, plan).parts(2)
    children = [start(path, 60, *part) for part in parts]
    for child in children:
        with child:
            _, errors = child.communicate(timeout=60)
            assert child.returncode == 0, errors
    assert files_of(path) == files_of(whole.path)
