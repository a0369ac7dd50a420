"""The entropy coder: arrays of symbols and table rows to one stream and back, on the fastest path here."""

import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from dca_fast.entropy import rans, trellis
from dca_fast.entropy.tables import ROWS, SYMBOLS, Tables
from dca_fast.errors import (
    BackendUnavailableError,
    ConfigError,
    CorruptStreamError,
    InputError,
    TruncatedStreamError,
)

try:
    from dca_fast import _rans
except ImportError as error:
    _native: Any = None
    _reason = f"the native coder is not built: {error}"
else:
    _native = _rans
    _reason = f"native coder with {', '.join(_rans.isas())}"

__all__ = ["Coder", "Decoder", "available", "choose_groups", "choose_isa", "choose_lanes", "crc32"]

# Of bytes, going on from a value; the same as zlib's.
crc32: Callable[[Any, int], int] = getattr(_native, "crc32", zlib.crc32)

Backend = Literal["auto", "native", "python"]
Values = npt.NDArray[np.int16]
Rows = npt.NDArray[np.uint8]

LANES = (1, 2, 4, 8, 16, 32)
MAX_GROUPS = 64
ISAS = ("auto", "scalar", "neon", "avx2", "avx512", "avx512-tall", "amx")
# Instruction sets of the networks' kernels, and what the coder has for them.
_FALLBACK_ISAS = {"neon": "scalar", "avx512-tall": "avx512", "amx": "avx512"}
LANE_BYTES = 512  # of a group for each lane, which costs some 1.5 of them
_GROUP_SITES = 1 << 10  # a group is a warp of a GPU or work for a thread
SAMPLES = 1 << 14  # positions per part that the layout estimate looks at
_NATIVE_ERRORS = {"input": InputError, "truncated": TruncatedStreamError, "corrupt": CorruptStreamError}


def available() -> tuple[bool, str]:
    """Say whether the native coder can run, and which instruction sets it has or why it cannot."""
    return _native is not None, _reason


