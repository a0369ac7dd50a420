"""Samples to the bytes of the exact-colour coder and back, on the fastest path here; the choice of the encoder."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from dca_fast.errors import CorruptStreamError, InputError
from dca_fast.exact import reference
from dca_fast.exact.colours import BLOCK, Map, Mode, Samples
from dca_fast.leb128 import leb128

try:
    from dca_fast import _exact
except ImportError as error:
    _native: Any = None
    _reason = f"the native exact-colour coder is not built: {error}"
else:
    _native = _exact
    _reason = "native exact-colour coder"

__all__ = [
    "available",
    "decode",
    "digest_of",
    "encode",
    "encode_blocks",
    "likeness",
    "merge_colours",
    "pack_plane",
    "pixels_inside",
    "unpack_plane",
]

# Of pixels like at least two of their four neighbours, in 1/256: photographs are below the first, clean graphics above
# the second; in between the encoder tries what takes fewer bytes.
PHOTOGRAPH, GRAPHIC = 96, 160


def available() -> tuple[bool, str]:
    """Say whether the native coder can run, or why it cannot."""
    return _native is not None, _reason


def likeness(samples: Samples) -> int:
    """How many pixels equal at least two of the four beside them, in 1/256.

    Args:
        samples: [H, W, C].
    """
    across = (samples[:, 1:] == samples[:, :-1]).all(2)
    down = (samples[1:] == samples[:-1]).all(2)
    count = np.zeros(samples.shape[:2], np.uint8)
    count[:, 1:] += across
    count[:, :-1] += across
    count[1:] += down
    count[:-1] += down
    return int(np.count_nonzero(count >= 2)) * 256 // count.size


def has_palette(samples: Samples) -> bool:
    """Whether samples [H, W, 3] have at most 256 colours, as dithered ones have, of which few neighbours are alike."""
    if samples.shape[2] != 3:
        return False
    r, g, b = np.moveaxis(samples.astype(np.uint64), 2, 0)
    colours = (r << 32 | g << 16 | b).ravel()
    return all(np.unique(some).size <= 256 for some in (colours[:4096], colours))  # most fail on the first few


def _modes(samples: Samples) -> list[Mode]:
    """What is worth trying."""
    alike = likeness(samples)
    if alike < PHOTOGRAPH and not has_palette(samples):
        return [Mode()]
    if alike >= GRAPHIC and samples.shape[2] == 3:
        return [Mode(candidates=True, index=True)]
    return [Mode(), Mode(candidates=True), Mode(candidates=True, index=True)]


def digest_of(samples: Samples) -> int:
    """CRC-32 of the samples, row by row, those of 16 bits with the low byte first."""
    return zlib.crc32(np.ascontiguousarray(samples, samples.dtype.newbyteorder("<")).data)


def encode(samples: Samples, *, step: int = 1, threads: int = 1, python: bool = False) -> bytes:
    """Code samples without loss, or with steps.

    Args:
        samples: [H, W, 1 or 3], uint8 or uint16.
        step: odd, 1..127. 1: no loss; else samples are off by at most step // 2 in gray and green, and by twice that in
            red and blue.
        threads: at most so many, one for a band; they change no byte.
        python: use the reference.

    Returns:
        The stream; equal samples give equal bytes on every machine.

    Raises:
        InputError: another shape or type, or a step that there is not.
    """
    if samples.ndim != 3 or samples.shape[2] not in (1, 3) or samples.dtype not in (np.uint8, np.uint16):
        raise InputError(f"samples are [H, W, 1 or 3] of 8 or 16 bits, not {list(samples.shape)} {samples.dtype}")
    if 0 in samples.shape:
        raise InputError("the image has no pixels")
    if not 1 <= step <= reference.MAX_STEP or step % 2 == 0:
        raise InputError(f"step is an odd number within 1..{reference.MAX_STEP}, got {step}")
    head, array = (b"", samples) if samples.dtype == np.uint8 else _reduced(samples)
    array = np.ascontiguousarray(array)
    modes = [Mode(step=step)] if step > 1 else _modes(array)
    stream = min((_encode(array, mode, threads, python) for mode in modes), key=len)
    return stream[:1] + head + stream[1:]


def _reduced(samples: Samples) -> tuple[bytes, Samples]:
    """Samples of 16 bits as numbers on the grid that they lie on, in 8 bits if those suffice; the grid."""
    least = int(samples.min())
    factor = max(1, int(np.gcd.reduce(samples - samples.dtype.type(least), axis=None)))
    numbers = (samples - samples.dtype.type(least)) // samples.dtype.type(factor)
    head = leb128(factor) + leb128(least)
    return head, numbers.astype(np.uint8) if _fits_8_bits(factor, least) else numbers


def _fits_8_bits(factor: int, least: int) -> bool:
    return (65535 - least) // factor < 256


def _encode(samples: Samples, mode: Mode, threads: int, python: bool) -> bytes:
    if python or _native is None:
        return reference.encode(samples, mode)
    stream: bytes = _native.encode(samples, mode.candidates, mode.index, mode.step, threads)
    return stream


def encode_blocks(
    samples: Samples, inside: Map, *, threads: int = 1, python: bool = False
) -> tuple[bytes, npt.NDArray[np.int64]]:
    """Code some blocks of a picture, without loss, with candidates: by number, too, where there are three colours.

    Args:
        samples: uint8 [H, W, 1 or 3].
        inside: the blocks.
        threads, python: as of `encode`.

    Returns:
        The stream, and what every block takes, in 1/256 bits.
    """
    mode = Mode(candidates=True, index=samples.shape[2] == 3)
    if python or _native is None:
        spent = np.zeros(inside.shape, np.int64)
        return reference.encode(samples, mode, inside, spent), spent
    coded: tuple[bytes, npt.NDArray[np.int64]]
    coded = _native.encode_blocks(samples, inside.view(np.uint8), mode.candidates, mode.index, threads)
    return coded


def merge_colours(samples: Samples, inside: Map, price: int, *, python: bool = False) -> Samples:
    """Fewer colours, near those that are there, for fewer bits (`reference.merge_colours`).

    Args:
        samples: uint8 [H, W, 1 or 3].
        inside: blocks that count; samples of the others become 0.
        price: of a squared error of one sample, in 2^-20 bits, at most 2^20.
        python: use the reference.
    """
    if python or _native is None:
        return reference.merge_colours(samples, pixels_inside(inside, *samples.shape[:2]), price)
    merged: Samples = _native.merge_colours(samples, inside.view(np.uint8), price)
    return merged


def pixels_inside(inside: Map, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Blocks as pixels, bool [H, W]."""
    return inside.repeat(BLOCK, 0).repeat(BLOCK, 1)[:height, :width]


