"""From a batch on the host to each sample's rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from modegap.engine.models.collate import MEDIA_ID, PADDING, TEXT, Inputs

from .capturer import Block, not_finite
from .collect import FP16_MAX, Collected, Collector
from .config import Pool, Rows

if TYPE_CHECKING:
    from modegap.engine.models.loaded import LoadedModel

Array = NDArray[Any]
NO_TOKEN = -1


@dataclass(frozen=True, slots=True, eq=False)
class HostRows:
    """Rows of one sample at one point: tokens [t, d], pooled [d]; None where not wanted."""

    tokens: Array | None
    pooled: Array | None


def host_rows(
    block: Block, rows: Rows, ids: Sequence[str] | None = None, *, name: str = "", pool: Pool = "all"
) -> list[HostRows]:
    """Each sample's rows, at once; tokens in fp16 or fp32, pooled in fp32 (the mean over its own rows).

    Raises:
        EngineError: a value is NaN or infinite; names sample and point.
    """
    names = [str(index) for index in range(len(block.mask))] if ids is None else ids
    collected = Collector(rows, half=False, pool=pool)({name: block}, names)[name]
    return split_rows(name, on_host(collected), names, collected.wide)


def on_host(one: Collected) -> Collected:
    """The same on the host, copied now."""
    return Collected(
        one.lengths,
        None if one.tokens is None else one.tokens.cpu(),
        None,
        None if one.pooled is None else one.pooled.cpu(),
        one.top.cpu(),
        one.mask,
        one.dtype,
        one.half,
    )


def largest(one: Collected) -> torch.Tensor:
    """Largest magnitude of each sample, fp32 [B], of a batch on the host; not finite where a value is not."""
    return torch.where(one.mask, one.top.float(), torch.zeros(())).amax(dim=1)


def check_landed(name: str, top: torch.Tensor, ids: Sequence[str], dtype: torch.dtype) -> None:
    """Raises EngineError for a sample whose `largest` is not finite."""
    bad = ~torch.isfinite(top)
    if bool(bad.any()):
        raise not_finite(ids[int(bad.nonzero()[0])], name, dtype)


def split_rows(name: str, one: Collected, ids: Sequence[str], wide: torch.Tensor | None) -> list[HostRows]:
    """Each sample's rows of a batch on the host.

    A batch is narrowed to fp16 unless one of its values does not fit; rows that the device narrowed all the
    same are then taken from `wide`. Where they were narrowed changes no bit: both round to nearest even.

    Raises:
        EngineError: a value is NaN or infinite; names sample and point.
    """
    top = largest(one)
    check_landed(name, top, ids, one.dtype)
    count = len(one.lengths)
    tokens: list[Array | None] = [None] * count
    pooled: list[Array | None] = [None] * count
    if one.tokens is not None:
        given, fits = one.tokens, float(top.max()) <= FP16_MAX
        if one.half and fits:
            given = given.half()
        elif wide is not None:
            given = wide.cpu()
        tokens = list(np.split(to_numpy(given), np.cumsum(one.lengths)[:-1]))
    if one.pooled is not None:
        pooled = list(one.pooled.numpy())
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
        ids = inputs.tensors["input_ids"][index].cpu()[real.cpu()].numpy().astype(np.int32)
        return ids, inputs.modality[index][real].cpu().numpy()
    if stream == "text":
        return np.asarray(inputs.texts[index], dtype=np.int32), np.full(length, TEXT, dtype=np.uint8)
    token = loaded.collator.media_token if stream == "adapter" else None
    kind = MEDIA_ID[loaded.modality] if loaded.modality != "text" else PADDING
    return (
        np.full(length, NO_TOKEN if token is None else token, dtype=np.int32),
        np.full(length, kind, dtype=np.uint8),
    )
