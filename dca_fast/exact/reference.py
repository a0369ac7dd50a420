"""The exact-colour coder in plain Python: the executable specification of its streams, written for clarity.

docs/spec/exact.md is the same in prose. Bands are independent. A band is coded pixel by pixel, row by row, as `Band`
says.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dca_fast.errors import CorruptStreamError
from dca_fast.exact.colours import BLOCK, Band, Map, Mode, Samples
from dca_fast.exact.decisions import Decoder, Encoder, log2_of
from dca_fast.exact.planes import Impossible
from dca_fast.leb128 import leb128, read_leb128

__all__ = ["MAX_STEP", "bands", "blocks", "decode", "encode", "merge_colours", "take"]

BAND_PIXELS = {False: 1 << 20, True: 1 << 23}  # at least, without and with candidates
MAX_BANDS = 64
MAX_STEP = 127
KEPT = 1024  # colours that rarer ones may become
BITS_OF_COLOUR, BITS_OF_PIXELS = 20, 26  # what a colour less saves: bits, and 1/256 of the entropy of its pixels
MOST_ERROR = 3 << 18  # what the error of a pixel costs, in 2^-20 bits: more is seen where colours are smooth


def bands(height: int, width: int, mode: Mode) -> list[tuple[int, int]]:
    """The first row of every band and the one behind it: a matter of the picture's size and the mode."""
    count = max(1, min(height * width // BAND_PIXELS[mode.candidates], height, MAX_BANDS))
    return [(height * i // count, height * (i + 1) // count) for i in range(count)]


def blocks(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of blocks of a picture."""
    return -(-height // BLOCK), -(-width // BLOCK)


def encode(
    samples: Samples, mode: Mode, inside: Map | None = None, spent: npt.NDArray[np.int64] | None = None
) -> bytes:
    """Code samples [H, W, 1 or 3], uint8 or uint16, as `coder.encode` does; `inside` and `spent` as of `Band.run`."""
    height, width, channels = samples.shape
    coded = []
    for top, bottom in bands(height, width, mode):
        coder = Encoder()
        band = Band(coder, bottom - top, width, channels, 8 * samples.dtype.itemsize, mode)
        band.run(samples[top:bottom], top, inside, spent)
        coded.append(coder.finish())
    return bytes([mode.byte()]) + b"".join(leb128(len(band)) for band in coded[:-1]) + b"".join(coded)


def decode(stream: bytes, height: int, width: int, channels: int, depth: int, inside: Map | None = None) -> Samples:
    """The reverse; samples of blocks that are not coded are 0.

    Raises:
        CorruptStreamError: no encoder makes such a stream.
    """
    mode, parts = _split(stream, height, width)
    samples: Samples = np.zeros((height, width, channels), np.uint8 if depth == 8 else np.uint16)
    for (top, bottom), part in zip(bands(height, width, mode), parts, strict=True):
        coder = Decoder(part)
        try:
            Band(coder, bottom - top, width, channels, depth, mode).run(samples[top:bottom], top, inside)
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
    cut = CorruptStreamError("exact colours: the stream ends inside a number")
    return read_leb128(stream, at, 5, cut, CorruptStreamError("exact colours: malformed number"))


def merge_colours(samples: Samples, inside: npt.NDArray[np.bool_], price: int) -> Samples:
    """Samples uint8 [H, W, 1 or 3] whose rarer colours have become more frequent ones, where that saves more bits than
    the error is worth: an encoder's choice, from the most frequent colour on.

    Args:
        inside: bool [H, W], which pixels count; the others become 0.
        price: of a squared error of one sample, in 2^-20 bits.
    """
    merged = np.zeros_like(samples)
    colours, numbers, pixels = np.unique(samples[inside], axis=0, return_inverse=True, return_counts=True)
    kept: list[int] = []
    became, counts = list(range(len(colours))), pixels.tolist()
    wide = colours.astype(np.int64)
    for i in sorted(range(len(colours)), key=lambda i: (-counts[i], i)):
        count = counts[i]
        if kept:
            distances = np.square(wide[kept] - wide[i]).sum(1)
            nearest = kept[int(distances.argmin())]
            rarity = log2_of(min(counts[nearest] + count, 0xFFFFFFFF)) - log2_of(count)
            saved = BITS_OF_COLOUR * 256 + (count * rarity * BITS_OF_PIXELS >> 8)
            if price * int(distances.min()) < min((saved << 12) // count, MOST_ERROR):
                became[i] = nearest
                counts[nearest] += count
                continue
        if len(kept) < KEPT:
            kept.append(i)
    merged[inside] = colours[np.array(became, np.intp)[numbers.ravel()]]
    return merged
