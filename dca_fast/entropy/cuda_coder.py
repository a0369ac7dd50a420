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
from dca_fast.entropy.coder import LANES, MAX_GROUPS, SAMPLES, choose_lanes
from dca_fast.entropy.cuda_library import Library
from dca_fast.entropy.tables import ROWS, SYMBOLS, Tables
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
_BAD_ROW, _TRUNCATED, _LEFT_OVER, _WRONG_STATE, _OFF_GRID = 1, 2, 4, 8, 16


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


def _check(name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device, dims: int = 1) -> int:
    """Refuse what the kernels cannot read; the number of elements."""
    if not isinstance(tensor, Tensor):
        raise InputError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.device != device:
        raise InputError(f"{name} must be on {device}, is on {tensor.device}")
    if tensor.dtype != dtype or tensor.dim() != dims or not tensor.is_contiguous():
        kind = f"contiguous {dims}-D {dtype} tensor"
        raise InputError(f"{name} must be a {kind}, got {tensor.dtype} {list(tensor.shape)}")
    if tensor.numel() > MAX_POSITIONS:
        raise InputError(f"{name} has {tensor.numel()} elements, {MAX_POSITIONS} allowed")
    return tensor.numel()


def _read_head(state: Tensor) -> np.void:
    """Wait for the device and read how its state begins. Raises what the status says."""
    head: np.void = np.frombuffer(state[: _HEAD.itemsize].cpu().numpy().tobytes(), _HEAD)[0]
    status = int(head["status"])
    if status & _BAD_ROW:
        raise InputError("a row is neither a table row nor 255")
    if status & _OFF_GRID:
        raise InputError("a value is not on the grid of its state")
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
        self._row_bits = np.rint(tables.mean_bits() * 256).astype(np.int64)
        host = torch.zeros(self.library.call("table_bytes"), dtype=torch.uint8, device="cpu")
        freq = np.ascontiguousarray(tables.freq)
        shift = np.ascontiguousarray(tables.shift)
        searched = np.zeros(2, np.uint32)  # in plain parts, in those of a trellis
        self.library.call("tables", freq.ctypes.data, shift.ctypes.data, host.data_ptr(), searched.ctypes.data)
        with _queue(self.device):
            # 0: too large for shared memory
            self.staged_bytes = [self.library.call("stage", trellis, int(searched[trellis])) for trellis in (0, 1)]
            self.tables = host.to(self.device)

    def estimate_bytes(self, rows: Sequence[Tensor], plain: int | None = None) -> int:
        """Expected size of the coded symbols, from a sample: the same number as on the CPU. Waits for the device.

        Args:
            rows: of each part, [n] uint8.
            plain: see `encode`.

        Returns:
            Bytes, for `choose_lanes`.
        """
        sizes = [_check("rows", r, torch.uint8, self.device) for r in rows]
        strides = [size // SAMPLES | 1 for size in sizes]
        counts = torch.zeros(len(rows), 256, dtype=torch.int32, device=self.device)
        with _queue(self.device) as queue:
            for r, size, stride, row_counts in zip(rows, sizes, strides, counts, strict=True):
                self.library.launch("histogram", r.data_ptr(), size, stride, row_counts.data_ptr(), queue)
            host = counts[:, :ROWS].cpu().numpy().astype(np.int64)
        plain, total = len(rows) if plain is None else plain, 0
        for i, (size, stride, row_counts) in enumerate(zip(sizes, strides, host, strict=True)):
            total += int(row_counts @ self._row_bits[int(i >= plain)]) * size // max(1, -(-size // stride))
        return total // (256 * 8)

    def quantise(self, residuals: Tensor, rows: Tensor, charges: Tensor, groups: int) -> Tensor:
        """Values of a trellis for one part: `dca_fast.entropy.trellis.quantise`, bit for bit.

        Does not wait for the device and can be captured in a CUDA graph: what a row holds beside 0..127 counts as 255,
        and it is `encode` that refuses it.

        Args:
            residuals: [n] int32, 1/256 quantiser steps.
            rows: [n] uint8: 0..127, or 255 where nothing is coded.
            charges: [2, 128, 256] int32 of `Tables.charges`, 0..2^24.
            groups: of the stream, 1..64.

        Returns:
            [n] int16, 0 where nothing is coded.

        Raises:
            InputError: a tensor of the wrong shape, type or device.
            ConfigError: groups out of range.
        """
        size = _check("rows", rows, torch.uint8, self.device)
        if _check("residuals", residuals, torch.int32, self.device) != size:
            raise InputError(f"residuals and rows differ in length ({residuals.numel()} and {size})")
        _check("charges", charges, torch.int32, self.device, 3)
        if charges.shape != (2, ROWS, SYMBOLS):
            raise InputError(f"charges must be [2, {ROWS}, {SYMBOLS}], got {list(charges.shape)}")
        if not 1 <= groups <= MAX_GROUPS:
            raise ConfigError(f"there are no streams of {groups} groups")
        values = torch.empty(size, dtype=torch.int16, device=self.device)
        scratch = self._empty(self.library.call("quantise_bytes", size))
        r, t, c, v, tmp = (tensor.data_ptr() for tensor in (residuals, rows, charges, values, scratch))
        with _queue(self.device) as queue:
            self.library.launch("quantise", r, t, size, c, groups, v, tmp, queue)
        return values

    def encode(
        self,
        parts: Sequence[tuple[Tensor, Tensor]],
        lanes: int | None = None,
        groups: int = 1,
        plain: int | None = None,
    ) -> bytes:
        """Encode all parts of an image into one stream; waits for the device.

        Args:
            parts: (values, rows) in decoding order; values [n] int16, rows [n] uint8: a row 0..127 or 255.
                Where the row is 255 nothing is coded and the value is ignored.
            lanes: 1, 2, 4, 8, 16 or 32; None to choose by the expected size.
            groups: 1 .. 64 independent streams.
            plain: how many parts come before those of a trellis, whose values are of `quantise` for so many groups;
                None: all.

        Returns:
            The stream, the same bytes as on the CPU.

        Raises:
            InputError: a tensor of the wrong shape, type, device or content.
            ConfigError: lanes or groups out of range.
        """
        if lanes is None:
            lanes = choose_lanes(self.estimate_bytes([rows for _, rows in parts], plain) // max(groups, 1))
        return self.start_encode(parts, lanes, groups, plain).read()[0]

    def start_encode(
        self, parts: Sequence[tuple[Tensor, Tensor]], lanes: int, groups: int, plain: int | None = None
    ) -> Encoded:
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
        kinds = [int(plain is not None and i >= plain) for i in range(len(parts))]
        s, w, tmp = state.data_ptr(), words.data_ptr(), scratch.data_ptr()
        with _queue(self.device) as queue:
            launch("encode_open", s, lanes, groups, room, queue)
            for (values, rows), size, kind in reversed(list(zip(parts, sizes, kinds, strict=True))):
                launch("encode", tables, kind, s, values.data_ptr(), rows.data_ptr(), size, w, tmp, queue)
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
            InputError: a row is neither a table row nor 255, or a value is not on the grid of its state.
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

    def decode(self, rows: Tensor, trellis: bool = False, out: Tensor | None = None) -> Tensor:
        """Decode the next part and go on with the digest. Does not wait for the device.

        A damaged stream shows in `finish` or `check`; until then its values are arbitrary.

        Args:
            rows: [n] uint8, as given to the encoder.
            trellis: whether the part is of a trellis.
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
        launch, words, tmp = self._library.launch, self._stream.data_ptr(), scratch.data_ptr()
        kind, staged = int(trellis), self._coder.staged_bytes[trellis]
        with _queue(device) as queue:
            launch("decode", tables, kind, staged, words, state, rows.data_ptr(), size, values, tmp, queue)
            launch("digest", tables, values, None, size, state, queue)
        return out

    def close(self) -> None:
        """Let the device check that the stream ends exactly here; `check` tells the outcome."""
        with _queue(self._coder.device) as queue:
            self._library.launch("finish", self._state.data_ptr(), queue)

    def check(self) -> int:
        """Wait for the device and raise the errors it has met up to here.

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
