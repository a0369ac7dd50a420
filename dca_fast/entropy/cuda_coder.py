"""The entropy coder on a CUDA device: the streams of coder.py, with symbols and rows that never leave the device.

The kernels are called with raw pointers on PyTorch's current stream; see cuda_library.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dca_fast.entropy import cuda_library
from dca_fast.entropy.coder import LANE_BYTES, LANES, MAX_GROUPS, SAMPLES
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

__all__ = ["DeviceCoder", "DeviceDecoder", "Encoded", "Fetched", "available"]

MAX_POSITIONS = 1 << 30  # of all parts of a batch
MAX_PICTURES = 1 << 10  # of a batch
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


def _check_pictures(pictures: int, sizes: Sequence[int]) -> None:
    """Refuse a batch whose parts are not of so many pictures of one size."""
    if not 1 <= pictures <= MAX_PICTURES:
        raise ConfigError(f"a batch has 1 to {MAX_PICTURES} pictures, got {pictures}")
    for size in sizes:
        if size % pictures:
            raise InputError(f"{size} positions are not those of {pictures} pictures of one size")


class Fetched:
    """A copy of a tensor on its way to the host, in pinned memory; later work on its CUDA stream is not waited for."""

    def __init__(self, tensor: Tensor) -> None:
        self._host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda)
        self._host.copy_(tensor, non_blocking=True)
        self._copied: torch.cuda.Event | None = torch.cuda.Event() if tensor.is_cuda else None  # type: ignore[no-untyped-call]
        if self._copied is not None:
            self._copied.record()

    def numpy(self) -> npt.NDArray[Any]:
        """Waits for it."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._host.numpy()


def _read_heads(states: Tensor) -> npt.NDArray[np.void]:
    """Wait for the device and read how the states of a batch begin. Raises what a status says, of the first that is
    not 0."""
    heads: npt.NDArray[np.void] = np.frombuffer(Fetched(states[:, : _HEAD.itemsize]).numpy().tobytes(), _HEAD)
    status = next((int(head["status"]) for head in heads if head["status"]), 0)
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
    return heads


