"""A 70B-shaped decoder spread over the GPUs by device_map: capture, statistics, alignment."""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modegap.analyses.align import align
from modegap.engine.capture import ExtractConfig, extract, extract_moments
from modegap.engine.datasets import ListDataset, Sample
from modegap.engine.models import LoadedModel, adopt
from modegap.engine.moments import Moments
from modegap.engine.plan.batching import batch_bytes
from modegap.engine.plan.memory import decoder_of, weight_bytes
from modegap.engine.reduce import reduce

from .common import Watch, device, texts, tokenizer
from .streaming import SHAPE, SMALL

LAYERS = 80


def build(small: bool) -> LoadedModel:
    """Random bf16 weights made where they stay; every GPU gets an equal run of layers."""
    import transformers as hf
    from accelerate import dispatch_model, init_empty_weights

    layers = 6 if small else LAYERS
    config = hf.LlamaConfig(
        **(SMALL if small else SHAPE),
        num_hidden_layers=layers,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    dtype = torch.float32 if small else torch.bfloat16
    with init_empty_weights(include_buffers=False):
        model = hf.LlamaForCausalLM._from_config(config, dtype=dtype).eval()
    gpus = torch.cuda.device_count()
    places: list[Any] = list(range(gpus)) if gpus else ["cpu"]
    each = -(-layers // len(places))
    device_map = {
        "model.embed_tokens": places[0],
        "model.rotary_emb": places[0],
        **{f"model.layers.{k}": places[k // each] for k in range(layers)},
        "model.norm": places[-1],
        "lm_head": places[-1],
    }
    scale = config.hidden_size**-0.5
    for path, module in list(model.named_modules()):
        for leaf, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            full = f"{path}.{leaf}"
            where = next(place for prefix, place in device_map.items() if full.startswith(f"{prefix}."))
            made = torch.empty(parameter.shape, dtype=dtype, device=where)
            made = made.fill_(1) if parameter.dim() == 1 else made.normal_(0, scale)
            module._parameters[leaf] = torch.nn.Parameter(made, requires_grad=False)
    if gpus:
        model = dispatch_model(model, device_map=device_map)
    return adopt(model, tokenizer(), name="70b-shape")


def run(folder: Path, *, small: bool) -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    begin = time.perf_counter()
    loaded = build(small)
    built = time.perf_counter() - begin
    weights = weight_bytes(loaded.model)
    middle = "llm_hidden_3" if small else "llm_hidden_40"
    points = (middle, "llm_final")
    count = 24 if small else 160
    low, high = (20, 40) if small else (250, 300)
    laws = [
        ListDataset([Sample(f"t{i}", text) for i, text in enumerate(texts(count, low, high, seed))])
        for seed in (0, 1)
    ]
    if cuda:
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)
    held = [torch.cuda.memory_allocated(i) for i in range(torch.cuda.device_count())]
    watch = Watch()
    config = ExtractConfig("m", "d", str(folder / "a.zarr"), points, rows="both")
    store = extract(config, model=loaded, data=laws[0], progress=watch)
    peaks = [torch.cuda.max_memory_allocated(i) - held[i] for i in range(torch.cuda.device_count())]
    tokens = int(store.points["llm_final"].n_rows)
    batching = store.provenance["batching"]
    longest = int(np.max(store.rows("llm_final").lengths()))
    predicted = batch_bytes(decoder_of(loaded), loaded.select(points), batching["tokens"], longest)
    second = Watch()
    text = extract(
        ExtractConfig("m", "d", str(folder / "b.zarr"), (middle,), rows="both"),
        model=loaded,
        data=laws[1],
        progress=second,
    )
    few = ListDataset([laws[0][i] for i in range(count // 4)])
    rows = extract(ExtractConfig("m", "d", str(folder / "c.zarr"), (middle,)), model=loaded, data=few)
    stats = extract_moments(
        ExtractConfig("m", "d", str(folder / "c"), (middle,), rows="stats-only"), model=loaded, data=few
    )
    parity = store.provenance["parity"]
    del loaded
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
    theirs, ours = reduce(rows, middle, Moments(), device=device()), stats.moments(middle)
    scale = theirs.std.cpu()[:, None] * theirs.std.cpu()
    gap = float(((ours.covariance - theirs.covariance.cpu()).abs() / scale).max())
    begin = time.perf_counter()
    modes = align(store, text, point=middle, device=device(), interval=None)
    aligned = time.perf_counter() - begin
    along = float(np.nansum(modes.rho * modes.eigenvalues))
    total = modes.text_trace
    found: dict[str, Any] = {
        "build_s": built,
        "weights_gb": sum(weights.values()) / 1e9,
        "devices": {place: size / 1e9 for place, size in weights.items()},
        "tokens": tokens,
        "capture_s": watch.seconds("capture"),
        "tokens_per_s": tokens / watch.seconds("capture"),
        "batch_tokens": batching["tokens"],
        "peak_batch_gb": max(peaks, default=0) / 1e9,
        "predicted_batch_gb": predicted / 1e9,
        "align_s": aligned,
        "align_rank": modes.certificate.rank,
        "align_rho_of_the_first": float(modes.rho[0]),
        "align_variance_of_text_along_the_modes": along / total,
        "align_trace_ratio": modes.trace_ratio,
        "statistics_gap": gap,
        "parity_max_rel": max(entry["max_rel"] for entry in parity.values()),
    }
    found["checks"] = {
        "a batch equals plain forwards within rounding": all(
            entry["max_rel"] <= entry["tolerance"] for entry in parity.values()
        ),
        "statistics equal those of the rows": gap < 1e-5,
        # rho_k lambda_k is the text's variance along mode k, and the modes are a basis
        "the modes' quotients add up to the text's variance": abs(along / total - 1) < 0.01,
        "two halves of one law have the same variance": abs(modes.trace_ratio - 1) < 0.2,
        "predicted memory holds the peak": not cuda or found["predicted_batch_gb"] >= found["peak_batch_gb"],
        "every GPU holds a part": not cuda or len(weights) == torch.cuda.device_count(),
    }
    return found
