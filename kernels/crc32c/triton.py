"""sum_i w_i x^(32 (N - i)) mod P over GF(2), w_i the 32-bit words of a block: 17 XORs a word.

Lane l of S sums the words l, l + S, l + 2 S, ..., a polynomial in y = x^(32 S). With S a power of two, so that
squaring is linear, P(y) = P(x)^(32 S) = 0: a lane divides its words by P(y) as a shift register of 32 words does,
bit by bit of the words at once and with no carry between them. The last 32 words of each lane are what is
left; they are brought together by Horner's rule and multiplied by the lane's power of x.

Triton: on the host a store's checksums take a quarter of the cores that read it. One H100: eight blocks of 16 MiB in
66 us (2 TB/s), one in 35. Bytes: the blocks once. The programs' sums meet by atomic XOR, whose order changes
nothing.
"""

# The bodies of kernels are not Python: they have no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="assignment"
# ruff: noqa: RUF005

from __future__ import annotations

import threading
from functools import lru_cache

import torch
import triton
import triton.language as tl

from .._triton.config import Config, device_of, pick
from ..dispatch import register
from .field import columns, of_zeros, power, powers, scaled, signed

CONFIGS = {80: Config({"LANES": 128}, warps=4)}
WORDS = 512
"""Words a lane, at least, where there are as many: the last 32 cost as much as 400 others."""
MOST_LANES = 16_384
_launch = threading.Lock()
"""Threads that read a store may be the first here, and one compilation is enough."""


@triton.jit
def _feedback(q):
    """What a word is XORed with: the terms of P below x^32, of the quotient's last 32 words, oldest first."""
    low = q[0] ^ q[6] ^ q[8] ^ q[9] ^ q[10] ^ q[11] ^ q[13] ^ q[14]
    return low ^ q[18] ^ q[19] ^ q[20] ^ q[22] ^ q[23] ^ q[25] ^ q[26] ^ q[27] ^ q[28]


@triton.jit
def _word(words, at, PADDED: tl.constexpr):
    if PADDED:
        return tl.load(words + at, mask=at >= 0, other=0)
    else:
        return tl.load(words + at)


@triton.jit(do_not_specialize=["stride", "lanes", "rows", "pad"])
def crc32c_kernel(
    words, steps, shifts, out, stride, lanes, rows, pad, PADDED: tl.constexpr, LANES: tl.constexpr
):
    """LANES of one block's `lanes`; each has `rows` words, a multiple of 32; the first `pad` of all are zeros."""
    groups = lanes // LANES
    block = tl.program_id(0) // groups
    lane = tl.program_id(0) % groups * LANES + tl.arange(0, LANES)
    words += block.to(tl.int64) * stride
    nothing = tl.zeros((LANES,), tl.int32)
    q = (nothing,)
    for _ in tl.static_range(5):
        q = q + q
    for row in range(0, rows - 32, 32):
        for k in tl.static_range(32):
            word = _word(words, (row + k) * lanes + lane - pad, PADDED)
            q = q[1:] + (word ^ _feedback(q),)
    column = (tl.load(steps),)
    for bit in tl.static_range(1, 32):
        column = column + (tl.load(steps + bit),)
    total = nothing
    for row in range(rows - 32, rows):
        word = _word(words, row * lanes + lane - pad, PADDED) ^ _feedback(q)
        q = q[1:] + (nothing,)
        for bit in tl.static_range(32):
            word ^= (total << (31 - bit)) >> 31 & column[bit]
        total = word
    shift = tl.load(shifts + lane)
    found = nothing
    for bit in tl.static_range(32):
        found ^= (total << bit) >> 31 & shift
        shift = (shift >> 1) & 0x7FFFFFFF ^ (-(shift & 1) & -2097792136)
    tl.atomic_xor(out + block, tl.xor_sum(found, axis=0), sem="relaxed")


@lru_cache(maxsize=64)
def _tables(lanes: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns of y = x^(32 lanes), and what each lane's sum is multiplied by: x^(32 (lanes - l))."""
    steps = torch.tensor(columns(power(32 * lanes)))
    shifts = scaled(powers(32, lanes), power(32)).flip(0)
    return signed(steps).to(device), signed(shifts).to(device)


def _cuda(blocks: torch.Tensor) -> str | None:
    step = blocks.stride(0) * blocks.element_size()
    whole = blocks.shape[1] * blocks.element_size() % 4 == 0 and step % 4 == 0 and blocks.data_ptr() % 4 == 0
    return "17 XORs a word, lanes in parallel" if blocks.is_cuda and blocks.numel() and whole else None


@register("crc32c", "triton", supports=_cuda)
def crc32c(blocks: torch.Tensor) -> torch.Tensor:
    """Blocks of whole words; zero words in front, which change nothing, make the lanes equally long."""
    config = pick(CONFIGS, blocks.device)
    least = int(config.blocks["LANES"])
    words = blocks.view(torch.int32)
    count = words.shape[1]
    lanes = least
    while lanes < MOST_LANES and 2 * lanes * WORDS <= count:
        lanes *= 2
    rows = -(-count // (32 * lanes)) * 32
    pad = rows * lanes - count
    with _launch, device_of(blocks):
        steps, shifts = _tables(lanes, blocks.device)
        begin = of_zeros(4 * count)
        out = torch.full((len(words),), begin - (begin >> 31 << 32), dtype=torch.int32, device=blocks.device)
        crc32c_kernel[(lanes // least * len(words),)](
            words, steps, shifts, out, words.stride(0), lanes, rows, pad, PADDED=pad > 0, **config.launch
        )
    return out.view(torch.uint32)
