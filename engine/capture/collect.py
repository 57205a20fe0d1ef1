"""On the device: a block's rows gathered, narrowed and pooled, queued without waiting for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from modegap.engine.errors import EngineError

from .capturer import Block
from .config import Pool, Rows

FP16_MAX = 65504.0


@dataclass(frozen=True, slots=True, eq=False)
class Collected:
    """A batch at one point as it leaves the device.

    Attributes:
        lengths: rows of each sample.
        tokens: [n, d], the samples' rows one after the other; None where no rows are wanted.
        wide: the same rows as the model put them out, where `tokens` were narrowed to fp16.
        pooled: fp32 [B, d], or None.
        top: largest magnitude of each position [B, T], not finite where a value is not; padding included.
        mask: bool [B, T] on the host, true on the rows of the sample.
        dtype: the model's dtype there.
        half: whether token rows are stored in fp16.
    """

    lengths: list[int]
    tokens: torch.Tensor | None
    wide: torch.Tensor | None
    pooled: torch.Tensor | None
    top: torch.Tensor
    mask: torch.Tensor
    dtype: torch.dtype
    half: bool


@dataclass(slots=True, eq=False)
class Collector:
    """Makes `Collected` from blocks.

    Attributes:
        rows: which rows are wanted.
        half: narrow token rows to fp16 on the device; where one does not fit, the wide ones are fetched.
        pool: over which rows of a sample the mean is taken.
        overflowed: points that had values beyond fp16 before: their rows leave the device as they are.
    """

    rows: Rows
    half: bool
    pool: Pool = "all"
    overflowed: set[str] = field(default_factory=set)

    def __call__(self, blocks: dict[str, Block], ids: Sequence[str]) -> dict[str, Collected]:
        """Every point's rows; kernels are queued, nothing waits for them.

        Raises:
            EngineError: pooling over media rows, and a sample has none.
        """
        cache: dict[tuple[int, torch.device], torch.Tensor] = {}
        return {name: self._point(name, block, ids, cache) for name, block in blocks.items()}

    def _point(
        self,
        name: str,
        block: Block,
        ids: Sequence[str],
        cache: dict[tuple[int, torch.device], torch.Tensor],
    ) -> Collected:
        from modegap.kernels.masked_mean import masked_mean

        tokens = wide = pooled = None
        if self.rows != "pooled":
            tokens = _gather(block)
            if self.half and tokens.dtype != torch.float16 and name not in self.overflowed:
                tokens, wide = tokens.half(), tokens
        if self.rows != "tokens":
            kept = block.mask if self.pool == "all" else block.mask & block.media
            empty = ~kept.any(dim=1)
            if bool(empty.any()):
                raise EngineError(
                    f"sample {ids[int(empty.nonzero()[0])]!r} has no media rows to pool at {name}; use "
                    "pool='all', or leave the point out"
                )
            key = (id(block.mask), block.x.device)
            if key not in cache:
                cache[key] = to_device(kept, block.x.device)
            pooled = masked_mean(block.x, cache[key], checked=False)
        top = torch.linalg.vector_norm(block.x, float("inf"), dim=-1)
        lengths = block.mask.sum(dim=1).tolist()
        return Collected(lengths, tokens, wide, pooled, top, block.mask, block.x.dtype, self.half)


def to_device(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A small host tensor on a device; from pinned memory, so that the host waits for nothing queued."""
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def _gather(block: Block) -> torch.Tensor:
    """The samples' rows one after the other [n, d]; by an index made on the host: a mask would sync."""
    flat = block.x.reshape(-1, block.x.shape[-1])
    if bool(block.mask.all()):
        return flat
    index = block.mask.flatten().nonzero().squeeze(1)
    return flat.index_select(0, to_device(index, flat.device))