def decode(
    stream: bytes,
    shape: tuple[int, int, int],
    depth: int,
    digest: int | None,
    inside: Map | None = None,
    *,
    threads: int = 1,
    python: bool = False,
) -> Samples:
    """The reverse of `encode`, checked.

    Args:
        stream: of `encode`.
        shape: height and width (1..65535), and 1 or 3 channels.
        depth: 8 or 16.
        digest: of the samples that are decoded, as of `digest_of`; None for a stream that was made here.
        inside: of 8 bits, the blocks that are coded; samples of the others are 0. None: all are.
        threads: at most so many, one for a band.
        python: use the reference.

    Returns:
        Samples of this shape, uint8 or uint16.

    Raises:
        CorruptStreamError: no encoder makes such a stream, or it holds other samples.
    """
    if depth == 8:
        samples = _decode(stream, shape, 8, threads, python, inside)
    else:
        factor, at = reference.take(stream, min(1, len(stream)))
        least, at = reference.take(stream, at)
        if not (1 <= factor <= 65535 and least <= 65535):
            raise CorruptStreamError("exact colours: a grid of samples that there is not")
        numbers = _decode(stream[:1] + stream[at:], shape, 8 if _fits_8_bits(factor, least) else 16, threads, python)
        if int(numbers.max()) * factor + least > 65535:
            raise CorruptStreamError("exact colours: a value is outside of its range")
        samples = numbers.astype(np.uint16) * np.uint16(factor) + np.uint16(least)
    if digest is not None and digest_of(samples) != digest:
        raise CorruptStreamError("exact colours: the decoded samples do not have the digest in the file")
    return samples


def _decode(
    stream: bytes, shape: tuple[int, int, int], depth: int, threads: int, python: bool, inside: Map | None = None
) -> Samples:
    if python or _native is None:
        return reference.decode(stream, *shape, depth, inside)
    blocks = None if inside is None else inside.view(np.uint8)
    try:
        samples: Samples = (_native.decode8 if depth == 8 else _native.decode16)(stream, *shape, threads, blocks)
    except _native.Error as error:
        raise CorruptStreamError(f"exact colours: {error}") from None
    return samples


def pack_plane(plane: npt.NDArray[Any], *, threads: int = 1, python: bool = False) -> bytes:
    """The payload of an ALPHA section: digest and stream of one plane [H, W]."""
    samples = plane[:, :, None]
    return digest_of(samples).to_bytes(4, "little") + encode(samples, threads=threads, python=python)


def unpack_plane(
    payload: bytes, height: int, width: int, depth: int, *, threads: int = 1, python: bool = False
) -> Samples:
    """The reverse: [H, W].

    Raises:
        CorruptStreamError: the payload is not exactly one plane of this size.
    """
    digest = int.from_bytes(payload[:4], "little")
    return decode(payload[4:], (height, width, 1), depth, digest, threads=threads, python=python)[:, :, 0]
