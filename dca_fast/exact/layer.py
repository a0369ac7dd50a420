"""Graphic blocks of a file with a network: the map of blocks and their exact colours, as a LAYER section holds them.

docs/spec/layer.md is the same in prose. A layer decodes without the picture that it is pasted onto.
"""

from __future__ import annotations

import numpy as np

from dca_fast.errors import CorruptStreamError
from dca_fast.exact import coder, reference
from dca_fast.exact.colours import Map, Samples
from dca_fast.exact.decisions import Coin, Decoder, Encoder, RangeCoder, single
from dca_fast.files.container import LAYER_DIGEST_BYTES
from dca_fast.leb128 import leb128

__all__ = ["pack", "unpack"]


def pack(samples: Samples, stream: bytes, inside: Map) -> bytes:
    """The payload of a LAYER section.

    Args:
        samples: uint8 [H, W, 1 or 3], zeros outside of the blocks.
        stream: of `coder.encode_blocks`.
        inside: the blocks, at least one.
    """
    encoder = Encoder()
    _walk(encoder, inside)
    blocks = encoder.finish()
    head = coder.digest_of(samples).to_bytes(LAYER_DIGEST_BYTES, "little") + leb128(int(np.count_nonzero(inside)))
    return head + leb128(len(blocks)) + blocks + stream


def unpack(
    payload: bytes, shape: tuple[int, int, int], *, threads: int = 1, python: bool = False
) -> tuple[Samples, Map]:
    """The reverse: samples uint8 of this shape, zeros outside of the blocks, and the blocks.

    Raises:
        CorruptStreamError: the payload is no layer of such a picture.
    """
    inside, stream = _split(payload, *shape[:2])
    digest = int.from_bytes(payload[:LAYER_DIGEST_BYTES], "little")
    return coder.decode(stream, shape, 8, digest, inside, threads=threads, python=python), inside


def _split(payload: bytes, height: int, width: int) -> tuple[Map, bytes]:
    """The blocks, and the stream of their samples."""
    count, start = reference.take(payload, LAYER_DIGEST_BYTES)
    size, start = reference.take(payload, start)
    end = start + size
    if end > len(payload):
        raise CorruptStreamError("exact colours: the map of blocks is larger than the layer")
    if payload[start:end].endswith(b"\0"):
        raise CorruptStreamError("exact colours: the map of blocks ends with a byte that is not needed")
    inside = np.zeros(reference.blocks(height, width), np.bool_)
    decoder = Decoder(payload[start:end])
    _walk(decoder, inside)
    if not decoder.finished:
        raise CorruptStreamError("exact colours: bytes are left over behind the map of blocks")
    if count == 0 or np.count_nonzero(inside) != count:
        raise CorruptStreamError(f"exact colours: the map has not {count} blocks")
    return inside, payload[end:]


def _walk(coder: RangeCoder, inside: Map) -> None:
    """Code the map row by row, read by the encoder, written by the decoder: by the blocks on the left, above, and above
    on the right."""
    rows, columns = inside.shape
    coins = [Coin() for _ in range(8)]
    above = [0] * (columns + 1)
    for y in range(rows):
        here, w = [0] * (columns + 1), 0
        for x, bit in enumerate(inside[y].tolist()):
            w = single(coder, bit, coins[w + 2 * above[x] + 4 * above[x + 1]], (11, 29))
            here[x] = w
        inside[y] = here[:-1]
        above = here
