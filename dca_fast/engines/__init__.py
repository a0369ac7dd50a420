"""One engine for each kind of device: pixels to streams and back. The codec knows this protocol, nothing below it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from dca_fast.files.container import Header
from dca_fast.network.program import Program
from dca_fast.network.weights import Weights
from dca_fast.ops import Array, Arrays, Ops
from dca_fast.region import Region

Progress = Callable[[float], None]


class Encoded(NamedTuple):
    """A picture in a stream: its bytes, the digest of its symbols, and the coefficients of its restoration filter."""

    stream: bytes
    digest: int
    restoration: tuple[int, ...]


class Engine(Protocol):
    """Safe to share between threads.

    Attributes:
        weights, ops, arrays: with which it computes.
        device: what it computes on, as PyTorch names it.
        together: how many pictures `encode_batch` and `decode_batch` are given at a time.
        takes_tensors: whether pictures are tensors of its device, in both directions, so that they can stay there.
    """

    weights: Weights
    ops: Ops
    arrays: Arrays
    device: Any
    takes_tensors: bool
    together: int

    def image(self, pixels: Any) -> Array:
        """Pixels uint8 [H, W, 3], an array or a tensor, as an array of the engine."""

    def program(self, quality: int, aq: int = 0) -> Program:
        """The integer network at a quality in 1/100 and a strength of adaptive quantisation, 0..15."""

    def encode(self, image: Array, quality: int, effort: int, aq: int, progress: Progress | None = None) -> Encoded:
        """Compress an image.

        Args:
            image: of `image`.
            quality: in 1/100, 0..10000.
            effort: 0..9.
            aq: strength of adaptive quantisation, 0..15.
            progress: told how much is done, 0..1, from effort 2 on.

        Raises:
            DeviceMemoryError: the device has too little memory.
        """

    def decode(self, stream: bytes, header: Header, region: Region) -> tuple[Array, int]:
        """Decompress a region of a stream, without its restoration filter.

        Returns:
            uint8 [height, width, 3] of the region, and the digest of the symbols.

        Raises:
            BitstreamError: one of its kinds.
            DeviceMemoryError: as in `encode`.
        """

    def encode_batch(self, images: Sequence[Array], quality: int, effort: int, aq: int) -> list[Encoded]:
        """`encode` of each, with the same result."""

    def decode_batch(self, streams: Sequence[bytes], headers: Sequence[Header]) -> list[tuple[Array, int]]:
        """`decode` of each as a whole, with the same result."""

    def preview(self, stream: bytes, header: Header, reduce: int) -> tuple[Array, int] | None:
        """A small picture of a stream, with a pixel for `reduce` by `reduce`, from the latent alone.

        Returns:
            As `decode`, uint8 [ceil(H / reduce), ceil(W / reduce), 3]; None: the weights have no layer for it.

        Raises:
            BitstreamError, DeviceMemoryError: as `decode`.
        """

    def restore(self, picture: Array, coefficients: tuple[int, ...]) -> Array:
        """The restoration filter: uint8 [H, W, 3] to the same."""

    def warm_up(self, height: int, width: int, effort: int, aq: int) -> None:
        """Prepare for images of one size, in pixels."""
