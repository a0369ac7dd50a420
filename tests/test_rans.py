"""The entropy coder: every encoder against every decoder, exact bytes, and hostile streams."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from dca_fast.entropy import coder as coder_module
from dca_fast.entropy import tables, trellis
from dca_fast.entropy.coder import Coder, available
from dca_fast.entropy.tables import SKIP_ROW, Tables, build_gaussian_tables
from dca_fast.errors import (
    BackendUnavailableError,
    BitstreamError,
    CorruptStreamError,
    InputError,
    TruncatedStreamError,
)

ROOT = Path(__file__).resolve().parents[1]
TABLES = build_gaussian_tables()
Part = tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]


def runnable_isas() -> list[str]:
    names = []
    for isa in ("scalar", "avx2", "avx512"):
        try:
            names.append(Coder(TABLES, "native", isa).isa)
        except BackendUnavailableError:
            continue
    return names


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


def trellis_part(rng: np.random.Generator, size: int, groups: int, skipped: float = 0.3) -> Part:
    """Values of all sizes, those of skipped positions included, that the trellis of so many groups can reach."""
    values, rows = random_part(rng, size, skipped)
    coded = np.flatnonzero(rows != SKIP_ROW)
    chains = trellis.chains_of(len(coded), groups)
    for g in range(groups):
        states = [0] * chains
        for j, at in enumerate(coded[len(coded) * g // groups : len(coded) * (g + 1) // groups]):
            state = states[j % chains]
            which = trellis.set_of(state)
            index = int(values[at]) >> 1
            values[at] = trellis.value_of(index, which)
            states[j % chains] = trellis.next_state(state, index)
    return values, rows


def decode(coder: Coder, stream: bytes, parts: Sequence[Part], plain: int | None = None) -> list[npt.NDArray[np.int16]]:
    decoder = coder.decoder(stream)
    plain = len(parts) if plain is None else plain
    values = [decoder.decode(rows, i >= plain, i == len(parts) - 1) for i, (_, rows) in enumerate(parts)]
    decoder.finish()
    return values


def assert_round_trip(
    parts: Sequence[Part], lanes: int | None = None, groups: int = 1, plain: int | None = None
) -> bytes:
    """Every encoder writes the same stream and every decoder reads it; returns the stream."""
    streams = {name: coder.encode(parts, lanes, groups, plain) for name, coder in CODERS.items()}
    stream = streams["python"]
    for name, coder in CODERS.items():
        assert streams[name] == stream, name
        for decoded, (values, rows) in zip(decode(coder, stream, parts, plain), parts, strict=True):
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


@pytest.mark.parametrize("lanes", coder_module.LANES)
@pytest.mark.parametrize("groups", [1, 3, 64])
def test_every_decoder_reads_every_trellis(lanes: int, groups: int) -> None:
    rng = np.random.default_rng(lanes + groups)
    parts = [random_part(rng, size) for size in (lanes + 1, 100)]
    parts += [trellis_part(rng, size, groups) for size in (0, 1, 31, 32, 33, 65, 500)]
    assert_round_trip(parts, lanes, groups, plain=2)


@pytest.mark.parametrize("skipped", [0.0, 0.5, 0.97])
def test_long_parts_of_several_blocks(skipped: float) -> None:
    rng = np.random.default_rng(5)
    assert_round_trip([random_part(rng, 4096 + 37, skipped), random_part(rng, 4096, skipped)], 32, 1)
    assert_round_trip([trellis_part(rng, size, 1, skipped) for size in (2 * 4096 + 37, 4096)], 8, 1, plain=0)
    assert_round_trip([trellis_part(rng, size, 1, skipped) for size in (2 * 4096 + 37, 4096)], 32, 1, plain=0)


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


@pytest.mark.parametrize("chains", [1, 32])
def test_the_most_extreme_values_of_a_trellis(chains: int) -> None:
    """All chains take the same index at a time: both sets and every state see each end of the range."""
    rng = np.random.default_rng(2)
    state, values = 0, list[int]()
    for _ in range(trellis.CHAIN_SYMBOLS):
        index = int(rng.choice([-16384, -16383, -1, 0, 1, 16383]))
        values += [trellis.value_of(index, trellis.set_of(state))] * chains
        state = trellis.next_state(state, index)
    assert {-32768, -32767, 0, 32766, 32765} <= set(values)
    assert trellis.chains_of(len(values), 1) == chains
    rows = rng.integers(0, tables.ROWS, len(values)).astype(np.uint8)
    assert_round_trip([(np.array(values, np.int16), rows)], 16, 1, plain=0)


@pytest.mark.parametrize("chains", [1, 2, 4, 8, 16, 32])
def test_every_number_of_chains(chains: int) -> None:
    """Searches, encoders and decoders, where the last group has one symbol more or none has."""
    rng = np.random.default_rng(chains)
    for groups, extra in ((1, 0), (1, chains // 2 + 5), (3, 1), (6, 6 * chains)):
        size = groups * max(chains * trellis.CHAIN_SYMBOLS, 300) + extra
        assert trellis.chains_of(size, groups) == chains
        residuals, rows = random_residuals(rng, size, 0.0)
        charges = random_charges(rng, 30_000)
        finders = [CODERS[name] for name in (NATIVE if groups * chains > 32 else CODERS)]
        found = [coder.quantise(residuals, rows, charges, groups) for coder in finders]
        for values in found[1:]:
            np.testing.assert_array_equal(values, found[0])
        lanes = int(rng.choice(coder_module.LANES))
        if size < 10_000:
            assert_round_trip([(found[0], rows)], lanes, groups, plain=0)
            continue
        streams = {CODERS[name].encode([(found[0], rows)], lanes, groups, plain=0) for name in NATIVE}
        assert len(streams) <= 1
        for name in NATIVE:
            np.testing.assert_array_equal(decode(CODERS[name], min(streams), [(found[0], rows)], 0)[0], found[0])


def test_a_chain_has_a_thousand_symbols() -> None:
    numbers = [0, 1, 1023, 2047, 2048, 4095, 4096, 8192, 16384, 32767, 32768, 10**6]
    assert [trellis.chains_of(n, 1) for n in numbers] == [1, 1, 1, 1, 2, 2, 4, 8, 16, 16, 32, 32]
    assert [trellis.chains_of(7 * n + 6, 7) for n in numbers] == [trellis.chains_of(n, 1) for n in numbers]


def odd_tables() -> Tables:
    """Many low bits, not the same ones in the three tables, and gaps between the buckets."""
    freq = np.zeros((tables.TABLE_ROWS, tables.SYMBOLS), np.uint16)
    freq[:, [0, 100, 127, 130, 254]] = [5, 1000, 90, 2000, 1]
    freq[:, tables.ESCAPE] = 1000
    return Tables(freq, (np.arange(tables.TABLE_ROWS) % 9).astype(np.uint8))


@pytest.mark.parametrize("lanes", [4, 32])
def test_a_trellis_with_many_low_bits(lanes: int) -> None:
    coders = [Coder(odd_tables(), "python"), *(Coder(odd_tables(), "native", isa) for isa in NATIVE)]
    part = trellis_part(np.random.default_rng(7), 3000, 2)
    (stream,) = {coder.encode([part], lanes, 2, plain=0) for coder in coders}
    for coder in coders:
        np.testing.assert_array_equal(decode(coder, stream, [part], 0)[0], np.where(part[1] == SKIP_ROW, 0, part[0]))


def test_every_value_on_rows_with_many_low_bits_and_gaps() -> None:
    odd = odd_tables()
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
        (4, 1): "0201cf3a29003c7d4f2c42b11e00f65fcf0fff3f204e",
        (2, 3): "0103080a94f7f604102c0400ef4f3301d49d9a00692077c116009be10900bb2f204e",
        (8, 2): "0302200bd92e00148d4900b3201b00f39f990100000100000001000000010000000100e9cdb51465f0"
        "4f652e2201009be10900ff0f0010000001000000010000000100204e",
    }
    for (lanes, groups), text in golden.items():
        assert assert_round_trip([first, second], lanes, groups).hex() == text


@each_coder
def test_what_lanes_have_for_the_tail_must_be_used_or_0(coder: Coder) -> None:
    """Three values take no word from the 24 lanes without a part in the tail."""
    part = np.array([3, -2, 0], np.int16), np.full(3, 40, np.uint8)
    stream = coder.encode([part], 32)
    assert len(stream) == 2 + 4 * 32
    for lane in range(3, 32):
        for at, bit in ((0, 1), (1, 128), (2, 2), (3, 1)):
            changed = bytearray(stream)
            changed[2 + 4 * lane + at] ^= bit
            with pytest.raises(CorruptStreamError, match=r"left over|wrong"):
                decode(coder, bytes(changed), [part])


@native_only
def test_threads_change_nothing() -> None:
    rng = np.random.default_rng(3)
    parts = [random_part(rng, 400_000), trellis_part(rng, 400_000, 9)]
    stream = CODERS["scalar"].encode(parts, 32, 9, plain=1)
    searched = *random_residuals(rng, 400_000), random_charges(rng), 9
    values_of_one = CODERS["scalar"].quantise(*searched)
    for name in NATIVE:
        threaded = Coder(TABLES, "native", name, threads=4)
        assert threaded.encode(parts, 32, 9, plain=1) == stream
        for decoded, (values, of) in zip(decode(threaded, stream, parts, 1), parts, strict=True):
            np.testing.assert_array_equal(decoded, np.where(of == SKIP_ROW, 0, values))
        np.testing.assert_array_equal(threaded.quantise(*searched), values_of_one)


def random_charges(rng: np.random.Generator, most: int = 1 << 24) -> npt.NDArray[np.int32]:
    return np.sort(rng.integers(0, most + 1, (2, tables.ROWS, 256)), axis=-1).astype(np.int32)


def random_residuals(
    rng: np.random.Generator, size: int, skipped: float = 0.3
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """As they come, and where something changes: near zero, at ties, last charges, saturation, ends of the type."""
    values, rows = random_part(rng, size, skipped)
    residuals = values.astype(np.int64) * 256 + rng.integers(-128, 128, size)
    sizes = np.array([*range(-481, 482, 160), *(k * 320 + 80 for k in (252, 253, 254, 255, 256)), 8191 * 256])
    special = rng.random(size) < 0.2
    residuals[special] = (rng.choice(sizes, size) * rng.choice([-1, 1], size) + rng.integers(-1, 2, size))[special]
    residuals[rng.random(size) < 0.01] = rng.choice([-(1 << 31), (1 << 31) - 1])
    return residuals.astype(np.int32), rows


@pytest.mark.parametrize("groups", [1, 3, 64])
@pytest.mark.parametrize("most", [0, 30_000, 1 << 24])
def test_every_search_finds_the_same(groups: int, most: int) -> None:
    rng = np.random.default_rng(groups + most)
    for size in (0, 1, 15, 16, 17, 31, 32, 33, 63, 400, 2600):
        residuals, rows = random_residuals(rng, size, rng.choice([0, 0.3, 0.9]))
        charges = random_charges(rng, most)
        expected = CODERS["python"].quantise(residuals, rows, charges, groups)
        assert not expected[rows == SKIP_ROW].any()
        for name in NATIVE:
            values = CODERS[name].quantise(residuals, rows, charges, groups)
            np.testing.assert_array_equal(values, expected, name)
        assert_round_trip([(expected, rows)], 32, groups, plain=0)


@native_only
def test_costs_stay_small_in_a_long_search() -> None:
    """The highest charge at every symbol: costs that only grow would leave int32 after 128 rounds."""
    rng = np.random.default_rng(1)
    charges = np.full((2, tables.ROWS, 256), 1 << 24, np.int32)
    residuals, rows = random_residuals(rng, 150_000)
    results = [CODERS[name].quantise(residuals, rows, charges, 1) for name in NATIVE]
    np.testing.assert_array_equal(results[0], CODERS[NATIVE[0]].quantise(residuals, rows, 0 * charges, 1))
    for other in results:
        np.testing.assert_array_equal(other, results[0])


@native_only
def test_what_a_search_refuses() -> None:
    residuals, rows, charges = np.zeros(40, np.int32), np.zeros(40, np.uint8), np.zeros((2, tables.ROWS, 256), np.int32)
    for coder in (CODERS[name] for name in NATIVE):
        for charge in (-1, (1 << 24) + 1, -(1 << 31), (1 << 31) - 1):
            wrong = charges.copy()
            wrong[1, 127, 255] = charge
            with pytest.raises(InputError, match="charge"):
                coder.quantise(residuals, rows, wrong, 1)
        for row in (128, 254):
            with pytest.raises(InputError, match="row"):
                coder.quantise(residuals, np.full(40, row, np.uint8), charges, 1)


@each_coder
def test_a_value_off_the_grid_is_refused(coder: Coder) -> None:
    values, rows = trellis_part(np.random.default_rng(11), 5000, 1, 0.0)
    refused = []
    for value in (0, 2, 3):  # of the last state
        values[-1] = value
        try:
            coder.encode([(values, rows)], 8, 1, plain=0)
        except InputError as error:
            refused.append(str(error))
    assert refused == ["a value is not on the grid of its state"]
    values[[0, -1]] = 1, 0  # the first state is 0, with even values
    with pytest.raises(InputError, match="grid"):
        coder.encode([(values, rows)], 8, 1, plain=0)


def test_the_stream_is_as_short_as_the_tables_promise() -> None:
    rng = np.random.default_rng(4)
    rows = rng.integers(12, 60, 20_000).astype(np.uint8)
    values = np.rint(rng.standard_normal(20_000) * 0.1 * 2 ** (rows / 12)).astype(np.int16)
    freq = TABLES.freq[rows, values + tables.CENTER].astype(float)
    escapes = freq == 0
    freq[escapes] = TABLES.freq[rows, tables.ESCAPE][escapes]
    ideal = (12 * len(rows) - np.log2(freq).sum() + 16 * escapes.sum()) / 8
    for lanes in (1, 4, 32):
        size = len(list(CODERS.values())[-1].encode([(values, rows)], lanes, 1))
        assert ideal < size < ideal * 1.0005 + 1.75 * lanes + 4


DAMAGED_PARTS = [random_part(np.random.default_rng(8), size) for size in (40, 25)]
DAMAGED_TRELLIS = {
    groups: [DAMAGED_PARTS[0], *(trellis_part(np.random.default_rng(8), size, groups) for size in (25, 60))]
    for groups in (1, 2, 3)
}


def outcome(coder: Coder, stream: bytes, parts: Sequence[Part], plain: int | None) -> object:
    """What decoding gives: the values, or the class of the error."""
    try:
        return [values.tolist() for values in decode(coder, stream, parts, plain)]
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
        parts, plain = (DAMAGED_TRELLIS[groups], 1) if trial % 3 == 0 else (DAMAGED_PARTS, None)
        stream = bytearray(list(CODERS.values())[-1].encode(parts, lanes, groups, plain))
        reach = 12 if trial % 2 else len(stream)
        for at in rng.integers(0, min(reach, len(stream)), rng.integers(1, 4)):
            stream[at] ^= 1 << int(rng.integers(8))
        del stream[len(stream) - int(rng.integers(3)) :]
        outcomes = [outcome(coder, bytes(stream), parts, plain) for coder in CODERS.values()]
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
    decoder.decode(DAMAGED_PARTS[1][1], last=True)
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
