"""From a published Prismatic checkpoint to model and processor."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch

from modegap.engine.errors import EngineError
from modegap.engine.models.composite import CompositeConfig
from modegap.engine.models.hub import Source, read_weights
from modegap.engine.models.parts import Placement, language_model, special_token

from .backbones import BACKBONES, HUB_REPO, LANGUAGE_MODELS, Backbone
from .model import Prismatic, projector
from .processor import IMAGE, PURE, VICUNA, PrismaticImages, PrismaticProcessor
from .vision import PatchFeatures, patch_features

CHECKPOINT = "checkpoints/latest-checkpoint.pt"
STRATEGIES = ("resize-naive", "resize-crop", "letterbox")
# `dinov2-224px+7b`: the plus cannot be in any other Hub id
_PUBLISHED = re.compile(rf"(?:{HUB_REPO}/)?([\w.-]+\+\d+b)")


def is_prismatic(source: Source) -> bool:
    """Whether a name is a published Prismatic id, or a folder in the published layout."""
    if not source.local:
        return _PUBLISHED.fullmatch(source.name) is not None
    try:
        return "vision_backbone_id" in source.json("config.json").get("model", {})
    except (EngineError, TypeError):
        return False


def load_prismatic(source: Source, placement: Placement) -> tuple[Prismatic, PrismaticProcessor]:
    """Model and processor.

    The folder, or `TRI-ML/prismatic-vlms/<id>` on the Hub, holds `config.json` and
    `checkpoints/latest-checkpoint.pt` with the projector's and the language model's weights. Vision weights that
    are not in it, and the language model's configuration and tokenizer, come from the repositories they were
    published in.

    Raises:
        EngineError: a part that is not there, cannot be reached, or is of a kind not known here.
    """
    published = None if source.local else _PUBLISHED.fullmatch(source.name)
    folder = "" if published is None else f"{published[1]}/"
    home = source if published is None else replace(source, name=HUB_REPO)
    settings = home.json(f"{folder}config.json")["model"]
    towers = _known(BACKBONES, settings, "vision_backbone_id")
    language = source.other(_known(LANGUAGE_MODELS, settings, "llm_backbone_id"))
    strategy = settings.get("image_resize_strategy")
    if strategy not in STRATEGIES:
        raise EngineError(
            f"{source.name}: got image_resize_strategy {strategy!r}, known: {', '.join(STRATEGIES)}"
        )
    weights = read_weights(home.file(folder + CHECKPOINT)).get("model", {})
    if not {"projector", "llm_backbone"} <= weights.keys():
        raise EngineError(
            f"{source.name}: {CHECKPOINT} holds {sorted(weights)}, expected projector and llm_backbone; "
            "use the published checkpoint"
        )
    tokenizer = _tokenizer(language)
    own = weights.get("vision_backbone", {})
    features = [_tower(source, tower, i, len(towers), own) for i, tower in enumerate(towers)]
    llm = {
        name.removeprefix("llm."): value
        for name, value in weights["llm_backbone"].items()
        if not name.endswith("rotary_emb.inv_freq")  # older versions of transformers saved this constant
    }
    decoder = language_model(language, placement, llm, vocabulary=len(llm["model.embed_tokens.weight"]))
    adapter = projector(weights["projector"], settings["arch_specifier"])
    config = CompositeConfig(
        "prismatic", decoder.config, int(tokenizer.convert_tokens_to_ids(IMAGE)), dict(settings)
    )
    model = Prismatic(features, adapter, decoder, config)
    placement.place(model)
    images = PrismaticImages(towers, strategy)
    template = VICUNA if settings["llm_backbone_id"].startswith("vicuna") else PURE
    return model.eval(), PrismaticProcessor(images, tokenizer, _patches(features[0], towers[0]), template)


def _tower(
    source: Source, backbone: Backbone, index: int, count: int, own: dict[str, torch.Tensor]
) -> PatchFeatures:
    """One tower; its weights from the checkpoint where it was trained on, else from where it was published."""
    if own:
        kind = "" if count == 1 else ("dino_", "siglip_")[index]
        own = {name: value for name, value in own.items() if name.startswith(f"{kind}featurizer.")}
        return patch_features(backbone, own, source.name)
    hub = source.other(backbone.repo)
    return patch_features(backbone, hub.weights("model.safetensors", "pytorch_model.bin"), hub.name)


def _patches(tower: PatchFeatures, backbone: Backbone) -> int:
    return int((backbone.size // tower.tower.config.patch_size) ** 2)


def _tokenizer(language: Source) -> Any:
    from transformers import AutoTokenizer

    with language.remedied():
        tokenizer = AutoTokenizer.from_pretrained(language.name, padding_side="right", **language.arguments)
    special_token(tokenizer, "<PAD>")
    tokenizer.pad_token = "<PAD>"
    special_token(tokenizer, IMAGE)
    return tokenizer


def _known(table: dict[str, Any], settings: dict[str, Any], key: str) -> Any:
    value = settings.get(key)
    if value not in table:
        raise EngineError(f"the checkpoint's {key} is {value!r}; known here: {', '.join(table)}")
    return table[value]
