"""The tiles of a large picture in its stream: a table of digests and sizes, then one stream for each of them
(docs/spec/bitstream.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from dca_fast.config import STRIDE
from dca_fast.entropy.coder import crc32
from dca_fast.errors import CorruptStreamError, TruncatedStreamError
from dca_fast.leb128 import leb128, read_leb128
from dca_fast.network.program import Program
from dca_fast.network.walk import Grid
from dca_fast.ops import Array
from dca_fast.region import Region

__all__ = ["checked", "join", "latent", "split"]

_DIGEST_BYTES = 4
# From the stream of a tile to its y_hat, [1, h, w, M], and the digest of its values.
Decode = Callable[[bytes, Grid], tuple[Array, int]]


def join(coded: Sequence[tuple[bytes, int]]) -> tuple[bytes, int]:
    """One stream and its digest, from those of each tile; those of an only tile are its own."""
    if len(coded) == 1:
        return coded[0]
    digests = [digest.to_bytes(_DIGEST_BYTES, "little") for _, digest in coded]
    sizes = [*(leb128(len(stream)) for stream, _ in coded[:-1]), b""]
    table = b"".join(digest + size for digest, size in zip(digests, sizes, strict=True))
    return table + b"".join(stream for stream, _ in coded), crc32(b"".join(digests), 0)


def split(stream: bytes, count: int) -> tuple[list[bytes], list[bytes]]:
    """The reverse of `join`: the stream of each tile, and the digests in the table, none for an only tile.

    Raises:
        TruncatedStreamError, CorruptStreamError: the table is no such one.
    """
    if count == 1:
        return [stream], []
    if len(stream) < count * (_DIGEST_BYTES + 1) - 1:
        raise TruncatedStreamError(f"the stream ends inside the table of its {count} tiles")
    digests, sizes, at = [], [], 0
    for _ in range(count):
        digests.append(stream[at : at + _DIGEST_BYTES])
        at += _DIGEST_BYTES
        if len(digests) < count:
            cut = TruncatedStreamError("the stream ends inside the table of its tiles")
            size, at = read_leb128(stream, at, 5, cut, CorruptStreamError("malformed size in the table of tiles"))
            sizes.append(size)
    if at + sum(sizes) > len(stream):
        raise TruncatedStreamError(f"the stream ends inside its {count} tiles")
    ends = list(accumulate([at, *sizes]))
    return [stream[first:last] for first, last in pairwise([*ends, len(stream)])], digests


def checked(digests: Sequence[bytes], decoded: Sequence[int | None]) -> int:
    """The digest of a stream, from those of its table and those decoded for each tile, None for one not decoded.

    Raises:
        CorruptStreamError: a tile has another one than the table says.
    """
    if not digests:
        (digest,) = decoded
        assert digest is not None
        return digest
    for i, (expected, digest) in enumerate(zip(digests, decoded, strict=True)):
        if digest is not None and digest != int.from_bytes(expected, "little"):
            raise CorruptStreamError(f"the decoded symbols of tile {i} do not have its digest")
    return crc32(b"".join(digests), 0)


def latent(
    program: Program, stream: bytes, grid: Grid, region: Region, decode: Decode
) -> tuple[Array, tuple[int, int], int]:
    """y_hat of the sites that a region depends on; no other tile's symbols are decoded.

    Args:
        program: at the file's quality.
        grid: of the picture.
        region: in pixels.
        decode: what decodes a tile.

    Returns:
        int16 [1, h, w, M], the pixel (top, left) that it begins at, and the digest of the stream.

    Raises:
        BitstreamError: one of its kinds.
    """
    (h, w), reach = grid.sites, program.reach
    top, left = max(0, region.top // STRIDE - reach), max(0, region.left // STRIDE - reach)
    bottom = min(h, -(-(region.top + region.height) // STRIDE) + reach)
    right = min(w, -(-(region.left + region.width) // STRIDE) + reach)
    begin = top * STRIDE, left * STRIDE
    tiles = grid.tiles()
    streams, digests = split(stream, len(tiles))
    decoded: list[int | None] = [None] * len(tiles)
    window: Array = None
    for i, (tile, own) in enumerate(zip(tiles, streams, strict=True)):
        first, last = max(top, tile.top), min(bottom, tile.bottom)
        begins, ends = max(left, tile.left), min(right, tile.right)
        if first >= last or begins >= ends:
            continue
        y_hat, decoded[i] = decode(own, tile.grid)
        part = y_hat[:, first - tile.top : last - tile.top, begins - tile.left : ends - tile.left]
        if part.shape[1:3] == (bottom - top, right - left):
            window = program.arrays.contiguous(part)
            continue
        if window is None:
            window = program.arrays.zeros(1, bottom - top, right - left, program.config.latent)
        window[:, first - top : last - top, begins - left : ends - left] = part
    return window, begin, checked(digests, decoded)
