"""The door of the entropy coder: layouts, arguments, settings, and what it says when it refuses."""

import re
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from dca_fast.entropy import coder as coder_module
from dca_fast.entropy import rans, tables, trellis
from dca_fast.entropy.coder import Coder, available, choose_groups, choose_lanes, crc32
from dca_fast.entropy.tables import Tables, build_gaussian_tables
from dca_fast.errors import BackendUnavailableError, ConfigError, InputError, WeightsError

ROOT = Path(__file__).resolve().parents[1]
TABLES = build_gaussian_tables()
CODERS = [Coder(TABLES, backend) for backend in (("python", "native") if available()[0] else ("python",))]
FASTEST = CODERS[-1]
native_only = pytest.mark.skipif(not available()[0], reason=available()[1])
each_coder = pytest.mark.parametrize("coder", CODERS, ids=lambda coder: coder.backend)


@pytest.mark.parametrize("payload", [0, 1, 1023, 1024, 2047, 2048, 5000, 16_383, 16_384, 10**7])
def test_a_lane_has_512_bytes(payload: int) -> None:
    lanes = choose_lanes(payload)
    assert lanes in coder_module.LANES
    assert lanes == 1 or 512 * lanes <= payload
    assert lanes == 32 or 512 * (2 * lanes) > payload


@pytest.mark.parametrize(
    ("sites", "groups"), [((4, 4), 1), ((32, 63), 1), ((32, 64), 2), ((136, 240), 31), ((400, 400), 64)]
)
def test_groups_follow_the_size_of_the_image(sites: tuple[int, int], groups: int) -> None:
    assert choose_groups(*sites) == groups


def test_the_lanes_follow_the_expected_size() -> None:
    rng = np.random.default_rng(2)
    for size, groups, expected in ((100, 1, 0), (12_000, 1, 2), (60_000, 1, 4), (200_000, 1, 5), (200_000, 4, 4)):
        rows = rng.integers(0, 60, size).astype(np.uint8)
        residuals = rng.standard_normal(size) * 0.1 * 2 ** (rows / 12)
        charges = TABLES.charges(1 / 100)
        trellis = FASTEST.quantise((256 * residuals).astype(np.int32), rows, charges, groups)
        for values, plain in ((residuals.round().astype(np.int16), 1), (trellis, 0)):
            stream = FASTEST.encode([(values, rows)], groups=groups, plain=plain)
            assert tuple(stream[:2]) == (expected, groups)
            assert abs(len(stream) - FASTEST._estimate_bytes([(values, rows)], plain)) < 20 + 0.08 * len(stream)


def test_every_backend_expects_the_same_size() -> None:
    rng = np.random.default_rng(3)
    for size in (0, 1, 65_536, 200_001):
        rows = np.where(rng.random(size) < 0.5, 255, rng.integers(0, 128, size)).astype(np.uint8)
        parts = [(np.zeros(size, np.int16), rows)] * 2
        for plain in (0, 1, 2):
            assert len({coder._estimate_bytes(parts, plain) for coder in CODERS}) == 1


VALUES, ROWS = np.zeros(8, np.int16), np.zeros(8, np.uint8)


@pytest.mark.parametrize(
    ("values", "rows"),
    [
        (VALUES.astype(np.int32), ROWS),
        (VALUES, ROWS.astype(np.int8)),
        (VALUES[::2], ROWS[:4]),
        (VALUES.reshape(2, 4), ROWS.reshape(2, 4)),
        (VALUES, ROWS[:7]),
        (VALUES.tolist(), ROWS),
        (VALUES.astype(">i2"), ROWS),
        (VALUES, ROWS + np.uint8(128)),
        (VALUES, ROWS + np.uint8(254)),
    ],
)
@each_coder
def test_wrong_arrays_are_refused(coder: Coder, values: object, rows: object) -> None:
    with pytest.raises(InputError):
        coder.encode([(values, rows)])  # type: ignore[list-item]


