"""`load` and `adopt`: a model by id, or one that the caller already has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modegap.engine.datasets.base import Modality
from modegap.engine.errors import EngineError

from .collate import Collator
from .composite import CompositeConfig
from .hub import Source
from .loaded import LoadedModel
from .parts import Placement
from .points import resolve
from .prismatic import is_prismatic, load_prismatic
from .prismatic.backbones import HUB_REPO
from .prompts import modality_of_processor
from .structure import read_structure
from .ultravox import load_remote, load_ultravox

# Arguments of from_pretrained that say where files come from: every part of a model is asked for with them.
ACCESS = ("token", "cache_dir", "local_files_only", "force_download")
# Short names of the systems that the paper compares.
SYSTEMS: dict[str, str] = {
    "ultravox": "fixie-ai/ultravox-v0_6-llama-3_1-8b",
    "qwen2-audio": "Qwen/Qwen2-Audio-7B-Instruct",
    "llava": "llava-hf/llava-1.5-7b-hf",
    "prismatic-dinov2": f"{HUB_REPO}/dinov2-224px+7b",
    "prismatic-siglip": f"{HUB_REPO}/siglip-224px+7b",
    "llama": "meta-llama/Llama-3.1-8B",
    "vicuna": "lmsys/vicuna-7b-v1.5",
}


def load(
    id_or_path: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device_map: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    points: Mapping[str, str] | None = None,
    **options: Any,
) -> LoadedModel:
    """A model and its processor by Hub id or folder, in evaluation mode.

    Args:
        id_or_path: as transformers' `from_pretrained` takes it; a short name of `SYSTEMS`; or a Prismatic id such as
            `dinov2-224px+7b` or a folder in its published layout.
        dtype: torch dtype or its name; the checkpoint's own ("auto") unless given.
        device_map: passed on.
        revision: passed on.
        trust_remote_code: passed on; the repository's code runs only if asked for by name. Ultravox loads without
            it, from transformers' parts.
        points: hook points of your own, name to `module.path`.
        **options: passed on (`attn_implementation`, `quantization_config`, `cache_dir`, ...).

    Raises:
        ValueError: an unknown dtype.
        EngineError: unknown or gated id, no network, unknown architecture; one line with the remedy.
    """
    source = locate(id_or_path, revision, trust_remote_code, options)
    wanted = _dtype(dtype)
    model, processor = _read(source, Placement(wanted, device_map, options))
    commit = getattr(model.config, "_commit_hash", None) or revision
    return adopt(model, processor, name=source.name, points=points, revision=commit)


def locate(
    id_or_path: str | Path, revision: str | None, trust_remote_code: bool, options: dict[str, Any]
) -> Source:
    """Where a model is; the options that say how to reach it are taken out of `options`.

    Raises:
        EngineError: a path without a folder.
    """
    name = SYSTEMS.get(str(id_or_path), str(id_or_path))
    looks_local = isinstance(id_or_path, Path) or name.startswith((".", "/", "~"))
    if looks_local:
        name = str(Path(name).expanduser())
        if not Path(name).is_dir():
            raise EngineError(
                f"no model folder {name}; give a folder with config.json, or a Hub id like org/model"
            )
    access = tuple((key, options.pop(key)) for key in ACCESS if key in options)
    return Source(name, revision, trust_remote_code, access)


def published_here(source: Source) -> bool:
    """Whether a checkpoint is of a layout that is read here and not by transformers."""
    return is_prismatic(source) or _settings(source).get("model_type") == "ultravox"


def _read(source: Source, placement: Placement) -> tuple[nn.Module, Any]:
    """The model in evaluation mode, and its processor."""
    if is_prismatic(source):
        return load_prismatic(source, placement)
    settings = _settings(source)
    if settings.get("model_type") == "ultravox":
        load = load_remote if source.trust_remote_code else load_ultravox
        return load(source, settings, placement)
    import transformers

    with source.remedied():
        config = transformers.AutoConfig.from_pretrained(source.name, **source.arguments)
        loader = model_class(transformers, config)
        model = loader.from_pretrained(
            source.name, **source.arguments, **placement.arguments(placement.dtype or "auto")
        )
        return model.eval(), read_processor(transformers, source)


def _settings(source: Source) -> dict[str, Any]:
    """The raw `config.json`; empty where there is none, which transformers explains better."""
    try:
        return source.json("config.json")
    except EngineError:
        return {}


def adopt(
    model: nn.Module,
    processor: Any,
    *,
    name: str | None = None,
    points: Mapping[str, str] | None = None,
    revision: str | None = None,
) -> LoadedModel:
    """A model and processor that already exist. Neither is changed: no mode, device or dtype is set.

    Args:
        model: a causal language model with or without a modality encoder.
        processor: its processor, or its tokenizer for text.
        name: what provenance calls it; the model's own `name_or_path` unless given.
        points: hook points of your own, name to `module.path` (or `module.path:input`).
        revision: commit of the weights, for provenance.

    Raises:
        EngineError: no decoder found and no `points` given; a module path that does not exist; no tokenizer.
    """
    config = getattr(model, "config", None)
    modality = modality_of_processor(processor)
    try:
        structure = read_structure(model, modality)
    except EngineError:
        if not points:
            raise
        structure = None
    family = str(getattr(config, "model_type", type(model).__name__))
    collator = Collator(
        processor, media_token=_media_token(config, modality), max_positions=_max_positions(config)
    )
    title = name or getattr(model, "name_or_path", "") or type(model).__name__
    media_token = None if modality == "text" else collator.media_token
    resolved = resolve(model, structure, points, media_token=media_token)
    return LoadedModel(
        model, processor, title, revision, family, collator.modality, resolved, structure, collator
    )


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or dtype == "auto":
        return None
    if isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"got dtype {dtype!r}; expected auto, float32, float16 or bfloat16")
    return found


def model_class(transformers: Any, config: Any) -> Any:
    """The class that the checkpoint names: the only one that surely fits its weights."""
    for architecture in getattr(config, "architectures", None) or ():
        if hasattr(transformers, architecture):
            return getattr(transformers, architecture)
    known = getattr(config, "auto_map", None) or {}
    for auto in (
        "AutoModelForCausalLM",
        "AutoModelForImageTextToText",
        "AutoModelForVision2Seq",
        "AutoModel",
    ):
        if auto in known and hasattr(transformers, auto):
            return getattr(transformers, auto)
    return transformers.AutoModelForCausalLM


def read_processor(transformers: Any, source: Source) -> Any:
    """A repository's processor, or its tokenizer if it has no processor."""
    try:
        return transformers.AutoProcessor.from_pretrained(source.name, **source.arguments)
    except (OSError, ValueError, KeyError):  # a text model may have no processor config at all
        return transformers.AutoTokenizer.from_pretrained(source.name, **source.arguments)


def _media_token(config: Any, modality: Modality) -> int | None:
    """Id of the placeholder, which some families keep with the encoder's own settings."""
    first, other = ("audio", "image") if modality == "audio" else ("image", "audio")
    if isinstance(config, CompositeConfig):
        return config.media_token_id
    parts = (config, getattr(config, "vision_config", None), getattr(config, "audio_config", None))
    for kind in (first, other):
        for part in parts:
            for key in (f"{kind}_token_id", f"{kind}_token_index"):
                value = getattr(part, key, None)
                if isinstance(value, int):
                    return value
    return None


def _max_positions(config: Any) -> int | None:
    text = getattr(config, "text_config", None) or config
    value = getattr(text, "max_position_embeddings", None)
    return value if isinstance(value, int) and value > 0 else None
