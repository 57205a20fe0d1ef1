"""`plan`: what it predicts is what a capture then takes, and what cannot fit is refused before it runs."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modegap.cli import main
from modegap.engine.capture import Capturer, ExtractConfig, extract, extract_moments
from modegap.engine.datasets import ListDataset
from modegap.engine.errors import EngineError
from modegap.engine.models import LoadedModel, adopt
from modegap.engine.plan import check_weights, plan
from modegap.engine.plan.memory import decoder_of, forward_bytes, rows_bytes
from modegap.stores import ActivationStore

pytest.importorskip("accelerate")
tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "tiny_models.py")))
GPU = 80 * 10**9


def config(store: Path, points: tuple[str, ...] = ("*",), **more: Any) -> ExtractConfig:
    return ExtractConfig("given", "given", str(store), points, **{"batch_size": 3, **more})


def chunk_bytes(store: ActivationStore) -> int:
    """Bytes of all chunk files without their checksums."""
    root = Path(str(store.path))
    files = [file for file in root.rglob("*") if file.is_file() and "/c/" in file.as_posix()]
    parts = {file: file.relative_to(root).parts for file in files}
    kept = [
        f
        for f in files
        if parts[f][0] in {"points", "pooled", "tokens"} and not {"start", "length"} & {*parts[f]}
    ]
    return sum(file.stat().st_size - 4 for file in kept)


@pytest.mark.parametrize("rows", ["both", "tokens", "pooled"])
@pytest.mark.parametrize("family", ["llava", "audio", "llama"])
def test_bytes_are_those_of_the_store(family: str, rows: str, tmp_path: Path) -> None:
    make, samples = tiny.FAMILIES[family]
    loaded, data = make(), ListDataset(samples(11))
    made = config(tmp_path / "s", rows=rows, chunk_bytes=2**14)
    found = plan(made, data, model=loaded, measure=False)
    store = extract(made, model=loaded, data=data)
    assert found.store_bytes == chunk_bytes(store)
    assert found.fits
    for point in found.points:
        info = store.points[point.point]
        assert (point.width, point.rows) == (info.width, info.n_rows)
    assert found.seconds is None
    with_probe = plan(replace(made, store=str(tmp_path / "t")), data, model=loaded)
    assert with_probe.store_bytes == found.store_bytes
    assert all(point.exact for point in with_probe.points)
    assert with_probe.probe is not None
    assert with_probe.probe.samples > 0
    assert with_probe.seconds is not None
    assert with_probe.seconds > 0
    assert not (tmp_path / "t").exists()
    json.dumps(with_probe.to_json(), allow_nan=False)


class Peak(TorchDispatchMode):
    """Bytes of all tensor storages made inside that are alive at once, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {
            x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)
        }
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given:
                    self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return out


def sized(width: int, inner: int, dtype: torch.dtype) -> LoadedModel:
    torch.manual_seed(0)
    given = {**tiny.TEXT, "hidden_size": width, "intermediate_size": inner, "max_position_embeddings": 1024}
    return adopt(hf.LlamaForCausalLM(hf.LlamaConfig(**given)).to(dtype).eval(), tiny.tokenizer())