@pytest.mark.parametrize("rows", [ROWS.astype(np.int64), ROWS[::2], ROWS.reshape(2, 4), [0, 1], ROWS + np.uint8(200)])
@each_coder
def test_wrong_rows_are_refused(coder: Coder, rows: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(InputError):
        coder.decoder(coder.encode([(VALUES, ROWS)])).decode(rows)


@each_coder
def test_buffers_of_any_kind_are_read(coder: Coder) -> None:
    values, rows = np.arange(50, dtype=np.int16), np.full(50, 60, np.uint8)
    values.flags.writeable = rows.flags.writeable = False
    stream = coder.encode([(values, rows)])
    for form in (memoryview(stream), bytearray(stream), memoryview(b"xx" + stream)[2:]):
        np.testing.assert_array_equal(coder.decoder(form).decode(rows, last=True), values)


@each_coder
def test_impossible_layouts_are_refused(coder: Coder) -> None:
    for lanes, groups in ((0, 1), (3, 1), (64, 1), (-1, 1), (1, 0), (1, 65)):
        with pytest.raises(ConfigError, match="no layout"):
            coder.encode([(VALUES, ROWS)], lanes, groups)


def test_wrong_settings_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="backend"):
        Coder(TABLES, "cuda")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="threads"):
        Coder(TABLES, threads=0)
    with pytest.raises(WeightsError):
        Coder(Tables(TABLES.freq // 2, TABLES.shift))
    monkeypatch.setattr(coder_module, "_native", None)
    monkeypatch.setattr(coder_module, "_reason", "not here")
    assert available() == (False, "not here")
    assert Coder(TABLES).backend == "python"
    with pytest.raises(BackendUnavailableError, match="not here"):
        Coder(TABLES, "native")
    with pytest.raises(BackendUnavailableError, match="not here"):
        Coder(TABLES, isa="scalar")


@native_only
def test_the_instruction_set_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DCA_ISA", raising=False)
    assert available()[0]
    assert Coder(TABLES).backend == "native"
    best = Coder(TABLES).isa
    assert best in available()[1]
    assert Coder(TABLES, isa=best).isa == best
    monkeypatch.setenv("DCA_ISA", "scalar")
    assert Coder(TABLES).isa == "scalar"
    assert Coder(TABLES, isa=best).isa == best
    monkeypatch.setenv("DCA_ISA", "sse9")
    with pytest.raises(ConfigError, match="isa must be one of"):
        Coder(TABLES)
    with pytest.raises(BackendUnavailableError, match="cannot run avx2, only scalar"):
        coder_module.choose_isa("avx2", ["scalar"])


def test_both_languages_use_the_same_constants() -> None:
    header = (ROOT / "csrc" / "coder" / "rans.h").read_text("utf-8")
    constants = dict(re.findall(r"constexpr int (k\w+) = (\d+);", header))
    assert {name: int(constants[name]) for name in constants} == {
        "kProbBits": tables.PROB_BITS,
        "kRows": tables.ROWS,
        "kTableRows": tables.TABLE_ROWS,
        "kSymbols": tables.SYMBOLS,
        "kEscape": tables.ESCAPE,
        "kCenter": tables.CENTER,
        "kSkipRow": tables.SKIP_ROW,
        "kMaxShift": tables.MAX_SHIFT,
        "kMaxLanes": coder_module.LANES[-1],
        "kMaxGroups": coder_module.MAX_GROUPS,
        "kWordsPerSymbol": 2,
        "kChains": trellis.CHAINS,
        "kChainSymbols": trellis.CHAIN_SYMBOLS,
        "kTailShare": rans.TAIL_SHARE,
        "kTrellisStates": trellis.STATES,
        "kBySet": trellis.BY_SET,
        "kByParity": trellis.BY_PARITY,
        "kApart": 1 << trellis.BY_PARITY.bit_length() - 1,
        "kEdgeShift": trellis.EDGE_SHIFT,
        "kEdgeLimit": trellis.EDGE_LIMIT,
        "kSteps": trellis.MEMORY,
    }
    assert rans.MAX_GROUPS == coder_module.MAX_GROUPS
    assert rans.LOWER == 1 << 16


@pytest.mark.parametrize("size", [0, 1, 15, 16, 63, 64, 65, 79, 80, 127, 128, 129, 1000, 65537])
def test_digest_is_that_of_zlib(size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    for value in (0, 1, 2**32 - 1):
        assert crc32(data.data, value) == zlib.crc32(data.data, value)
        assert crc32(data[::-1].tobytes(), value) == zlib.crc32(data[::-1].tobytes(), value)
