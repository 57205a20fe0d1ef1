"""Arithmetic behind CRC-32C: polynomials over GF(2) modulo x^32 + 0x1EDC6F41, in the checksum's bit order.

Bit 31 of a number is the coefficient of x^0, bit 0 that of x^31. In these terms a checksum is
sum_i w_i x^(32 (N - i)) over the N little-endian words of a message, plus what its length alone gives.
"""

from __future__ import annotations

from functools import lru_cache

import torch

POLYNOMIAL = 0x82F63B78
"""The low 32 coefficients of the modulus."""
ONE = 1 << 31
ALL = 2**32 - 1


def times(a: int, b: int) -> int:
    """The product of two polynomials."""
    product = 0
    while b:
        if b & ONE:
            product ^= a
        b = b << 1 & ALL
        a = a >> 1 ^ (POLYNOMIAL if a & 1 else 0)
    return product


@lru_cache(maxsize=256)
def power(exponent: int) -> int:
    """x to the `exponent`."""
    if exponent < 32:
        return ONE >> exponent
    half = power(exponent // 2)
    square = times(half, half)
    return times(square, ONE >> 1) if exponent % 2 else square


def of_zeros(length: int) -> int:
    """The checksum of `length` zero bytes: what every message of that length adds to its sum."""
    return times(ALL, power(8 * length)) ^ ALL


def columns(factor: int) -> list[int]:
    """What each bit of a number, from bit 0 on, becomes when it is multiplied by `factor`."""
    return [times(1 << bit, factor) for bit in range(32)]


def scaled(values: torch.Tensor, factor: int) -> torch.Tensor:
    """`values` (int64, of 32 bits) times `factor`."""
    product = torch.zeros_like(values)
    for bit, column in enumerate(columns(factor)):
        product ^= (values >> bit & 1) * column
    return product


def powers(step: int, count: int) -> torch.Tensor:
    """int64 [count]: x^0, x^step, x^(2 step), ..."""
    found = torch.tensor([ONE])
    while len(found) < count:
        found = torch.cat([found, scaled(found, power(step * len(found)))])
    return found[:count]


def signed(values: torch.Tensor) -> torch.Tensor:
    """int32 with the same 32 bits."""
    return torch.where(values > ALL >> 1, values - 2**32, values).to(torch.int32)
