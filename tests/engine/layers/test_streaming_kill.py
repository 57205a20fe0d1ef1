"""Killed at any moment and started again, layer streaming ends with the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modegap.stores import ActivationStore, verify

pytest.importorskip("accelerate")

SCRIPT = """
import os, random, runpy, signal, sys, time
import torch, transformers
torch.set_num_threads(1)  # before the forks: a thread pool does not survive one
from modegap.engine.capture import ExtractConfig, extract
from modegap.engine.datasets import ListDataset
tiny = runpy.run_path(sys.argv[1])
folder = sys.argv[2]
torch.manual_seed(0)
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**tiny["TEXT"])).eval()
model.save_pretrained(f"{folder}/m", max_shard_size="60KB")
tiny["tokenizer"]().save_pretrained(f"{folder}/m")
data = ListDataset(tiny["text_samples"](24))

def run(name, pause):
    config = ExtractConfig(f"{folder}/m", "d", f"{folder}/{name}", ("*",), batch_size=3, chunk_bytes=2048,
                           stream_layers=True)
    extract(config, data=data, progress=lambda *_: time.sleep(pause))

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
assert child("timed", 0.01) == 0
took = time.monotonic() - began
rng = random.Random(3)
kills = 0
for _ in range(20):
    status = child("killed", 0.01, rng.uniform(0.1, 0.5 if kills < 2 else 1.0) * took)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        break
    kills += 1
else:
    assert child("killed", 0.0) == 0
print("kills", kills)
"""


def test_kills_leave_no_trace(tmp_path: Path) -> None:
    tiny = Path(__file__).parents[1] / "tiny_models.py"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tiny), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=250,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) >= 1, "never killed"
    whole, killed = (ActivationStore.open(tmp_path / name) for name in ("whole", "killed"))
    assert killed.n_complete == whole.n_complete == 24
    assert killed.content_hash() == whole.content_hash()
    assert verify(killed).ok
    assert not (tmp_path / "killed.work").exists()