@pytest.mark.parametrize(
    ("width", "inner", "dtype"),
    [
        (128, 512, torch.float32),
        (256, 256, torch.float32),
        (256, 688, torch.bfloat16),
        (64, 1024, torch.bfloat16),
    ],
)
@pytest.mark.parametrize(("samples", "length"), [(4, 100), (16, 40), (1, 300)])
def test_memory_of_a_forward(width: int, inner: int, dtype: torch.dtype, samples: int, length: int) -> None:
    """The prediction holds what was measured, and not more than twice that."""
    loaded = sized(width, inner, dtype)
    ids = torch.randint(8, 20, (samples, length))
    mask = torch.ones_like(ids)
    mask[0, : length // 3] = 0
    points = loaded.select(["llm_hidden_1", "llm_final"])
    inputs = loaded.place(
        loaded.collator.wrap({"input_ids": ids, "attention_mask": mask}, list(map(str, range(samples))))
    )
    with Capturer(loaded, points) as capturer:
        capturer(inputs)
        with Peak() as peak:
            blocks = capturer(inputs)
    assert set(blocks) == {"llm_hidden_1", "llm_final"}
    decoder = decoder_of(loaded)
    assert (decoder.width, decoder.inner, decoder.layers) == (width, inner, 3)
    predicted = forward_bytes(decoder, samples, length)
    predicted += rows_bytes(points, width, samples * length, decoder.itemsize)
    assert peak.peak <= predicted <= 2.2 * peak.peak


def big(folder: Path, **changes: Any) -> Path:
    """A decoder of 70B shape without weights: config and tokenizer only."""
    given = {
        **tiny.TEXT,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
    }
    made = hf.LlamaConfig(**{**given, **changes})
    made.architectures = ["LlamaForCausalLM"]
    made.dtype = "bfloat16"
    made.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def test_a_70b_decoder_needs_two_gpus_or_layer_streaming(tmp_path: Path) -> None:
    name = str(big(tmp_path / "m"))
    data = ListDataset(tiny.text_samples(40))
    made = replace(config(tmp_path / "s", ("llm_hidden_40", "llm_final")), model=name)
    found = plan(made, data, measure=False, gpu_bytes=GPU)
    layer = 2 * (2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28672 + 2 * 8192)
    assert found.layer_bytes == layer
    assert found.weight_bytes >= 80 * layer + 2 * 2 * 32000 * 8192
    assert found.rest_bytes < 2 * 2 * 32000 * 8192 + 10**6
    assert found.gpus == 2
    assert found.streams_on_one
    assert not found.fits
    (said,) = found.to_json()["refusals"]
    assert "138 GB" in said
    assert "device_map=auto over 2 GPUs of 80 GB; or stream_layers on one" in said
    streamed = plan(replace(made, stream_layers=True), data, measure=False, gpu_bytes=GPU)
    assert streamed.fits
    tokens = sum(len(sample.text.split()) + 1 for sample in data)
    assert streamed.work_bytes == 2 * tokens * 8192 * 2
    small = plan(replace(made, stream_layers=True), data, measure=False, gpu_bytes=3 * 10**9)
    assert not small.fits
    assert plan(made, data, measure=False, gpu_bytes=24 * 10**9).gpus in (7, 8)


def test_weights_are_refused_before_they_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = str(big(tmp_path / "m"))
    data = ListDataset(tiny.text_samples(3))
    made = replace(config(tmp_path / "s", ("llm_final",)), model=name)
    monkeypatch.setattr("modegap.engine.plan.planning.host_memory", lambda: 64 * 10**9)
    with pytest.raises(
        EngineError, match="host memory for the weights: 138 GB needed, 64 GB free; stream_layers"
    ):
        extract(made, data=data)
    monkeypatch.setattr("modegap.engine.plan.planning.gpu_memories", lambda: [GPU])
    with pytest.raises(EngineError, match=r"memory of 1 GPUs for the weights: 138 GB needed, 73\.6 GB free"):
        extract_moments(replace(made, device_map="auto", rows="stats-only"), data=data)
    with pytest.raises(EngineError, match="device_map=auto over 2 GPUs; or stream_layers"):
        check_weights(replace(made, device_map="cuda:0"))
    monkeypatch.setattr("modegap.engine.plan.planning.gpu_memories", lambda: [GPU, GPU])
    check_weights(replace(made, device_map="auto"))


def test_a_full_disk_is_refused_with_what_would_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, data = tiny.llava(), ListDataset(tiny.image_samples(30))
    made = config(tmp_path / "s", ("llm_hidden_1", "llm_final"))
    need = plan(made, data, model=loaded, measure=False).store_bytes
    for target in ("check", "planning"):
        monkeypatch.setattr(f"modegap.engine.plan.{target}.disk_free", lambda path: need // 2)
    with pytest.raises(
        EngineError, match=r"this run cannot fit: disk of .* rows=pooled .* limit=14; or rows=stats-only"
    ):
        extract(made, model=loaded, data=data)
    assert not (tmp_path / "s").exists()
    found = plan(made, data, model=loaded, measure=False)
    assert not found.fits
    assert "rows=pooled" in found.to_json()["refusals"][0]
    store = extract(replace(made, rows="pooled"), model=loaded, data=data)
    assert store.n_complete == 30
    resumed = extract(replace(made, store=str(tmp_path / "u"), preflight=False), model=loaded, data=data)
    assert resumed.n_complete == 30
    again = extract(replace(made, store=str(tmp_path / "u")), model=loaded, data=data)
    assert again.n_complete == 30, "what is on the disk already is not counted again"


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = tmp_path / "texts.txt"
    lines.write_text("\n".join(tiny.caption(i) for i in range(6)))
    name = str(big(tmp_path / "m"))
    args = [
        "plan",
        name,
        str(lines),
        "--points",
        "llm_final",
        "--measure",
        "false",
        "--gpu-memory",
        "80",
        "--json",
    ]
    assert main(args) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["gpus"], found["streams_on_one"], found["fits"]) == (2, True, False)
    assert main([*args, "--stream-layers"]) == 0
    assert json.loads(capsys.readouterr().out)["fits"]
    small = str(big(tmp_path / "n", num_hidden_layers=1, hidden_size=64, intermediate_size=64, num_attention_heads=4,
                    num_key_value_heads=4, vocab_size=40))  # fmt: skip
    assert main(["plan", small, str(lines), "--points", "llm_final", "--measure", "false", "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "llm_final" in shown
    assert "host memory" in shown
