"""From a batch on the device to each sample's rows on the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from modegap.engine.models.collate import MEDIA_ID, PADDING, TEXT, Inputs

from .capturer import Block
from .config import Rows

if TYPE_CHECKING:
    from modegap.engine.models.loaded import LoadedModel

Array = NDArray[Any]
NO_TOKEN = -1


@dataclass(frozen=True, slots=True, eq=False)
class HostRows:
    """Rows of one sample at one point: tokens [t, d], pooled [d]; None where not wanted."""

    tokens: Array | None
    pooled: Array | None


def host_rows(block: Block, rows: Rows) -> list[HostRows]:
    """Each sample's rows; tokens in fp16 or fp32, pooled in fp32 (the mean over the sample's own rows)."""
    from modegap.kernels.masked_mean import masked_mean

    count = len(block.mask)
    tokens: list[Array | None] = [None] * count
    pooled: list[Array | None] = [None] * count
    if rows != "pooled":
        lengths = block.mask.sum(dim=1).tolist()
        flat = to_numpy(block.x[block.mask])  # one gather and one copy a batch
        tokens = list(np.split(flat, np.cumsum(lengths)[:-1]))
    if rows != "tokens":
        pooled = list(to_numpy(masked_mean(block.x, block.mask)))
    return [HostRows(*pair) for pair in zip(tokens, pooled, strict=True)]


def to_numpy(x: torch.Tensor) -> Array:
    """fp16 stays; all else becomes fp32 (bf16 on the host, so that two bytes a value cross the bus)."""
    host = x.detach().cpu()
    array: Array = (host if host.dtype == torch.float16 else host.float()).numpy()
    return array


def token_columns(
    loaded: LoadedModel, inputs: Inputs, index: int, stream: str, length: int
) -> tuple[Array, Array]:
    """What stands at each row of a stream: token ids (int32 [t], -1 for none) and modality (uint8 [t])."""
    if stream == "llm":
        real = inputs.attention[index]
        ids = inputs.tensors["input_ids"][index][real].cpu().numpy().astype(np.int32)
        return ids, inputs.modality[index][real].cpu().numpy()
    if stream == "text":
        return np.asarray(inputs.texts[index], dtype=np.int32), np.full(length, TEXT, dtype=np.uint8)
    token = loaded.collator.media_token if stream == "adapter" else None
    kind = MEDIA_ID[loaded.modality] if loaded.modality != "text" else PADDING
    return (
        np.full(length, NO_TOKEN if token is None else token, dtype=np.int32),
        np.full(length, kind, dtype=np.uint8),
    )
