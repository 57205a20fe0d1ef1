"""A model without its weights: enough to say which modules it has."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from .hub import Source
from .loaded import LoadedModel
from .loading import adopt, load, locate, model_class, published_here, read_processor


def skeleton(
    id_or_path: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    points: Mapping[str, str] | None = None,
    **options: Any,
) -> LoadedModel:
    """Like `load`, but only `config.json` and the processor are read: the weights are on the meta device.

    Prismatic and Ultravox checkpoints say little about their shapes before their weights are read; those are
    loaded as a whole.

    Raises:
        EngineError: as `load`.
    """
    source: Source = locate(id_or_path, revision, trust_remote_code, options)
    if published_here(source):
        return load(
            id_or_path,
            revision=revision,
            trust_remote_code=trust_remote_code,
            points=points,
            **dict(source.access),
        )
    transformers: Any = import_module("transformers")
    with source.remedied():
        config = transformers.AutoConfig.from_pretrained(source.name, **source.arguments)
        kind = model_class(transformers, config)
        build = kind._from_config if hasattr(kind, "_from_config") else kind.from_config
        remote = {"trust_remote_code": trust_remote_code} if build.__name__ == "from_config" else {}
        with torch.device("meta"):
            model = build(config, **remote)
        processor = read_processor(transformers, source)
    return adopt(model.eval(), processor, name=source.name, points=points, revision=revision)
