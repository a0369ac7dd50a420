"""The entropy coder: every encoder against every decoder, exact bytes, and hostile streams."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from dca_fast.entropy import coder as coder_module
from dca_fast.entropy import tables
from dca_fast.entropy.coder import Coder, available
from dca_fast.entropy.tables import SKIP_ROW, Tables, build_gaussian_tables
from dca_fast.errors import (
    BackendUnavailableError,
    BitstreamError,
    CorruptStreamError,
    TruncatedStreamError,
)

ROOT = Path(__file__).resolve().parents[1]
TABLES = build_gaussian_tables()
Part = tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]


def runnable_isas() -> list[str]:
    found = []
    for isa in ("scalar", "avx2", "avx512"):
        try:
            found.append(Coder(TABLES, "native", isa).isa)
        except BackendUnavailableError:
            continue
    return found


CODERS = {
    "python": Coder(TABLES, "python"),
    **{isa: Coder(TABLES, "native", isa) for isa in runnable_isas()},
}
NATIVE = [name for name in CODERS if name != "python"]
native_only = pytest.mark.skipif(not NATIVE, reason=available()[1])
each_coder = pytest.mark.parametrize("coder", CODERS.values(), ids=CODERS)


def random_part(rng: np.random.Generator, size: int, skipped: float = 0.3) -> Part:
    """Gaussian values on random rows, some far outside of their row, some positions skipped."""
    rows = rng.integers(0, tables.ROWS, size).astype(np.uint8)
    values = rng.standard_normal(size) * 0.1 * 2 ** (rows / 12)
    wild = rng.random(size) < 0.02
    values[wild] = rng.integers(-32768, 32768, int(wild.sum()))
    rows[rng.random(size) < skipped] = SKIP_ROW
    return np.rint(values).astype(np.int16), rows


def decode(coder: Coder, stream: bytes, parts: Sequence[Part]) -> list[npt.NDArray[np.int16]]:
    decoder = coder.decoder(stream)
    values = [decoder.decode(rows) for _, rows in parts]
    decoder.finish()
    return values


def assert_round_trip(parts: Sequence[Part], lanes: int | None = None, groups: int | None = None) -> bytes:
    """Every encoder writes the same stream and every decoder reads it; returns the stream."""
    streams = {name: coder.encode(parts, lanes, groups) for name, coder in CODERS.items()}
    stream = streams["python"]
    for name, coder in CODERS.items():
        assert streams[name] == stream, name
        for decoded, (values, rows) in zip(decode(coder, stream, parts), parts, strict=True):
            assert decoded.dtype == np.int16
            np.testing.assert_array_equal(decoded, np.where(rows == SKIP_ROW, 0, values), name)
    return stream


@pytest.mark.parametrize("lanes", coder_module.LANES)
@pytest.mark.parametrize("groups", [1, 2, 7])
def test_every_decoder_reads_every_encoder(lanes: int, groups: int) -> None:
    rng = np.random.default_rng(lanes + groups)
    sizes = [0, 1, lanes - 1, lanes, lanes + 1, 3 * lanes, 300]
    stream = assert_round_trip([random_part(rng, size) for size in sizes], lanes, groups)
    assert stream[:2] == bytes([lanes.bit_length() - 1, groups])


@pytest.mark.parametrize("skipped", [0.0, 0.5, 0.97])
def test_long_parts_of_several_blocks(skipped: float) -> None:
    rng = np.random.default_rng(5)
    assert_round_trip([random_part(rng, 4096 + 37, skipped), random_part(rng, 4096, skipped)], 32, 1)


@native_only
def test_long_runs_of_skipped_and_coded_positions() -> None:
    rng = np.random.default_rng(6)
    parts = []
    for run in (3, 8, 31, 64, 100, 5000):
        values, rows = random_part(rng, 30000, 0)
        rows[np.arange(len(rows)) // run % 3 == 0] = SKIP_ROW
        parts.append((values, rows))
    expected = [np.where(rows == SKIP_ROW, 0, values) for values, rows in parts]
    stream = CODERS["scalar"].encode(parts, 32, 3)
    for name in NATIVE:
        assert CODERS[name].encode(parts, 32, 3) == stream
        np.testing.assert_equal(decode(CODERS[name], stream, parts), expected)


def test_extreme_values_on_every_row() -> None:
    values = np.array([-32768, -32767, -1024, -129, -128, -127, -1, 0, 1, 127, 128, 1023, 32767], np.int16)
    parts = [(np.full(tables.ROWS, value, np.int16), np.arange(tables.ROWS, dtype=np.uint8)) for value in values]
    assert_round_trip(parts, 32, 1)


def test_every_value_on_rows_with_many_low_bits_and_gaps() -> None:
    freq = np.zeros((tables.ROWS, tables.SYMBOLS), np.uint16)
    freq[:, [0, 100, 127, 130, 254]] = [5, 1000, 90, 2000, 1]
    freq[:, tables.ESCAPE] = 1000
    odd = Tables(freq, (np.arange(tables.ROWS) % 9).astype(np.uint8))
    rng = np.random.default_rng(1)
    rows = rng.integers(0, tables.ROWS, 2000).astype(np.uint8)
    buckets = rng.choice([-127, -27, 0, 3, 127, 1], 2000)
    low = rng.integers(0, 256, 2000) & ((1 << odd.shift[rows].astype(int)) - 1)
    part = ((buckets << odd.shift[rows]) + low).astype(np.int16), rows
    streams = {Coder(odd, "native", isa).encode([part], 32, 2) for isa in NATIVE}
    streams.add(Coder(odd, "python").encode([part], 32, 2))
    assert len(streams) == 1
    for coder in [Coder(odd, "python"), *(Coder(odd, "native", isa) for isa in NATIVE)]:
        np.testing.assert_array_equal(decode(coder, min(streams), [part])[0], part[0])


def test_nothing_to_code() -> None:
    nothing = np.zeros(0, np.int16), np.zeros(0, np.uint8)
    skipped = np.full(100, 7, np.int16), np.full(100, SKIP_ROW, np.uint8)
    assert assert_round_trip([]) == bytes.fromhex("00 01 00000100")
    assert assert_round_trip([nothing, skipped, nothing], 2, 1) == bytes.fromhex("01 01 00000100 00000100")


def test_exact_bytes() -> None:
    def part(values: Sequence[int], rows: Sequence[int]) -> Part:
        return np.array(values, np.int16), np.array(rows, np.uint8)

    rows = [40, 40, 60, 60, 100, 127, 20, 255, 45, 33]
    first = part([0, 1, -5, 9, 37, -300, 0, 99, -2, 20000], rows)
    second = part([3, -3, 0, 1, 2], [50, 50, 12, 24, 36])
    golden = {
        (1, 1): "0001ec180d00ed5fdba0ff9f204ec700",
        (4, 1): "020167c8f53b1f1b030001111f00ef7fb49669c0c44e204e",
        (2, 3): "0103080a94f7f604102c0400ef0f2f01fb8d9c0069c05b08cfabebf04f01204e",
        (8, 2): "0302200bd92e00148d4900b3201b00f39f9901d49d9a000000010000000100000001006db0cd0a5dbc0a"
        "00ebf04f01ff0f001000000100000001000000010000000100204e",
    }
    for (lanes, groups), text in golden.items():
        assert assert_round_trip([first, second], lanes, groups).hex() == text


@native_only
def test_threads_change_nothing() -> None:
    part = random_part(np.random.default_rng(3), 400_000)
    stream = CODERS["scalar"].encode([part, part], 32, 9)
    for name in NATIVE:
        threaded = Coder(TABLES, "native", name, threads=4)
        assert threaded.encode([part, part], 32, 9) == stream
        for values in decode(threaded, stream, [part, part]):
            np.testing.assert_array_equal(values, np.where(part[1] == SKIP_ROW, 0, part[0]))


def test_the_stream_is_as_short_as_the_tables_promise() -> None:
    rng = np.random.default_rng(4)
    rows = rng.integers(12, 60, 20_000).astype(np.uint8)
    values = np.rint(rng.standard_normal(20_000) * 0.1 * 2 ** (rows / 12)).astype(np.int16)
    freq = TABLES.freq[rows, values + tables.CENTER].astype(float)
    escapes = freq == 0
    freq[escapes] = TABLES.freq[rows, tables.ESCAPE][escapes]
    ideal = (12 * len(rows) - np.log2(freq).sum() + 16 * escapes.sum()) / 8
    for lanes in (1, 32):
        size = len(list(CODERS.values())[-1].encode([(values, rows)], lanes, 1))
        assert ideal < size < ideal * 1.0005 + 4 * lanes + 4


DAMAGED_PARTS = [random_part(np.random.default_rng(8), size) for size in (40, 25)]


def outcome(coder: Coder, stream: bytes) -> object:
    """What decoding gives: the values, or the class of the error."""
    try:
        return [values.tolist() for values in decode(coder, stream, DAMAGED_PARTS)]
    except BitstreamError as error:
        return type(error)


@pytest.mark.parametrize(("lanes", "groups"), [(1, 1), (4, 3), (32, 1)])
def test_a_cut_stream_is_refused(lanes: int, groups: int) -> None:
    stream = CODERS["python"].encode(DAMAGED_PARTS, lanes, groups)
    for coder in CODERS.values():
        for size in range(len(stream)):
            with pytest.raises((TruncatedStreamError, CorruptStreamError)):
                decode(coder, stream[:size], DAMAGED_PARTS)
        with pytest.raises(CorruptStreamError):
            decode(coder, stream + b"\0\0", DAMAGED_PARTS)


def test_every_decoder_says_the_same_of_a_changed_stream() -> None:
    rng = np.random.default_rng(9)
    refused = 0
    for trial in range(600):
        lanes, groups = int(rng.choice(coder_module.LANES)), int(rng.integers(1, 4))
        stream = bytearray(list(CODERS.values())[-1].encode(DAMAGED_PARTS, lanes, groups))
        reach = 12 if trial % 2 else len(stream)
        for at in rng.integers(0, min(reach, len(stream)), rng.integers(1, 4)):
            stream[at] ^= 1 << int(rng.integers(8))
        del stream[len(stream) - int(rng.integers(3)) :]
        outcomes = [outcome(coder, bytes(stream)) for coder in CODERS.values()]
        assert all(o == outcomes[0] for o in outcomes), (bytes(stream), outcomes)
        refused += isinstance(outcomes[0], type)
    assert refused > 500


STATE = bytes.fromhex("00000100")


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (b"", TruncatedStreamError),
        (b"\0", TruncatedStreamError),
        (b"\0\1", TruncatedStreamError),
        (b"\6\1" + 64 * STATE, CorruptStreamError),
        (b"\x20\1" + STATE, CorruptStreamError),
        (b"\0\0" + STATE, CorruptStreamError),
        (b"\0\x41" + 80 * STATE, CorruptStreamError),
        (b"\0\2", TruncatedStreamError),
        (b"\0\2\x84", TruncatedStreamError),
        (b"\0\2\x84\0" + 2 * STATE, CorruptStreamError),
        (b"\0\2\xff\xff\xff\xff\xff\1" + 2 * STATE, CorruptStreamError),
        (b"\0\2\xff\xff\xff\xff\x7f" + 2 * STATE, TruncatedStreamError),
        (b"\0\2\4" + STATE, TruncatedStreamError),
        (b"\0\2\5" + 3 * STATE, CorruptStreamError),
        (b"\0\2\2" + 2 * STATE, TruncatedStreamError),
        (b"\0\1\xff\xff\0\0", CorruptStreamError),
        (b"\0\1" + STATE + b"\0", CorruptStreamError),
    ],
)
@each_coder
def test_a_damaged_header_is_named(coder: Coder, stream: bytes, error: type[BitstreamError]) -> None:
    with pytest.raises(error):
        coder.decoder(stream)


@each_coder
def test_a_stream_must_be_used_up(coder: Coder) -> None:
    stream = coder.encode(DAMAGED_PARTS, 4, 1)
    decoder = coder.decoder(stream)
    decoder.decode(DAMAGED_PARTS[0][1])
    with pytest.raises(CorruptStreamError):
        decoder.finish()
    decoder.decode(DAMAGED_PARTS[1][1])
    decoder.finish()
    with pytest.raises(TruncatedStreamError):
        decoder.decode(np.full(3000, 90, np.uint8))


@native_only
def test_a_native_decoder_stays_closed_after_an_error() -> None:
    decoder = CODERS["scalar"].decoder(CODERS["scalar"].encode(DAMAGED_PARTS))
    with pytest.raises(TruncatedStreamError):
        decoder.decode(np.full(3000, 90, np.uint8))
    with pytest.raises(CorruptStreamError, match="earlier error"):
        decoder.decode(np.full(1, 90, np.uint8))
    with pytest.raises(CorruptStreamError, match="earlier error"):
        decoder.finish()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to build with sanitizers")
def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    sources = [f"csrc/rans_{name}.cpp" for name in ("scalar", "avx2", "avx512", "coder")]
    flags = ["-std=c++17", "-O1", "-pthread", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    program = str(tmp_path / "rans_sanitize")
    build = ["g++", *flags, "-I", "csrc", "tests/fuzz/rans_sanitize.cpp", *sources, "-o", program]
    subprocess.run(build, cwd=ROOT, check=True)
    done = subprocess.run([program, "3000"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "3000 hostile streams" in done.stdout
