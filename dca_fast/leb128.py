"""LEB128, as files and streams write sizes: seven bits per byte, lowest first, the top bit set on all but the last."""

from __future__ import annotations

__all__ = ["leb128"]


def leb128(value: int) -> bytes:
    """Return a number, at least 0, in the fewest bytes (docs/spec/bitstream.md)."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
