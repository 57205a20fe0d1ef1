"""The oracle of `crc32c`: byte by byte through the table of 256, on many strips of a block at once."""

from __future__ import annotations

import math

import torch

from modegap.kernels.dispatch import register

from .field import of_zeros, power, scaled, signed


def _always(*_: object) -> str:
    return "table of 256, byte by byte"


@register("crc32c", "reference", supports=_always)
def crc32c(blocks: torch.Tensor) -> torch.Tensor:
    """Zero bytes in front change nothing of a sum that starts from zero, so every block is cut evenly."""
    n, m = blocks.shape[0], blocks.shape[1] * blocks.element_size()
    strips = 1 << max(math.ceil(math.log2(max(m, 1)) / 2), 0)
    length = -(-m // strips)
    padded = torch.zeros((n, strips * length), dtype=torch.uint8, device=blocks.device)
    padded[:, strips * length - m :] = blocks.contiguous().view(torch.uint8).view(n, m)
    table = scaled(torch.arange(256, device=blocks.device), power(8))
    state = torch.zeros((n, strips), dtype=torch.int64, device=blocks.device)
    for byte in padded.view(n, strips, length).unbind(2):
        state = state >> 8 ^ table[(state ^ byte) & 255]
    while state.shape[1] > 1:
        state = scaled(state[:, 0::2], power(8 * length)) ^ state[:, 1::2]
        length *= 2
    return signed(state[:, 0] ^ of_zeros(m)).view(torch.uint32)
