"""Killed at any moment and resumed, a store ends with the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modegap.stores import ActivationStore, verify

SCRIPT = """
import os, random, runpy, signal, sys, time
import torch
torch.set_num_threads(1)  # before the forks: a thread pool does not survive one
from modegap.engine.capture import ExtractConfig, extract
from modegap.engine.datasets import ListDataset
tiny = runpy.run_path(sys.argv[1])
family, folder, seed = sys.argv[2], sys.argv[3], int(sys.argv[4])
make, samples = tiny["FAMILIES"][family]
loaded, data = make(), ListDataset(samples(36))
points = ("*",)

def run(name, pause):
    loaded.model.register_forward_pre_hook(lambda *_: time.sleep(pause))
    config = ExtractConfig("m", "d", f"{folder}/{name}", points, batch_size=3, chunk_bytes=2048)
    extract(config, model=loaded, data=data)

def child(name, pause, killed_after=None):
    pid = os.fork()
    if pid == 0:
        try:
            run(name, pause)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    if killed_after is not None:
        time.sleep(killed_after)
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]

assert child("whole", 0.0) == 0
began = time.monotonic()
assert child("timed", 0.02) == 0
took = time.monotonic() - began
rng = random.Random(seed)
kills = 0
for _ in range(20):
    status = child("killed", 0.02, rng.uniform(0.1, 0.5 if kills < 2 else 1.0) * took)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        break
    kills += 1
else:
    assert child("killed", 0.0) == 0
print("kills", kills)
"""


def files(root: Path) -> dict[str, bytes]:
    """Contents of all chunks by relative path."""
    kept = (path for path in root.rglob("*") if path.is_file() and "/c/" in path.as_posix())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in kept}


@pytest.mark.parametrize(("family", "seed"), [pytest.param("llava", 1, marks=pytest.mark.slow), ("audio", 2)])
def test_kills_leave_no_trace(family: str, seed: int, tmp_path: Path) -> None:
    tiny = Path(__file__).with_name("tiny_models.py")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tiny), family, str(tmp_path), str(seed)],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) >= 2, "killed too late to mean anything"
    whole, killed = (ActivationStore.open(tmp_path / name) for name in ("whole", "killed"))
    assert killed.n_complete == whole.n_complete == 36
    assert killed.content_hash() == whole.content_hash()
    assert verify(killed).ok
    ours, theirs = files(tmp_path / "killed"), files(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    assert len(ours) > 20
    assert all(ours[name] == theirs[name] for name in ours)
