"""From a published Ultravox checkpoint to model and processor, without running the repository's code."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import nn

from modegap.engine.errors import EngineError
from modegap.engine.models.composite import CompositeConfig
from modegap.engine.models.hub import LOADING_ERRORS, Source
from modegap.engine.models.parts import Placement, language_model, special_token
from modegap.engine.models.remedies import remedy

from .encoder import SpeechEncoder
from .model import Projector, Ultravox
from .processor import AUDIO, UltravoxProcessor
from .remote import RemoteUltravox

Weights = dict[str, torch.Tensor]


def load_ultravox(
    source: Source, settings: Mapping[str, Any], placement: Placement
) -> tuple[Ultravox, UltravoxProcessor]:
    """Model and processor.

    A published checkpoint holds what was trained: always the projector, and the audio tower and the language
    model only where they were. The rest comes from the repositories that its `config.json` names.

    Args:
        source: the repository.
        settings: its `config.json`.
        placement: dtype and devices.

    Raises:
        EngineError: a part that is not there, cannot be reached, or does not fit.
    """
    weights = source.weights("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    if any("lora_" in name for name in weights):
        raise EngineError(
            f"{source.name} holds LoRA weights that are not merged; merge them (merge_and_unload) and save again"
        )
    audio_config = _config(source, settings, "audio")
    whisper = _whisper(source, settings, audio_config, _under(weights, "audio_tower."))
    text_config = None if settings.get("text_model_id") else _config(source, settings, "text")
    text = source.other(settings["text_model_id"]) if settings.get("text_model_id") else source
    llm = _under(weights, "language_model.")
    if not llm and text_config is not None:
        raise EngineError(
            f"{source.name} has no language model: neither weights nor text_model_id; check the id"
        )
    decoder = language_model(text, placement, llm, config=text_config)
    stack = int(settings.get("stack_factor", 8))
    projector = Projector(
        stack * audio_config.d_model,
        int(settings.get("hidden_size", 4096)),
        decoder.config.get_text_config().hidden_size,
        settings.get("projector_act", "swiglu"),
        bool(settings.get("projector_ln_mid", False)),
    )
    _fill(projector, _under(weights, "multi_modal_projector."), source.name)
    tokenizer = read_tokenizer(source, text)
    config = CompositeConfig(
        "ultravox", decoder.config, special_token(tokenizer, AUDIO), {**settings, "architectures": None}
    )
    tower = SpeechEncoder(whisper, settings.get("audio_latency_block_size"))
    model = Ultravox(tower, projector, decoder, config, stack)
    placement.place(model)
    return model.eval(), UltravoxProcessor(extractor(audio_config), tokenizer, stack, tower.context)


def load_remote(
    source: Source, settings: Mapping[str, Any], placement: Placement
) -> tuple[RemoteUltravox, UltravoxProcessor]:
    """The same by the repository's own code, which runs; the processor is modegap's.

    Raises:
        EngineError: the code cannot be loaded, or does not run with the installed transformers.
    """
    import transformers

    try:
        model = transformers.AutoModel.from_pretrained(
            source.name, **source.arguments, **placement.arguments(placement.dtype or "auto")
        )
    except (*LOADING_ERRORS, AttributeError, TypeError) as error:
        raise EngineError(
            f"{remedy(error, source.name, source.revision)}; its own code may need another transformers than "
            f"{transformers.__version__}: leave trust_remote_code out to load the same weights without it"
        ) from error
    audio_config = model.config.audio_config
    text = source.other(settings.get("text_model_id") or source.name)
    tokenizer = read_tokenizer(source, text)
    config = CompositeConfig(
        "ultravox",
        model.config.text_config,
        special_token(tokenizer, AUDIO),
        {**settings, "architectures": None},
    )
    stack, context = int(settings.get("stack_factor", 8)), 2 * int(audio_config.max_source_positions)
    wrapped = RemoteUltravox(model, config, stack, context)
    return wrapped.eval(), UltravoxProcessor(extractor(audio_config), tokenizer, stack, context)


def extractor(audio_config: Any) -> Any:
    """Whisper's feature extractor for so many mel bins; everything else is the same in all its sizes."""
    transformers: Any = import_module("transformers")
    return transformers.WhisperFeatureExtractor(feature_size=audio_config.num_mel_bins)


def read_tokenizer(source: Source, text: Source) -> Any:
    """The checkpoint's own tokenizer, or that of its language model.

    Raises:
        EngineError: neither can be loaded.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    for kind in (AutoTokenizer, PreTrainedTokenizerFast):
        try:
            return kind.from_pretrained(source.name, padding_side="left", **source.arguments)
        except LOADING_ERRORS:  # a configuration that transformers does not know, or no tokenizer there
            continue
    with text.remedied():
        return AutoTokenizer.from_pretrained(text.name, padding_side="left", **text.arguments)


def _config(source: Source, settings: Mapping[str, Any], part: str) -> Any:
    """Transformers' configuration of the encoder or the language model."""
    from transformers import CONFIG_MAPPING, AutoConfig

    name, own = settings.get(f"{part}_model_id"), dict(settings.get(f"{part}_config") or {})
    if name:
        other = source.other(name)
        with other.remedied():
            return AutoConfig.from_pretrained(name, **other.arguments)
    kind = own.pop("model_type", None) or ("whisper" if part == "audio" else "llama")
    with source.remedied():
        found = CONFIG_MAPPING[kind](**own)
    if part == "audio" and kind != "whisper":
        raise EngineError(f"{source.name} has an encoder of kind {kind!r}; only Whisper is known here")
    return found


def _whisper(source: Source, settings: Mapping[str, Any], config: Any, weights: Weights) -> nn.Module:
    """Whisper's encoder with the checkpoint's weights, else with those of `audio_model_id`."""
    from transformers import WhisperModel

    if not weights:
        name = settings.get("audio_model_id")
        if not name:
            raise EngineError(
                f"{source.name} has no encoder: neither weights nor audio_model_id; check the id"
            )
        other = source.other(name)
        with other.remedied():
            whole = WhisperModel.from_pretrained(name, **other.arguments)
        encoder: nn.Module = whole.encoder
        return encoder
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    encoder = WhisperEncoder(config)
    _fill(encoder, weights, source.name)
    return encoder


def _under(weights: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _fill(module: nn.Module, weights: Weights, name: str) -> None:
    try:
        module.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise EngineError(f"the weights of {name} do not fit its config.json: {reason[:200]}") from error
