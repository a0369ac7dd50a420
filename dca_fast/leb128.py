"""LEB128, as files and streams write sizes: seven bits per byte, lowest first, the top bit set on all but the last."""

from __future__ import annotations

__all__ = ["leb128", "read_leb128"]


def leb128(value: int) -> bytes:
    """Return a number, at least 0, in the fewest bytes (docs/spec/bitstream.md)."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_leb128(data: bytes, start: int, most: int, cut: Exception, malformed: Exception) -> tuple[int, int]:
    """Read a number in the fewest bytes.

    Args:
        data, start: what it stands in, and where.
        most: bytes that it may have.
        cut: raised if the data ends inside of it.
        malformed: raised if it has more bytes than it needs or may have.

    Returns:
        The number, and the offset behind it.
    """
    value = 0
    for end in range(start + 1, start + most + 1):
        if end > len(data):
            raise cut
        value |= (data[end - 1] & 0x7F) << 7 * (end - 1 - start)
        if data[end - 1] < 0x80:
            if leb128(value) == bytes(data[start:end]):
                return value, end
            break
    raise malformed