def choose_groups(height: int, width: int) -> int:
    """Choose groups for an image of so many latent sites: 1 .. 64. A trellis needs them before its bytes are known."""
    return min(max(height * width // _GROUP_SITES, 1), MAX_GROUPS)


def choose_lanes(group_bytes: int) -> int:
    """Choose lanes so that they cost at most 0.3 % of the payload where possible: 1, 2, 4, ... 32.

    Args:
        group_bytes: expected size of one group's coded symbols, bytes.
    """
    return max(n for n in LANES if n == 1 or n * LANE_BYTES <= group_bytes)


class _DecoderImpl(Protocol):
    def decode(self, rows: Rows, trellis: bool, last: bool) -> Values: ...

    def finish(self) -> None: ...


class Coder:
    """Encodes and decodes streams with one set of tables. Safe to share between threads.

    Args:
        tables: probability tables, part of the model.
        backend: "native", "python" (the executable specification, slow), or "auto".
        isa: of the native coder: "scalar", "avx2", "avx512", or "auto": the environment variable DCA_ISA if
            set, else the fastest that runs here. Of the networks' kernels, "neon" means "scalar", which compilers
            turn to NEON, and "avx512-tall" and "amx" mean "avx512".
        threads: most threads that one call may use.

    Raises:
        WeightsError: the tables are inconsistent.
        ConfigError: an argument is out of range.
        BackendUnavailableError: the backend or instruction set cannot run here.
    """

    def __init__(self, tables: Tables, backend: Backend = "auto", isa: str = "auto", threads: int = 1) -> None:
        if backend not in ("auto", "native", "python"):
            raise ConfigError(f"backend must be auto, native or python (got {backend!r})")
        if threads < 1:
            raise ConfigError(f"threads must be at least 1 (got {threads})")
        if _native is None and (backend == "native" or (backend == "auto" and isa != "auto")):
            raise BackendUnavailableError(_reason)
        self.tables = tables.validate()
        self.threads = threads
        self.backend = "python" if backend == "python" or _native is None else "native"
        self._row_bits = np.rint(tables.mean_bits() * 256).astype(np.int64)
        if self.backend == "native":
            self.isa = choose_isa(isa, _native.isas(), _FALLBACK_ISAS)
            freq, shift = np.ascontiguousarray(tables.freq), np.ascontiguousarray(tables.shift)
            self._tables = _native.Tables(freq, shift)

    def encode(
        self,
        parts: Sequence[tuple[Values, Rows]],
        lanes: int | None = None,
        groups: int = 1,
        plain: int | None = None,
    ) -> bytes:
        """Encode all parts of an image into one stream.

        Args:
            parts: (values, rows) in decoding order; values [n] int16, rows [n] uint8: a row 0..127 or 255.
                Where the row is 255 nothing is coded and the value is ignored.
            lanes: 1, 2, 4, 8, 16 or 32; None to choose by the expected size.
            groups: 1 .. 64 independent streams.
            plain: how many parts come before those of a trellis, whose values are of `quantise` for so many groups;
                None: all.

        Returns:
            The stream, the same bytes for every backend, instruction set and number of threads.

        Raises:
            InputError: an array of the wrong shape, type or content.
            ConfigError: lanes or groups out of range.
        """
        for values, rows in parts:
            _check("values", values, np.int16)
            _check("rows", rows, np.uint8)
            if len(values) != len(rows):
                raise InputError(f"values and rows differ in length ({len(values)} and {len(rows)})")
        plain = len(parts) if plain is None else plain
        if lanes is None:
            lanes = choose_lanes(self._estimate_bytes(parts, plain) // max(groups, 1))
        if lanes not in LANES or not 1 <= groups <= MAX_GROUPS:
            raise ConfigError(f"no layout of {lanes} lanes in {groups} groups")
        if self.backend == "python":
            return rans.encode(self.tables, parts, plain, lanes, groups)
        with _translated_errors():
            stream: bytes = self._tables.encode(list(parts), plain, lanes, groups, self.isa, self.threads)
            return stream

    def quantise(
        self, residuals: npt.NDArray[np.int32], rows: Rows, charges: npt.NDArray[np.int32], groups: int
    ) -> Values:
        """Values of a trellis for one part, see `dca_fast.entropy.trellis.quantise`; the same on every backend.

        Raises:
            InputError: an array of the wrong shape, type or content.
            ConfigError: groups out of range.
        """
        _check("residuals", residuals, np.int32)
        _check("rows", rows, np.uint8)
        if len(residuals) != len(rows):
            raise InputError(f"residuals and rows differ in length ({len(residuals)} and {len(rows)})")
        if charges.shape != (2, ROWS, SYMBOLS) or charges.dtype != np.int32 or not charges.flags.c_contiguous:
            raise InputError(f"charges must be int32 [2, {ROWS}, {SYMBOLS}]")
        if not 1 <= groups <= MAX_GROUPS:
            raise ConfigError(f"there are no streams of {groups} groups")
        if self.backend == "python":
            return trellis.quantise(residuals, rows, charges, groups)
        with _translated_errors():
            values: Values = _native.quantise(residuals, rows, charges, groups, self.isa, self.threads)
            return values

    def decoder(self, stream: bytes | memoryview) -> "Decoder":
        """Open a stream for decoding.

        Raises:
            TruncatedStreamError, CorruptStreamError: the stream's header or states are wrong.
        """
        if self.backend == "python":
            return Decoder(rans.Decoder(self.tables, bytes(stream)))
        with _translated_errors():
            return Decoder(self._tables.decoder(stream, self.isa, self.threads))

    def _estimate_bytes(self, parts: Sequence[tuple[Values, Rows]], plain: int) -> int:
        """Expected payload from a sample of the rows; integers only, so that all machines choose alike."""
        total = 0
        for i, (_, rows) in enumerate(parts):
            stride = len(rows) // SAMPLES | 1  # odd, so that it does not follow columns of even width
            if self.backend == "native":
                counts = _native.row_counts(rows, stride)
            else:
                counts = np.bincount(rows[::stride], minlength=256)
            total += int(counts[:ROWS] @ self._row_bits[int(i >= plain)]) * len(rows) // max(1, -(-len(rows) // stride))
        return total // (256 * 8)


class Decoder:
    """Decodes the parts of one stream in the order they were encoded."""

    def __init__(self, impl: _DecoderImpl) -> None:
        self._impl = impl

    def decode(self, rows: Rows, trellis: bool = False, last: bool = False) -> Values:
        """Decode the next part.

        Args:
            rows: [n] uint8, as given to the encoder.
            trellis: whether the part is of a trellis.
            last: whether it is the last one of the stream.

        Returns:
            [n] int16, 0 where the row is 255.

        Raises:
            InputError: rows of the wrong shape, type or content.
            TruncatedStreamError: the stream ends before its symbols.
        """
        _check("rows", rows, np.uint8)
        with _translated_errors():
            return self._impl.decode(rows, trellis, last)

    def finish(self) -> None:
        """Check that the stream ends exactly here.

        Raises:
            CorruptStreamError: words are left over or the final states are wrong.
        """
        with _translated_errors():
            self._impl.finish()


def choose_isa(isa: str, runnable: Sequence[str], others: Mapping[str, str] = MappingProxyType({})) -> str:
    """The instruction set to use: `isa`, or with "auto" that of DCA_ISA, or the first of `runnable` (best first).

    Args:
        isa: name, or "auto".
        runnable: what runs here.
        others: names that stand for another one.

    Raises:
        ConfigError: unknown name.
        BackendUnavailableError: not among `runnable`.
    """
    isa = (os.environ.get("DCA_ISA") or "auto") if isa == "auto" else isa
    if isa not in ISAS:
        raise ConfigError(f"isa must be one of {', '.join(ISAS)} (got {isa!r})")
    isa = others.get(isa, isa)
    if isa != "auto" and isa not in runnable:
        raise BackendUnavailableError(f"this processor or build cannot run {isa}, only {', '.join(runnable)}")
    return runnable[0] if isa == "auto" else isa


def _check(name: str, array: npt.NDArray[np.generic], dtype: npt.DTypeLike) -> None:
    plain = isinstance(array, np.ndarray) and array.ndim == 1 and array.flags.c_contiguous
    if not plain or array.dtype != dtype:
        raise InputError(f"{name} must be a contiguous 1-D {np.dtype(dtype).name} array")


@contextmanager
def _translated_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if _native is None or not isinstance(error, _native.Error):
            raise
        kind, message = error.args
        raise _NATIVE_ERRORS[kind](message) from None
