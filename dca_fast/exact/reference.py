"""The exact-colour coder in plain Python: the executable specification of its streams, written for clarity.

docs/spec/exact.md is the same in prose. Bands are independent. A band is coded pixel by pixel, row by row, as `Band`
says.
"""

from __future__ import annotations

import numpy as np

from dca_fast.errors import CorruptStreamError
from dca_fast.exact.colours import Band, Mode, Samples
from dca_fast.exact.decisions import Decoder, Encoder
from dca_fast.exact.planes import Impossible
from dca_fast.leb128 import leb128

__all__ = ["MAX_STEP", "bands", "decode", "encode", "take"]

BAND_PIXELS = {False: 1 << 20, True: 1 << 23}  # at least, without and with candidates
MAX_BANDS = 64
MAX_STEP = 127


def bands(height: int, width: int, mode: Mode) -> list[tuple[int, int]]:
    """The first row of every band and the one behind it: a matter of the picture's size and the mode."""
    count = max(1, min(height * width // BAND_PIXELS[mode.candidates], height, MAX_BANDS))
    return [(height * i // count, height * (i + 1) // count) for i in range(count)]


def encode(samples: Samples, mode: Mode) -> bytes:
    """Code samples [H, W, 1 or 3], uint8 or uint16, as `coder.encode` does."""
    height, width, channels = samples.shape
    coded = []
    for top, bottom in bands(height, width, mode):
        coder = Encoder()
        Band(coder, bottom - top, width, channels, 8 * samples.dtype.itemsize, mode).run(samples[top:bottom])
        coded.append(coder.finish())
    return bytes([mode.byte()]) + b"".join(leb128(len(band)) for band in coded[:-1]) + b"".join(coded)


def decode(stream: bytes, height: int, width: int, channels: int, depth: int) -> Samples:
    """The reverse.

    Raises:
        CorruptStreamError: no encoder makes such a stream.
    """
    mode, parts = _split(stream, height, width)
    samples: Samples = np.zeros((height, width, channels), np.uint8 if depth == 8 else np.uint16)
    for (top, bottom), part in zip(bands(height, width, mode), parts, strict=True):
        coder = Decoder(part)
        try:
            Band(coder, bottom - top, width, channels, depth, mode).run(samples[top:bottom])
        except Impossible:
            raise CorruptStreamError("exact colours: a value is outside of its range") from None
        if not coder.finished:
            raise CorruptStreamError("exact colours: bytes are left over behind a band")
    return samples


def _split(stream: bytes, height: int, width: int) -> tuple[Mode, list[bytes]]:
    """The mode, and the bytes of every band."""
    if not stream:
        raise CorruptStreamError("exact colours: the stream is empty")
    mode = Mode(bool(stream[0] & 1), bool(stream[0] & 2), 2 * (stream[0] >> 2) + 1)
    if (mode.index and not mode.candidates) or (mode.step > 1 and mode.candidates):
        raise CorruptStreamError("exact colours: unknown mode of coding")
    at, parts = 1, []
    sizes = []
    for _ in bands(height, width, mode)[1:]:
        size, at = take(stream, at)
        sizes.append(size)
    sizes.append(len(stream) - at - sum(sizes))
    if sizes[-1] < 0:
        raise CorruptStreamError("exact colours: the bands are larger than the stream")
    for size in sizes:
        parts.append(stream[at : at + size])
        at += size
    if any(part.endswith(b"\0") for part in parts):
        raise CorruptStreamError("exact colours: a band ends with a byte that is not needed")
    return mode, parts


def take(stream: bytes, at: int) -> tuple[int, int]:
    """A number in LEB128, and what is behind it.

    Raises:
        CorruptStreamError: none, or not in the fewest bytes.
    """
    value = 0
    for shift in range(0, 35, 7):
        if at >= len(stream):
            raise CorruptStreamError("exact colours: the stream ends inside a number")
        byte = stream[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 and shift:
                break
            return value, at
    raise CorruptStreamError("exact colours: malformed number")
