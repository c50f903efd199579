"""The CRC is CRC32C, whoever computes it."""

from __future__ import annotations

import random

import pytest
from crc32c import crc32c

from raystream import checksum


def test_the_check_value_of_the_standard() -> None:
    assert checksum.crc32c(b"123456789") == 0xE3069283
    assert checksum.crc32c(b"") == 0


@pytest.mark.parametrize("size", [checksum.LARGE_BYTES - 1, checksum.LARGE_BYTES, 3 * checksum.LARGE_BYTES + 7])
def test_every_implementation_gives_the_same(size: int) -> None:
    pytest.importorskip("awscrt")
    data = random.Random(size).randbytes(size)
    expected = crc32c(data)
    for view in (data, bytearray(data), memoryview(data), memoryview(bytearray(data)).toreadonly()):
        assert checksum.crc32c(view) == checksum._for_large()(view, 0) == expected
    assert checksum.crc32c(data[100:], checksum.crc32c(data[:100])) == expected
    assert checksum.crc32c(data[size - 100 :], checksum.crc32c(data[: size - 100])) == expected
