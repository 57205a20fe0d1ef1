"""Layer streaming: 70B-shaped layers from safetensors through one GPU, against the pinned transfer rate."""

from __future__ import annotations

import json
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modegap.engine.capture import ExtractConfig, extract
from modegap.engine.capture.parity import tolerance
from modegap.engine.datasets import ListDataset, Sample
from modegap.engine.models import load

from .common import Watch, device, pinned_rate, relative, texts, tokenizer

LAYERS = 6
SHAPE = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
}
SMALL = {
    **SHAPE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def write_checkpoint(folder: Path, shape: dict[str, int], layers: int, dtype: torch.dtype) -> int:
    """Random weights, a file a layer, written from the device; bytes of a layer."""
    import transformers as hf
    from safetensors.torch import save_file

    config = hf.LlamaConfig(**shape, num_hidden_layers=layers, pad_token_id=0, bos_token_id=2, eos_token_id=3)
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = str(dtype).removeprefix("torch.")
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    d, f = shape["hidden_size"], shape["intermediate_size"]
    kv = d // shape["num_attention_heads"] * shape["num_key_value_heads"]
    inner = {
        "self_attn.q_proj": (d, d),
        "self_attn.k_proj": (kv, d),
        "self_attn.v_proj": (kv, d),
        "self_attn.o_proj": (d, d),
        "mlp.gate_proj": (f, d),
        "mlp.up_proj": (f, d),
        "mlp.down_proj": (d, f),
    }
    generator = torch.Generator(device=device()).manual_seed(0)

    def random(*size: int) -> torch.Tensor:
        made = torch.randn(size, generator=generator, device=device(), dtype=dtype)
        return (made * d**-0.5).cpu()

    placed: dict[str, str] = {}

    def write(name: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, folder / name, metadata={"format": "pt"})
        placed.update(dict.fromkeys(tensors, name))

    ones = torch.ones(d, dtype=dtype)
    size = 0
    for k in range(layers):
        base = f"model.layers.{k}"
        tensors = {f"{base}.{name}.weight": random(*shape_) for name, shape_ in inner.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{base}.{norm}.weight"] = ones.clone()
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        write(f"layer-{k:05d}.safetensors", tensors)
    rest = {
        "model.embed_tokens.weight": random(shape["vocab_size"], d) * d**0.5,
        "model.norm.weight": ones.clone(),
        "lm_head.weight": random(shape["vocab_size"], d),
    }
    write("rest.safetensors", rest)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return size


def layer_seconds(watch: Watch, layers: int) -> list[float]:
    """Seconds from the begin of each layer to that of the next; the first one waits for its weights."""
    begins = [watch.begins[f"layer {k + 1} of {layers}"] for k in range(layers)]
    return [b - a for a, b in pairwise(begins)]


def run(folder: Path, *, small: bool) -> dict[str, Any]:
    shape, layers = (SMALL, 4) if small else (SHAPE, LAYERS)
    dtype = torch.float32 if small else torch.bfloat16
    begin = time.perf_counter()
    layer_bytes = write_checkpoint(folder / "model", shape, layers, dtype)
    written = time.perf_counter() - begin
    rate = pinned_rate(8 if small else 1024)
    found: dict[str, Any] = {
        "layers": layers,
        "layer_gb": layer_bytes / 1e9,
        "write_s": written,
        "pinned_gb_per_s": None if rate is None else rate / 1e9,
        "floor_ms": None if rate is None else layer_bytes / rate * 1e3,
    }
    name = str(folder / "model")
    points = ("llm_hidden_2", "llm_final")
    sizes = (
        {"few": (4, 20, 60), "many": (12, 40, 60)}
        if small
        else {"few": (4, 400, 512), "many": (144, 400, 512)}
    )
    for label, (count, low, high) in sizes.items():
        data = ListDataset([Sample(f"t{i}", text) for i, text in enumerate(texts(count, low, high))])
        watch = Watch()
        config = ExtractConfig(
            name, "d", str(folder / f"{label}.zarr"), points, rows="both", stream_layers=True
        )
        store = extract(config, data=data, progress=watch)
        seconds = layer_seconds(watch, layers)
        tokens = int(store.points["llm_final"].n_rows)
        found[f"{label}_tokens"] = tokens
        found[f"{label}_layer_ms"] = statistics.median(seconds) * 1e3
        found[f"{label}_layers_ms"] = [one * 1e3 for one in seconds]
        if rate is not None:
            found[f"{label}_over_floor"] = found[f"{label}_layer_ms"] / found["floor_ms"]
    whole = load(name, device_map={"": 0} if torch.cuda.is_available() else None)
    config = ExtractConfig(name, "d", str(folder / "whole.zarr"), points, rows="both")
    watch = Watch()
    expected = extract(config, model=whole, data=data, progress=watch)
    found["whole_model_capture_s"] = watch.seconds("capture")
    gap, same = 0.0, True
    for point in points:
        ours, theirs = store.rows(point), expected.rows(point)
        for start in range(0, ours.shape[0], 8192):
            stop = min(start + 8192, ours.shape[0])
            a, b = ours.read(start, stop), theirs.read(start, stop)
            same = same and bool(np.array_equal(a, b))
            gap = max(gap, relative(a, b))
    found |= {"gap_to_whole_model": gap, "same_bits_as_whole_model": same}
    found["checks"] = {"rows equal the whole model's within rounding": gap < tolerance(whole, "float16")}
    return found
