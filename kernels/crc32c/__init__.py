"""The checksum of a store's chunks, computed where the chunks are: `crc32c`."""

from __future__ import annotations

import torch

from modegap.kernels.dispatch import run

from . import reference  # noqa: F401  (it registers itself)

__all__ = ["crc32c"]

_MOST_BYTES = 2**31 - 1


def crc32c(blocks: torch.Tensor) -> torch.Tensor:
    """CRC-32C (Castagnoli) of the bytes of each block.

    Args:
        blocks: [n, m], any dtype, each block's m values contiguous.

    Returns:
        uint32 [n] on the device of `blocks`.

    Raises:
        ValueError: not a matrix, blocks that are not contiguous, or longer than 2 GiB.

    Source: polynomial 0x1EDC6F41, RFC 3720 appendix B.4; the values of `google_crc32c` and of Zarr's codec.
    """
    if blocks.dim() != 2 or (blocks.numel() and blocks.stride(1) != 1):
        got = f"shape {tuple(blocks.shape)}, strides {blocks.stride()}"
        raise ValueError(f"blocks: got {got}, expected [n, m] with contiguous blocks")
    if blocks.shape[1] * blocks.element_size() > _MOST_BYTES:
        got = f"{blocks.shape[1] * blocks.element_size()} bytes a block"
        raise ValueError(f"blocks: got {got}, expected at most {_MOST_BYTES}")
    result: torch.Tensor = run("crc32c", __name__, blocks)[0]
    return result
