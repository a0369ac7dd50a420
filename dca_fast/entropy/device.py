"""The entropy coder on a CUDA device: the streams of coder.py, with symbols and rows that never leave the device.

The kernels are called with raw pointers on PyTorch's current stream; see cuda_library.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from dca_fast.entropy import cuda_library
from dca_fast.entropy.coder import LANES, MAX_GROUPS, SAMPLES, choose_layout
from dca_fast.entropy.cuda_library import Library
from dca_fast.entropy.tables import ROWS, Tables
from dca_fast.errors import (
    BackendUnavailableError,
    ConfigError,
    CorruptStreamError,
    InputError,
    LimitExceededError,
    TruncatedStreamError,
)

__all__ = ["DeviceCoder", "DeviceDecoder", "Encoded", "available"]

MAX_POSITIONS = 1 << 30  # of all parts of one image
_HEAD = np.dtype([("status", "<u4"), ("digest", "<u4"), ("size", "<u8")])  # how the device's state begins
_BAD_ROW, _TRUNCATED, _LEFT_OVER, _WRONG_STATE = 1, 2, 4, 8


def available() -> tuple[bool, str]:
    """Say whether the coder runs on the current CUDA device, and with which library or why not; may build it."""
    try:
        return True, str(_library(_cuda_device(None)).path)
    except BackendUnavailableError as error:
        return False, str(error)


def _cuda_device(device: torch.device | str | None) -> torch.device:
    """A CUDA device with its index."""
    if not torch.cuda.is_available():
        raise BackendUnavailableError("PyTorch sees no CUDA device")
    chosen = torch.device("cuda" if device is None else device)
    if chosen.type != "cuda":
        raise BackendUnavailableError(f"this coder runs on CUDA devices, not on {chosen}")
    return torch.device("cuda", torch.cuda.current_device() if chosen.index is None else chosen.index)


def _library(device: torch.device) -> Library:
    major, minor = torch.cuda.get_device_capability(device)
    return cuda_library.load(f"sm_{major}{minor}")


@contextmanager
def _queue(device: torch.device) -> Iterator[int]:
    """Make the device current; the handle of its current stream."""
    with torch.cuda.device(device):
        yield torch.cuda.current_stream(device).cuda_stream


def _check(name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device) -> int:
    """Refuse what the kernels cannot read; the number of elements."""
    if not isinstance(tensor, Tensor):
        raise InputError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.device != device:
        raise InputError(f"{name} must be on {device}, is on {tensor.device}")
    if tensor.dtype != dtype or tensor.dim() != 1 or not tensor.is_contiguous():
        raise InputError(f"{name} must be a contiguous 1-D {dtype} tensor, got {tensor.dtype} {list(tensor.shape)}")
    if tensor.numel() > MAX_POSITIONS:
        raise InputError(f"{name} has {tensor.numel()} elements, {MAX_POSITIONS} allowed")
    return tensor.numel()


def _read_head(state: Tensor) -> np.void:
    """Wait for the device and read how its state begins. Raises what the status says."""
    head: np.void = np.frombuffer(state[: _HEAD.itemsize].cpu().numpy().tobytes(), _HEAD)[0]
    status = int(head["status"])
    if status & _BAD_ROW:
        raise InputError("a row is neither a table row nor 255")
    if status & _TRUNCATED:
        raise TruncatedStreamError("a coder group ends before its symbols")
    if status & _WRONG_STATE:
        raise CorruptStreamError("the final coder states are wrong")
    if status & _LEFT_OVER:
        raise CorruptStreamError("coder words are left over")
    return head


class DeviceCoder:
    """Encodes and decodes streams on one CUDA device. Safe to share between threads and streams.

    All work is put into PyTorch's current stream of the device. Only `encode`, `estimate_bytes`, `Encoded.read` and
    `DeviceDecoder.finish` and `check` wait for the device.

    Args:
        tables: probability tables, part of the model.
        device: a CUDA device; default the current one.

    Raises:
        WeightsError: the tables are inconsistent.
        BackendUnavailableError: no device, or no library for it and no way to build one.
    """

    def __init__(self, tables: Tables, device: torch.device | str | None = None) -> None:
        tables.validate()
        self.device = _cuda_device(device)
        self.library = _library(self.device)
        self._row_bits = np.rint(tables.row_bits() * 256).astype(np.int64)
        host = torch.zeros(self.library.call("table_bytes"), dtype=torch.uint8, device="cpu")
        freq = np.ascontiguousarray(tables.freq)
        shift = np.ascontiguousarray(tables.shift)
        searched = self.library.call("tables", freq.ctypes.data, shift.ctypes.data, host.data_ptr())
        with _queue(self.device):
            self.staged_bytes = self.library.call("stage", searched)  # 0: too large for shared memory
            self.tables = host.to(self.device)

    def estimate_bytes(self, rows: Sequence[Tensor]) -> int:
        """Expected size of the coded symbols, from a sample: the same number as on the CPU. Waits for the device.

        Args:
            rows: of each part, [n] uint8.

        Returns:
            Bytes, for `choose_layout`.
        """
        sizes = [_check("rows", r, torch.uint8, self.device) for r in rows]
        strides = [size // SAMPLES | 1 for size in sizes]
        counts = torch.zeros(len(rows), 256, dtype=torch.int32, device=self.device)
        with _queue(self.device) as queue:
            for r, size, stride, row_counts in zip(rows, sizes, strides, counts, strict=True):
                self.library.launch("histogram", r.data_ptr(), size, stride, row_counts.data_ptr(), queue)
            host = counts[:, :ROWS].cpu().numpy().astype(np.int64)
        total = 0
        for size, stride, row_counts in zip(sizes, strides, host, strict=True):
            total += int(row_counts @ self._row_bits) * size // max(1, -(-size // stride))
        return total // (256 * 8)

    def encode(
        self, parts: Sequence[tuple[Tensor, Tensor]], lanes: int | None = None, groups: int | None = None
    ) -> bytes:
        """Encode all parts of an image into one stream; waits for the device.

        Args:
            parts: (values, rows) in decoding order; values [n] int16, rows [n] uint8: a table row or 255.
                Where the row is 255 nothing is coded and the value is ignored.
            lanes: 1, 2, 4, 8, 16 or 32; None to choose by the expected size.
            groups: 1 .. 64 independent streams; None to choose by the expected size.

        Returns:
            The stream, the same bytes as on the CPU.

        Raises:
            InputError: a tensor of the wrong shape, type, device or content.
            ConfigError: lanes or groups out of range.
        """
        if lanes is None or groups is None:
            chosen = choose_layout(self.estimate_bytes([rows for _, rows in parts]))
            lanes, groups = chosen[0] if lanes is None else lanes, chosen[1] if groups is None else groups
        return self.start_encode(parts, lanes, groups).read()[0]

    def start_encode(self, parts: Sequence[tuple[Tensor, Tensor]], lanes: int, groups: int) -> Encoded:
        """As `encode`, without waiting for the device; can be captured in a CUDA graph."""
        if lanes not in LANES or not 1 <= groups <= MAX_GROUPS:
            raise ConfigError(f"no layout of {lanes} lanes in {groups} groups")
        sizes = [_check("rows", rows, torch.uint8, self.device) for _, rows in parts]
        for (values, _), size in zip(parts, sizes, strict=True):
            if _check("values", values, torch.int16, self.device) != size:
                raise InputError(f"values and rows differ in length ({values.numel()} and {size})")
        if sum(sizes) > MAX_POSITIONS:
            raise InputError(f"{sum(sizes)} positions, {MAX_POSITIONS} allowed")
        room = sum(2 * -(-size // groups) for size in sizes)  # words of a group: at most two per symbol
        words = self._empty(2 * room * groups)
        stream = self._empty(2 + 5 * groups + (4 * lanes + 2 * room) * groups)
        scratch = self._empty(self.library.call("encode_bytes", max(sizes, default=0)))
        state = self._empty(self.library.call("state_bytes"))
        tables, launch = self.tables.data_ptr(), self.library.launch
        s, w, tmp = state.data_ptr(), words.data_ptr(), scratch.data_ptr()
        with _queue(self.device) as queue:
            launch("encode_open", s, lanes, groups, room, queue)
            for (values, rows), size in zip(reversed(parts), reversed(sizes), strict=True):
                launch("encode", tables, s, values.data_ptr(), rows.data_ptr(), size, w, tmp, queue)
            launch("encode_close", s, w, stream.data_ptr(), queue)
            for (values, rows), size in zip(parts, sizes, strict=True):
                launch("digest", tables, values.data_ptr(), rows.data_ptr(), size, s, queue)
        return Encoded(stream, state)

    def decoder(
        self, stream: bytes | memoryview | None = None, *, capacity: int | None = None, positions: int | None = None
    ) -> DeviceDecoder:
        """Open a stream for decoding.

        Args:
            stream: the stream in host memory; None to give it to `DeviceDecoder.reset` later.
            capacity: largest stream that the decoder takes, bytes; default that of `stream`.
            positions: largest part, whose scratch memory is then allocated once; needed for CUDA graphs that are to
                share memory. Default: allocated for every part.

        Raises:
            TruncatedStreamError, CorruptStreamError: the stream's header or states are wrong.
            LimitExceededError: the stream is larger than `capacity`.
        """
        if capacity is None:
            if stream is None:
                raise ConfigError("a decoder without a stream needs a capacity")
            capacity = len(stream)
        return DeviceDecoder(self, stream, capacity, positions)

    def _empty(self, size: int) -> Tensor:
        return torch.empty(max(size, 1), dtype=torch.uint8, device=self.device)


class Encoded:
    """A stream on the device.

    Args:
        stream: uint8, the stream and unused room behind it.
        state: uint8, the encoder's state.
    """

    def __init__(self, stream: Tensor, state: Tensor) -> None:
        self.stream, self._state = stream, state

    def read(self) -> tuple[bytes, int]:
        """Wait for the device; on the stream that was current when encoding.

        Returns:
            The stream, and the CRC-32 of all values (0 where not coded) as little-endian int16.

        Raises:
            InputError: a row is neither a table row nor 255.
        """
        head = _read_head(self._state)
        return self.stream[: int(head["size"])].cpu().numpy().tobytes(), int(head["digest"])


class DeviceDecoder:
    """Decodes the parts of one stream after the other; see `DeviceCoder.decoder`. For one CUDA stream at a time.

    In a CUDA graph: `reset` outside, then `decode` of all parts into given outputs and `close` inside, then `check`
    outside. A recorded graph decodes every stream given to `reset`, of any layout.
    """

    def __init__(
        self, coder: DeviceCoder, stream: bytes | memoryview | None, capacity: int, positions: int | None
    ) -> None:
        if not 0 <= capacity < 1 << 31:
            raise ConfigError(f"capacity must be 0..2^31 - 1 bytes, got {capacity}")
        if positions is not None and not 0 <= positions <= MAX_POSITIONS:
            raise ConfigError(f"positions must be 0..{MAX_POSITIONS}, got {positions}")
        self._coder, self._library, self._capacity = coder, coder.library, capacity
        self._stream = coder._empty(capacity + 1)
        self._state = torch.zeros(self._library.call("state_bytes"), dtype=torch.uint8, device=coder.device)
        self._opened = False
        self._positions = positions
        self._scratch = None if positions is None else self._scratch_for(positions)
        if stream is not None:
            self.reset(stream)

    def _scratch_for(self, positions: int) -> Tensor:
        return self._coder._empty(self._library.call("decode_bytes", positions))

    def reset(self, stream: bytes | memoryview) -> None:
        """Start a new stream in the same buffers.

        Raises:
            TruncatedStreamError, CorruptStreamError, LimitExceededError: see `DeviceCoder.decoder`.
            BackendUnavailableError: while a graph is being captured.
        """
        stream, self._opened = bytes(stream), False
        if len(stream) > self._capacity:
            raise LimitExceededError(f"a stream of {len(stream)} bytes, the decoder was made for {self._capacity}")
        message = ctypes.create_string_buffer(80)
        to, state = self._stream.data_ptr(), self._state.data_ptr()
        with _queue(self._coder.device) as queue:
            fault = self._library.launch("reset", stream, len(stream), to, state, message, queue)
        if fault != 0:
            raise (TruncatedStreamError if fault == -1 else CorruptStreamError)(message.value.decode())
        self._opened = True

    def decode(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """Decode the next part and go on with the digest. Does not wait for the device.

        A damaged stream shows in `finish` or `check`; until then its values are arbitrary.

        Args:
            rows: [n] uint8, as given to the encoder.
            out: [n] int16; default a new tensor.

        Returns:
            `out`: 0 where the row is 255.

        Raises:
            InputError: a tensor of the wrong shape, type or device, or a part larger than planned.
            ConfigError: no stream was given.
        """
        if not self._opened:
            raise ConfigError("the decoder has no stream")
        device = self._coder.device
        size = _check("rows", rows, torch.uint8, device)
        out = torch.empty(size, dtype=torch.int16, device=device) if out is None else out
        if _check("out", out, torch.int16, device) != size:
            raise InputError(f"out and rows differ in length ({out.numel()} and {size})")
        if self._positions is not None and size > self._positions:
            raise InputError(f"a part of {size} positions, the decoder was made for {self._positions}")
        scratch = self._scratch_for(size) if self._scratch is None else self._scratch
        tables, state, values = self._coder.tables.data_ptr(), self._state.data_ptr(), out.data_ptr()
        launch, staged, words = self._library.launch, self._coder.staged_bytes, self._stream.data_ptr()
        with _queue(device) as queue:
            launch("decode", tables, staged, words, state, rows.data_ptr(), size, values, scratch.data_ptr(), queue)
            launch("digest", tables, values, None, size, state, queue)
        return out

    def close(self) -> None:
        """Let the device check that the stream ends exactly here; `check` tells the outcome."""
        with _queue(self._coder.device) as queue:
            self._library.launch("finish", self._state.data_ptr(), queue)

    def check(self) -> int:
        """Wait for the device and raise what it found up to here.

        Returns:
            The CRC-32 of all decoded values as little-endian int16.

        Raises:
            InputError: a row is neither a table row nor 255.
            TruncatedStreamError: the stream ends before its symbols.
            CorruptStreamError: words are left over or the final states are wrong.
        """
        return int(_read_head(self._state)["digest"])

    def finish(self) -> int:
        """`close`, then `check`; the CRC-32 of all decoded values."""
        self.close()
        return self.check()