class DeviceCoder:
    """Encodes and decodes streams on one CUDA device. Safe to share between threads and streams.

    All work is put into PyTorch's current stream of the device. Only `encode`, `Encoded.read` and
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
        host = torch.zeros(self.library.call("table_bytes"), dtype=torch.uint8, device="cpu")
        freq = np.ascontiguousarray(tables.freq)
        shift = np.ascontiguousarray(tables.shift)
        searched = np.zeros(2, np.uint32)  # in plain parts, in those of a trellis
        self.library.call("tables", freq.ctypes.data, shift.ctypes.data, host.data_ptr(), searched.ctypes.data)
        self.searched = [int(size) for size in searched]
        with _queue(self.device):
            # 0: too large for shared memory
            self.staged_bytes = [self.library.call("stage", *of) for of in enumerate(self.searched)]
            self.tables = host.to(self.device)
            row_bits = np.rint(tables.mean_bits() * 256).astype(np.int64)
            self._row_bits = torch.from_numpy(row_bits).to(self.device)
            # Bytes of a group from which on it has one more doubling of the lanes.
            enough = [lanes * LANE_BYTES for lanes in LANES[1:]]
            self._enough = torch.tensor(enough, device=self.device)

    def estimate_bytes(self, rows: Sequence[Tensor], plain: int | None = None, pictures: int = 1) -> Tensor:
        """Expected size of the coded symbols, from a sample: the same number as on the CPU. Does not wait.

        Args:
            rows: of each part, [n] uint8.
            plain, pictures: see `encode`.

        Returns:
            [pictures] int64, bytes.
        """
        sizes = [_check("rows", r, torch.uint8, self.device) // pictures for r in rows]
        strides = [size // SAMPLES | 1 for size in sizes]
        counts = torch.zeros(len(rows), pictures, 256, dtype=torch.int32, device=self.device)
        with _queue(self.device) as queue:
            for r, size, stride, histogram in zip(rows, sizes, strides, counts, strict=True):
                self.library.launch("histogram", r.data_ptr(), size, pictures, stride, histogram.data_ptr(), queue)
        plain, total = len(rows) if plain is None else plain, torch.zeros_like(counts[:1].sum((0, 2)))
        for i, (size, stride, histogram) in enumerate(zip(sizes, strides, counts, strict=True)):
            bits = (histogram[:, :ROWS] * self._row_bits[int(i >= plain)]).sum(1)
            total += bits * size // max(1, -(-size // stride))
        return total // (256 * 8)

    def choose_lanes(self, rows: Sequence[Tensor], groups: int, plain: int | None = None, pictures: int = 1) -> Tensor:
        """`coder.choose_lanes` by the expected size of a group, without waiting: [pictures] int32."""
        sizes = self.estimate_bytes(rows, plain, pictures) // groups
        return torch.ones_like(sizes, dtype=torch.int32) << (sizes[:, None] >= self._enough).sum(1, dtype=torch.int32)

    def quantise(self, residuals: Tensor, rows: Tensor, charges: Tensor, groups: int, pictures: int = 1) -> Tensor:
        """Values of a trellis for one part: `dca_fast.entropy.trellis.quantise`, bit for bit.

        Does not wait for the device and can be captured in a CUDA graph: what a row holds beside 0..127 counts as 255,
        and it is `encode` that refuses it.

        Args:
            residuals: [n] int32, 1/256 quantiser steps.
            rows: [n] uint8: 0..127, or 255 where nothing is coded.
            charges: [2, 128, 256] int32 of `Tables.charges`, 0..2^24.
            groups: of the stream of each picture, 1..64.
            pictures: of equal size, whose residuals and rows follow each other.

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
        _check_pictures(pictures, [size])
        values = torch.empty(size, dtype=torch.int16, device=self.device)
        scratch = self._empty(self.library.call("quantise_bytes", size, pictures))
        r, t, c, v, tmp = (tensor.data_ptr() for tensor in (residuals, rows, charges, values, scratch))
        with _queue(self.device) as queue:
            self.library.launch("quantise", r, t, size, pictures, c, groups, v, tmp, queue)
        return values

    def encode(
        self,
        parts: Sequence[tuple[Tensor, Tensor]],
        lanes: int | None = None,
        groups: int = 1,
        plain: int | None = None,
    ) -> bytes:
        """Encode all parts of a picture into one stream; waits for the device. Arguments as of `start_encode`.

        Returns:
            The stream, the same bytes as on the CPU.

        Raises:
            InputError: a tensor of the wrong shape, type, device or content.
            ConfigError: lanes or groups out of range.
        """
        ((stream, _),) = self.start_encode(parts, lanes, groups, plain).read()
        return stream

    def start_encode(
        self,
        parts: Sequence[tuple[Tensor, Tensor]],
        lanes: int | None = None,
        groups: int = 1,
        plain: int | None = None,
        pictures: int = 1,
    ) -> Encoded:
        """Encode all parts of pictures of one size, a stream for each, without waiting for the device.

        Can be captured in a CUDA graph.

        Args:
            parts: (values, rows) in decoding order; values [n] int16, rows [n] uint8: a row 0..127 or 255.
                Where the row is 255 nothing is coded and the value is ignored. Those of all pictures follow each other.
            lanes: 1, 2, 4, 8, 16 or 32; None to choose by the expected size.
            groups: 1 .. 64 independent streams of each picture.
            plain: how many parts come before those of a trellis, whose values are of `quantise` for so many groups;
                None: all.
            pictures: how many.
        """
        if lanes not in (None, *LANES) or not 1 <= groups <= MAX_GROUPS:
            raise ConfigError(f"no layout of {lanes} lanes in {groups} groups")
        sizes = [_check("rows", rows, torch.uint8, self.device) for _, rows in parts]
        for (values, _), size in zip(parts, sizes, strict=True):
            if _check("values", values, torch.int16, self.device) != size:
                raise InputError(f"values and rows differ in length ({values.numel()} and {size})")
        if sum(sizes) > MAX_POSITIONS:
            raise InputError(f"{sum(sizes)} positions, {MAX_POSITIONS} allowed")
        _check_pictures(pictures, sizes)
        if lanes is None:
            chosen = self.choose_lanes([rows for _, rows in parts], groups, plain, pictures)
        else:
            chosen = torch.full((pictures,), lanes, dtype=torch.int32, device=self.device)
        room = sum(2 * -(-size // pictures // groups) for size in sizes)  # words of a group: at most two per symbol
        stream_room = 2 + 5 * groups + (4 * LANES[-1] + 2 * room) * groups
        words = self._empty(2 * room * groups * pictures)
        streams = self._empty(stream_room * pictures).view(pictures, -1)
        scratch = self._empty(self.library.call("encode_bytes", max(sizes, default=0)))
        states = self._empty(self.library.call("state_bytes") * pictures).view(pictures, -1)
        tables, launch = self.tables.data_ptr(), self.library.launch
        kinds = [int(plain is not None and i >= plain) for i in range(len(parts))]
        s, w, tmp = states.data_ptr(), words.data_ptr(), scratch.data_ptr()
        with _queue(self.device) as queue:
            launch("encode_open", s, pictures, chosen.data_ptr(), groups, room, queue)
            for i, ((values, rows), size, kind) in reversed(list(enumerate(zip(parts, sizes, kinds, strict=True)))):
                v, r, last = values.data_ptr(), rows.data_ptr(), int(i == len(parts) - 1)
                launch("encode", tables, kind, last, s, pictures, groups, v, r, size, w, tmp, queue)
            launch("encode_close", s, pictures, groups, w, streams.data_ptr(), stream_room, queue)
            for (values, rows), size in zip(parts, sizes, strict=True):
                launch("digest", tables, values.data_ptr(), rows.data_ptr(), size, s, pictures, queue)
        return Encoded(streams, states)

    def decoder(
        self,
        streams: bytes | memoryview | Sequence[bytes | memoryview] | None = None,
        *,
        capacity: int | None = None,
        positions: int | None = None,
        pictures: int = 1,
        groups: int = MAX_GROUPS,
    ) -> DeviceDecoder:
        """Open the streams of pictures of one size for decoding.

        Args:
            streams: one for each picture, in host memory; None to give them to `DeviceDecoder.reset` later.
            capacity: of all streams together, bytes; default that of `streams`.
            positions: largest part of all pictures, whose scratch memory is then allocated once; needed for CUDA graphs
                that are to share memory. Default: allocated for every part.
            pictures: how many, if no streams are given.
            groups: the most that a stream has.

        Raises:
            TruncatedStreamError, CorruptStreamError: a stream's header or states are wrong.
            LimitExceededError: more bytes or groups than planned.
        """
        if streams is not None:
            streams = [streams] if isinstance(streams, bytes | memoryview) else list(streams)
            pictures = len(streams)
        if capacity is None:
            if streams is None:
                raise ConfigError("a decoder without a stream needs a capacity")
            capacity = sum(map(len, streams))
        decoder = DeviceDecoder(self, capacity, positions, pictures, groups)
        if streams is not None:
            decoder.reset(*streams)
        return decoder

    def _empty(self, size: int) -> Tensor:
        return torch.empty(max(size, 1), dtype=torch.uint8, device=self.device)


class Encoded:
    """Streams on the device.

    Args:
        streams: uint8 [pictures, room], each stream and unused room behind it.
        states: uint8 [pictures, n], the encoder's.
    """

    def __init__(self, streams: Tensor, states: Tensor) -> None:
        self.streams, self._states = streams, states

    def read(self) -> list[tuple[bytes, int]]:
        """Wait for the device; on the CUDA stream that was current when encoding.

        Returns:
            Of each picture the stream, and the CRC-32 of all values (0 where not coded) as little-endian int16.

        Raises:
            InputError: a row is neither a table row nor 255, or a value is not on the grid of its state.
        """
        heads = _read_heads(self._states)
        host = Fetched(self.streams[:, : int(heads["size"].max())]).numpy()
        return [(s[: int(head["size"])].tobytes(), int(head["digest"])) for s, head in zip(host, heads, strict=True)]


class DeviceDecoder:
    """Decodes the parts of streams one after the other; see `DeviceCoder.decoder`. For one CUDA stream at a time.

    In a CUDA graph: `reset` outside, then `decode` of all parts into given outputs and `close` inside, then `check`
    outside. A recorded graph decodes all streams given to `reset`, of any layout.
    """

    def __init__(self, coder: DeviceCoder, capacity: int, positions: int | None, pictures: int, groups: int) -> None:
        if not 0 <= capacity < 1 << 31:
            raise ConfigError(f"capacity must be 0..2^31 - 1 bytes, got {capacity}")
        if positions is not None and not 0 <= positions <= MAX_POSITIONS:
            raise ConfigError(f"positions must be 0..{MAX_POSITIONS}, got {positions}")
        _check_pictures(pictures, [])
        self._coder, self._library, self._capacity = coder, coder.library, capacity
        self.pictures, self._groups = pictures, groups
        # One byte in front of a stream whose words would begin at odd bytes, and one behind it.
        self._streams = coder._empty(capacity + 2 * pictures)
        size = self._library.call("state_bytes")
        self._states = torch.zeros(pictures, size, dtype=torch.uint8, device=coder.device)
        pinned = coder.device.type == "cuda"
        self._host = [
            torch.empty(x.shape, dtype=x.dtype, device="cpu", pin_memory=pinned) for x in (self._streams, self._states)
        ]
        self._copied: torch.cuda.Event | None = torch.cuda.Event() if pinned else None  # type: ignore[no-untyped-call]
        self._opened = False
        self._positions = positions
        self._scratch = None if positions is None else self._scratch_for(positions)

    def _scratch_for(self, positions: int) -> Tensor:
        return self._coder._empty(self._library.call("decode_bytes", positions))

    def reset(self, *streams: bytes | memoryview) -> None:
        """Start new streams in the same buffers, one for each picture.

        Raises:
            TruncatedStreamError, CorruptStreamError, LimitExceededError: see `DeviceCoder.decoder`.
            BackendUnavailableError: while a graph is being captured.
        """
        self._opened = False
        if len(streams) != self.pictures:
            raise ConfigError(f"{len(streams)} streams, the decoder was made for {self.pictures}")
        whole, ends = b"".join(streams), np.cumsum([len(stream) for stream in streams], dtype=np.uint64)
        if len(whole) > self._capacity:
            raise LimitExceededError(f"a stream of {len(whole)} bytes, the decoder was made for {self._capacity}")
        if any(len(stream) > 1 and self._groups < stream[1] <= MAX_GROUPS for stream in streams):
            raise LimitExceededError(f"a stream has more than the {self._groups} groups that the decoder was made for")
        if self._copied is not None:
            self._copied.synchronize()  # what is copied to the device is overwritten now
        message = ctypes.create_string_buffer(80)
        staging, opened = (x.data_ptr() for x in self._host)
        to, states = self._streams.data_ptr(), self._states.data_ptr()
        with _queue(self._coder.device) as queue:
            arguments = whole, ends.ctypes.data, self.pictures, staging, opened, to, states, message, queue
            fault = self._library.launch("reset", *arguments)
            if self._copied is not None and fault == 0:
                self._copied.record()
        if fault != 0:
            text = message.raw[4:].split(b"\0")[0].decode()
            if self.pictures > 1:
                text = f"stream {int.from_bytes(message.raw[:4], 'little')}: {text}"
            raise (TruncatedStreamError if fault == -1 else CorruptStreamError)(text)
        self._opened = True

    def decode(self, rows: Tensor, trellis: bool = False, last: bool = False, out: Tensor | None = None) -> Tensor:
        """Decode the next part and go on with the digest. Does not wait for the device.

        A damaged stream shows in `finish` or `check`; until then its values are arbitrary.

        Args:
            rows: [n] uint8, as given to the encoder; those of all pictures follow each other.
            trellis: whether the part is of a trellis.
            last: whether it is the last one of the stream.
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
        _check_pictures(self.pictures, [size])
        scratch = self._scratch_for(size) if self._scratch is None else self._scratch
        tables, states, values = self._coder.tables.data_ptr(), self._states.data_ptr(), out.data_ptr()
        launch, words, tmp = self._library.launch, self._streams.data_ptr(), scratch.data_ptr()
        kind, n = int(trellis), self.pictures
        tables_for = self._coder.searched[kind], self._coder.staged_bytes[kind]
        with _queue(device) as queue:
            source = words, states, n, self._groups, rows.data_ptr(), size
            launch("decode", tables, kind, int(last), *tables_for, *source, values, tmp, queue)
            launch("digest", tables, values, None, size, states, n, queue)
        return out

    def close(self) -> None:
        """Let the device check that the stream ends exactly here; `check` tells the outcome."""
        with _queue(self._coder.device) as queue:
            self._library.launch("finish", self._states.data_ptr(), self.pictures, queue)

    def check(self) -> list[int]:
        """Wait for the device and raise the errors it has met up to here.

        Returns:
            Of each picture the CRC-32 of all decoded values as little-endian int16.

        Raises:
            InputError: a row is neither a table row nor 255.
            TruncatedStreamError: the stream ends before its symbols.
            CorruptStreamError: words are left over or the final states are wrong.
        """
        return [int(head["digest"]) for head in _read_heads(self._states)]

    def finish(self) -> list[int]:
        """`close`, then `check`."""
        self.close()
        return self.check()
