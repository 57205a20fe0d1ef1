"""The checksum's oracle against the library that the stores use; the Triton kernel is held to the same cases."""

import numpy as np
import pytest
import torch

from modegap.kernels import crc32c, last_path
from modegap.kernels.crc32c import field
from modegap.stores import checksum


def expected(blocks):
    return [checksum.crc32c(block.tobytes()) for block in blocks.numpy()]


def test_published_values():
    """RFC 3720, B.4, and the check value of the catalogue of CRCs."""
    known = {
        b"123456789": 0xE3069283,
        bytes(32): 0x8A9136AA,
        b"\xff" * 32: 0x62A8AB43,
        bytes(range(32)): 0x46DD794E,
    }
    for data, value in known.items():
        found = crc32c(torch.frombuffer(bytearray(data), dtype=torch.uint8)[None])
        assert found.dtype is torch.uint32
        assert found.tolist() == [value]
    assert last_path("crc32c").name == "reference"


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 31, 33, 1000, 65_537])
def test_any_length(length):
    blocks = torch.from_numpy(np.random.default_rng(length).integers(0, 256, (3, length), dtype=np.uint8))
    assert crc32c(blocks).tolist() == expected(blocks)
    assert crc32c(torch.zeros_like(blocks)).tolist() == expected(torch.zeros_like(blocks))


def test_other_dtypes_and_strided_blocks():
    rows = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)).half()
    assert crc32c(rows[::2, :33]).tolist() == expected(rows[::2, :33])
    assert crc32c(rows[:0]).tolist() == []
    for bad in (rows.T, rows[0], rows[:, ::2]):
        with pytest.raises(ValueError, match="contiguous blocks"):
            crc32c(bad)
    with pytest.raises(ValueError, match="at most 2147483647"):
        crc32c(torch.empty(1, 2**31, dtype=torch.uint8, device="meta"))


def test_powers_of_x():
    """x^31 is the last bit; x^32 is the polynomial; exponents add; the multiplicative order divides 2^31 - 1."""
    assert field.power(31) == 1
    assert field.power(32) == field.POLYNOMIAL
    assert field.times(field.power(1000), field.power(77)) == field.power(1077)
    assert field.power(2**31 - 1) == field.ONE
    assert field.powers(7, 5).tolist() == [field.power(7 * k) for k in range(5)]
    for length in (0, 1, 100):
        assert field.of_zeros(length) == checksum.crc32c(bytes(length))
