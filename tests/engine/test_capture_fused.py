"""Captures with fused layers: in force where rows are made, out of it where they are checked, settled in the store.

The kernels need a GPU; here their host paths stand in, and every weight counts as one that a kernel serves.
"""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from modegap.engine.capture import ExtractConfig, extract, extract_moments, extract_replayed, replayed
from modegap.engine.capture import parity as parity_module
from modegap.engine.capture.job import Job
from modegap.engine.datasets import ListDataset
from modegap.engine.errors import EngineError
from modegap.engine.models import fused, load
from modegap.engine.replay import open_source
from modegap.stores import ActivationStore, StoreError, verify

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tiny_models.py"))))
POINTS = ("adapter_output", "llm_hidden_1", "llm_final")
LAYERS, COUNT, BATCH = 3, 9, 3


class Seen:
    """What ran: gated MLPs of batches through the kernel's host path, and forwards of the parity check."""

    fused = plain = fused_in_check = 0


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    made = Seen()
    swiglu, forward = fused.swiglu, parity_module._plain_forward

    def counted(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        made.fused += gate.dim() == 3  # the agreement check's are matrices
        return swiglu(gate, up)

    def checked(*args: Any) -> Any:
        made.plain += 1
        before = made.fused
        found = forward(*args)
        made.fused_in_check += made.fused - before
        return found

    monkeypatch.setattr(fused, "swiglu", counted)
    monkeypatch.setattr(parity_module, "_plain_forward", checked)
    monkeypatch.setattr(
        fused, "_pays", lambda tensor: tensor.is_floating_point() and tensor.device.type != "meta"
    )
    yield made
    assert not fused._replaced


def rounding_twice(model: Any) -> Any:
    """In bf16, with norms whose weights make the model's own code round where torch's norm does not."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight"):
            weight.data.uniform_(0.5, 1.5, generator=generator)
    return model.bfloat16()


@pytest.fixture(scope="module")
def material() -> Any:
    loaded = tiny.llava()
    rounding_twice(loaded.model)
    return loaded, ListDataset(tiny.image_samples(COUNT))


def config(store: Path, **more: Any) -> ExtractConfig:
    return ExtractConfig("m", "d", str(store), POINTS, **{"batch_size": BATCH, **more})


def test_rows_are_made_fused_and_checked_plain(material: Any, tmp_path: Path, seen: Seen) -> None:
    loaded, data = material
    store = extract(config(tmp_path / "a"), model=loaded, data=data)
    assert store.provenance["fused"] is True
    assert seen.plain == 2 * BATCH  # against the model's own code in a batch, then against the fused batch
    assert seen.fused_in_check == 0
    assert seen.fused == (COUNT // BATCH + 1) * LAYERS  # the first batch runs twice, once to be checked
    assert verify(store).ok
    gaps = store.provenance["parity"]
    assert 0 < gaps["llm_final"]["max_rel"] <= gaps["llm_final"]["tolerance"] / 2
    seen.fused = 0
    plain = extract(config(tmp_path / "b", fused=False), model=loaded, data=data)
    assert plain.provenance["fused"] is False
    assert seen.fused == 0
    ours, theirs = (
        torch.from_numpy(s.rows("llm_final", "pooled").read(0, COUNT)).double() for s in (store, plain)
    )
    away = (ours - theirs).norm(dim=1) / theirs.norm(dim=1)
    assert 0 < float(away.max()) < gaps["llm_final"]["tolerance"]
    assert "forward" not in loaded.model.get_submodule(loaded.structure.norm).__dict__


def test_rows_that_fused_layers_spoil_are_refused(
    material: Any, tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, data = material
    rotary = fused.rotary
    # right on the few positions and heads that are looked at before a layer is replaced
    wrong = lambda q, *more: rotary(q * 2 if q.shape[2] > 5 else q, *more)  # noqa: E731
    monkeypatch.setattr(fused, "rotary", wrong)
    with pytest.raises(EngineError, match=r"parity check failed at llm_hidden_1 .*capture with fused=False"):
        extract(config(tmp_path / "a"), model=loaded, data=data)
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr(fused, "rotary", rotary)
    handle = loaded.model.get_submodule(loaded.structure.decoder).register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "inputs_embeds": kwargs["inputs_embeds"].flip(0)}),
        with_kwargs=True,
    )
    with pytest.raises(EngineError, match="name the module of this point"):  # not the fused layers' doing
        extract(config(tmp_path / "a"), model=loaded, data=data)
    handle.remove()


def test_statistics_too(material: Any, tmp_path: Path, seen: Seen) -> None:
    loaded, data = material
    made = config(tmp_path / "a", rows="stats-only")
    store = extract_moments(made, model=loaded, data=data)
    assert store.provenance["fused"] is True
    assert seen.fused == (COUNT // BATCH + 1) * LAYERS
    with pytest.raises(EngineError, match="begun with fused=True"):
        extract_moments(replace(made, fused=False), model=loaded, data=data)


def interrupted(made: ExtractConfig, loaded: Any, data: Any, forwards: int) -> None:
    """Runs `extract` until the model is asked once too often."""
    left = [forwards]

    def stop(*_: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise ConnectionAbortedError

    handle = loaded.model.register_forward_pre_hook(stop)
    try:
        with pytest.raises(ConnectionAbortedError):
            extract(made, model=loaded, data=data)
    finally:
        handle.remove()


# one batch to be checked, fused and plain, each with its samples alone, then two batches that are stored
_FORWARDS = 2 * (1 + BATCH) + 2


def test_a_run_goes_on_as_it_was_begun(material: Any, tmp_path: Path, seen: Seen) -> None:
    loaded, data = material
    whole = extract(config(tmp_path / "whole", chunk_bytes=2048), model=loaded, data=data)
    made = config(tmp_path / "cut", chunk_bytes=2048)
    interrupted(made, loaded, data, _FORWARDS)
    assert ActivationStore.open(tmp_path / "cut").n_complete < COUNT
    with pytest.raises(EngineError, match=r"begun with fused=True, this asks for fused=False.*another store"):
        extract(replace(made, fused=False), model=loaded, data=data)
    assert extract(made, model=loaded, data=data).content_hash() == whole.content_hash()


def test_a_store_of_before_there_were_fused_layers_goes_on_without(
    material: Any, tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, data = material
    settled = Job.settled

    def older(job: Job) -> dict[str, Any]:
        return {name: value for name, value in settled(job).items() if name != "fused"}

    with monkeypatch.context() as past:
        past.setattr(Job, "settled", older)
        whole = extract(config(tmp_path / "whole", fused=False, chunk_bytes=2048), model=loaded, data=data)
        interrupted(config(tmp_path / "cut", fused=False, chunk_bytes=2048), loaded, data, 1 + BATCH + 2)
    assert "fused" not in whole.provenance
    seen.fused = 0
    store = extract(config(tmp_path / "cut", chunk_bytes=2048), model=loaded, data=data)
    assert seen.fused == 0
    assert "fused" not in store.provenance
    assert store.content_hash() == whole.content_hash()
    with pytest.raises(StoreError):  # what else belongs to the rows must still agree
        extract(config(tmp_path / "cut", chunk_bytes=2048, pool="modality"), model=loaded, data=data)


def test_capture_by_replay(material: Any, tmp_path: Path, seen: Seen) -> None:
    loaded, data = material
    first = extract(replace(config(tmp_path / "a"), points=("adapter_output",)), model=loaded, data=data)
    source = open_source(loaded, first, target="paper")
    seen.fused = 0
    store = extract_replayed(loaded, source, tmp_path / "b", ["llm_final"], batch_size=BATCH)
    assert store.provenance["fused"] is True
    assert seen.fused == COUNT // BATCH * LAYERS
    assert extract_replayed(loaded, source, tmp_path / "b", ["llm_final"]).plan_hash == store.plan_hash

    class StopError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise StopError

    with pytest.MonkeyPatch.context() as past:  # a run of before there were fused layers
        past.setattr(replayed, "fused_layers", lambda model: nullcontext())
        made = replayed._plan
        past.setattr(replayed, "_plan", lambda *args: made(*args[:-1], {}))
        with pytest.raises(StopError):
            extract_replayed(loaded, source, tmp_path / "c", ["llm_final"], batch_size=BATCH, progress=stop)
    seen.fused = 0
    older = extract_replayed(loaded, source, tmp_path / "c", ["llm_final"], batch_size=BATCH)
    assert "fused" not in older.provenance
    assert older.n_complete == COUNT
    assert seen.fused == 0


def test_streamed_layers_are_fused_and_checked_plain(tmp_path: Path, seen: Seen) -> None:
    pytest.importorskip("accelerate")
    whole = tiny.text("llama")
    rounding_twice(whole.model).save_pretrained(tmp_path / "m")
    whole.processor.save_pretrained(tmp_path / "m")
    data = ListDataset(tiny.text_samples(COUNT))
    made = ExtractConfig(
        str(tmp_path / "m"), "given", str(tmp_path / "a"), ("llm_*",), batch_size=BATCH, stream_layers=True
    )
    store = extract(made, data=data)
    assert store.provenance["fused"] is True
    assert seen.fused == COUNT // BATCH * LAYERS  # the samples that run alone are none of them
    assert store.provenance["parity"]["llm_final"]["max_rel"] > 0
    expected = extract(
        replace(made, store=str(tmp_path / "b"), stream_layers=False), model=load(tmp_path / "m"), data=data
    )
    for point in ("llm_hidden_1", "llm_final"):
        ours, theirs = (s.rows(point, "pooled").read(0, COUNT) for s in (store, expected))
        assert (ours == theirs).all()
    seen.fused = 0
    extract(replace(made, store=str(tmp_path / "c"), fused=False), data=data)
    assert seen.fused == 0
