"""`load` and `adopt`: a model by id, or one that the caller already has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modegap.engine.datasets.base import Modality
from modegap.engine.errors import EngineError

from .collate import Collator
from .loaded import LoadedModel
from .points import resolve
from .prompts import modality_of_processor
from .structure import read_structure

# Remedies by the class names of huggingface_hub's errors and by fragments of transformers' messages, most
# telling first.
_REMEDIES: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("GatedRepoError", "gated repo"),
        "{id} is gated: accept its licence at https://huggingface.co/{id}, then log in with `hf auth "
        "login` or set HF_TOKEN",
    ),
    (
        ("RevisionNotFoundError", "is not a valid git identifier"),
        "{id} has no revision {revision!r}: name a branch, tag or commit that exists",
    ),
    (
        ("trust_remote_code",),
        "{id} runs code of its own: read that code, then pass trust_remote_code=True",
    ),
    (
        (
            "OfflineModeIsEnabled",
            "LocalEntryNotFoundError",
            "ConnectError",
            "ConnectionError",
            "couldn't connect",
        ),
        "cannot reach huggingface.co and {id} is not in the local cache: connect, download it elsewhere with "
        "`hf download {id}`, or give the path of a folder",
    ),
    (
        (
            "RepositoryNotFoundError",
            "HFValidationError",
            "is not a valid model identifier",
            "not a local folder",
        ),
        "no model {id!r}: check the spelling, log in with `hf auth login` if it is private, or give a "
        "folder's path",
    ),
    (
        ("requires `accelerate`", "Using `device_map`", "low_cpu_mem_usage"),
        "device_map needs accelerate: pip install accelerate",
    ),
    (
        ("does not recognize this architecture", "Unrecognized model"),
        "{id} is of a kind that the installed transformers does not know: upgrade transformers, or load it "
        "yourself "
        "and use adopt(model, processor)",
    ),
)


def load(
    id_or_path: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device_map: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    points: Mapping[str, str] | None = None,
    build: Callable[[Any, Any], nn.Module] | None = None,
    **options: Any,
) -> LoadedModel:
    """A model and its processor by Hub id or folder, in evaluation mode.

    Args:
        id_or_path: as transformers' `from_pretrained` takes it.
        dtype: torch dtype or its name; the checkpoint's own ("auto") unless given.
        device_map: passed on.
        revision: passed on.
        trust_remote_code: passed on; the repository's code runs only if asked for by name.
        points: hook points of your own, name to `module.path`.
        build: makes the model from its class and config, instead of `from_pretrained`.
        **options: passed on (`attn_implementation`, `quantization_config`, ...).

    Raises:
        ValueError: an unknown dtype.
        EngineError: unknown or gated id, no network, unknown architecture; one line with the remedy.
    """
    import transformers

    name = str(id_or_path)
    looks_local = isinstance(id_or_path, Path) or name.startswith((".", "/", "~"))
    if looks_local:
        name = str(Path(name).expanduser())
        if not Path(name).is_dir():
            raise EngineError(
                f"no model folder {name}; give a folder with config.json, or a Hub id like org/model"
            )
    common = {"revision": revision, "trust_remote_code": trust_remote_code}
    wanted = _dtype(dtype)
    try:
        config = transformers.AutoConfig.from_pretrained(name, **common)
        # transformers 4.56 renamed torch_dtype to dtype
        key = "dtype" if _version(transformers.__version__) >= (4, 56) else "torch_dtype"
        loader = _model_class(transformers, config)
        made: Any = {key: wanted, "device_map": device_map, **options}
        model = build(loader, config) if build else loader.from_pretrained(name, **common, **made)
        processor = _processor(transformers, name, common)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise EngineError(_remedy(error, name, revision)) from error
    commit = getattr(model.config, "_commit_hash", None) or revision
    return adopt(model.eval(), processor, name=name, points=points, revision=commit)


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
    try:
        structure = read_structure(model)
    except EngineError:
        if not points:
            raise
        structure = None
    family = str(getattr(config, "model_type", type(model).__name__))
    modality = modality_of_processor(processor)
    collator = Collator(
        processor, media_token=_media_token(config, modality), max_positions=_max_positions(config)
    )
    title = name or getattr(model, "name_or_path", "") or type(model).__name__
    media_token = None if modality == "text" else collator.media_token
    resolved = resolve(model, structure, points, media_token=media_token)
    return LoadedModel(
        model, processor, title, revision, family, collator.modality, resolved, structure, collator
    )


def _dtype(dtype: str | torch.dtype | None) -> Any:
    if dtype is None or isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype or "auto"
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"got dtype {dtype!r}; expected auto, float32, float16 or bfloat16")
    return found


def _model_class(transformers: Any, config: Any) -> Any:
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


def _processor(transformers: Any, name: str, common: dict[str, Any]) -> Any:
    try:
        return transformers.AutoProcessor.from_pretrained(name, **common)
    except (OSError, ValueError, KeyError):  # a text model may have no processor config at all
        return transformers.AutoTokenizer.from_pretrained(name, **common)


def _media_token(config: Any, modality: Modality) -> int | None:
    """Id of the placeholder, which some families keep with the encoder's own settings."""
    first, other = ("audio", "image") if modality == "audio" else ("image", "audio")
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


def _remedy(error: BaseException, name: str, revision: str | None) -> str:
    seen: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(seen) < 20:
        seen.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__ or cause.__context__
    everything = "\n".join(seen).lower()
    for signs, remedy in _REMEDIES:
        if any(sign.lower() in everything for sign in signs):
            return remedy.format(id=name, revision=revision)
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return f"cannot load {name}: {first}"


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)
