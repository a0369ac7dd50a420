"""The coder for the GPU: the CPU's streams, lane by lane in an emulation of the device, and on a real one if present.

The emulation (tests/cuda) runs csrc/coder/rans_cuda.cu itself, every kernel and every thread; only the launches differ.
"""

import ctypes
import os
import re
import shutil
import stat
import subprocess
import zlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from dca_fast.entropy import cuda_coder as device_module
from dca_fast.entropy import cuda_library, tables, trellis
from dca_fast.entropy.coder import LANES, Coder, choose_lanes
from dca_fast.entropy.cuda_coder import DeviceCoder, Encoded
from dca_fast.entropy.cuda_library import Library
from dca_fast.entropy.tables import SKIP_ROW, Tables, build_gaussian_tables
from dca_fast.entropy.trellis import CHAINS
from dca_fast.errors import (
    BackendUnavailableError,
    BitstreamError,
    ConfigError,
    CorruptStreamError,
    InputError,
    LimitExceededError,
    TruncatedStreamError,
)
from tests.once import once

ROOT = Path(__file__).resolve().parents[1]
TABLES = build_gaussian_tables()
CPU = Coder(TABLES)
Part = tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]
needs_gcc = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to build the emulation with")


@pytest.fixture(scope="module")
def emulated_library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    def make(folder: Path) -> None:
        flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-Wno-unknown-pragmas"]
        source = ["-I", "csrc/coder", "-I", "tests/cuda", "-x", "c++", "csrc/coder/rans_cuda.cu"]
        subprocess.run(["g++", *flags, *source, "-o", folder / "rans_emulated.so"], cwd=ROOT, check=True)

    return Library(once(tmp_path_factory, "emulation", make) / "rans_emulated.so")


@pytest.fixture
def emulation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    library = request.getfixturevalue("emulated_library")
    monkeypatch.setattr(device_module, "_cuda_device", lambda device: torch.device("cpu"))
    monkeypatch.setattr(device_module, "_library", lambda device: library)
    monkeypatch.setattr(device_module, "_queue", lambda device: nullcontext(0))


@pytest.fixture(params=[pytest.param("emulated", marks=needs_gcc), pytest.param("gpu", marks=pytest.mark.gpu)])
def machine(request: pytest.FixtureRequest) -> str:
    """Where the kernels run; DeviceCoder is then made for it."""
    if request.param == "emulated":
        request.getfixturevalue("emulation")
    return str(request.param)


@pytest.fixture
def coder(machine: str) -> DeviceCoder:
    return DeviceCoder(TABLES)


def random_part(rng: np.random.Generator, size: int, skipped: float = 0.3, wild: float = 0.02) -> Part:
    """Gaussian values on random rows, some far outside of their row, some positions skipped."""
    rows = rng.integers(0, tables.ROWS, size).astype(np.uint8)
    values = rng.standard_normal(size) * 0.1 * 2 ** (rows / 12)
    outside = rng.random(size) < wild
    values[outside] = rng.integers(-32768, 32768, int(outside.sum()))
    rows[rng.random(size) < skipped] = SKIP_ROW
    return np.rint(values).astype(np.int16), rows


def coded_positions(rows: npt.NDArray[np.uint8], groups: int) -> Iterator[tuple[int, int]]:
    """Position and chain of every coded symbol."""
    coded = np.flatnonzero(rows != SKIP_ROW)
    chains = trellis.chains_of(len(coded), groups)
    for g in range(groups):
        for j, position in enumerate(coded[len(coded) * g // groups : len(coded) * (g + 1) // groups]):
            yield int(position), CHAINS * g + j % chains


def of_trellis(indices: npt.NDArray[np.int16], rows: npt.NDArray[np.uint8], groups: int) -> Part:
    """The part of a trellis whose indices these are."""
    values, states = indices.copy(), [0] * CHAINS * groups  # what is not coded may hold anything
    for at, chain in coded_positions(rows, groups):
        values[at] = trellis.value_of(int(indices[at]), trellis.set_of(states[chain]))
        states[chain] = trellis.next_state(states[chain], int(indices[at]))
    return values, rows


def random_trellis(rng: np.random.Generator, size: int, groups: int, skipped: float = 0.3, wild: float = 0.02) -> Part:
    """As random_part, of a trellis: any index is allowed in any state."""
    values, rows = random_part(rng, size, skipped, wild)
    return of_trellis(values >> 1, rows, groups)


def expected(parts: Sequence[Part]) -> list[npt.NDArray[np.int16]]:
    return [np.where(rows == SKIP_ROW, 0, values).astype(np.int16) for values, rows in parts]


def on_device(coder: DeviceCoder, parts: Sequence[Part]) -> list[tuple[Tensor, Tensor]]:
    return [(torch.tensor(v, device=coder.device), torch.tensor(r, device=coder.device)) for v, r in parts]


def decode(
    coder: DeviceCoder, stream: bytes, parts: Sequence[Part], plain: int | None = None
) -> tuple[list[npt.NDArray[np.int16]], int]:
    decoder, plain = coder.decoder(stream), len(parts) if plain is None else plain
    inputs = enumerate(on_device(coder, parts))
    values = [decoder.decode(rows, i >= plain, i == len(parts) - 1) for i, (_, rows) in inputs]
    (digest,) = decoder.finish()
    return [v.cpu().numpy() for v in values], digest


def assert_same_as_cpu(
    coder: DeviceCoder,
    parts: Sequence[Part],
    lanes: int = 32,
    groups: int = 1,
    cpu: Coder = CPU,
    plain: int | None = None,
) -> bytes:
    """The device writes the CPU's stream and reads it, with the digest of zlib; returns the stream."""
    ((stream, digest),) = coder.start_encode(on_device(coder, parts), lanes, groups, plain).read()
    assert stream == cpu.encode(parts, lanes, groups, plain)
    values, decoded_digest = decode(coder, stream, parts, plain)
    for got, want in zip(values, expected(parts), strict=True):
        np.testing.assert_array_equal(got, want)
    crc = zlib.crc32(b"".join(v.astype("<i2").tobytes() for v in expected(parts)))
    assert (digest, decoded_digest) == (crc, crc)
    return stream


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("groups", [1, 2, 7])
def test_every_layout(coder: DeviceCoder, lanes: int, groups: int) -> None:
    rng = np.random.default_rng(lanes + groups)
    sizes = [0, 1, lanes - 1, lanes, lanes + 1, 3 * lanes, 300]
    assert_same_as_cpu(coder, [random_part(rng, size) for size in sizes], lanes, groups)


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("groups", [1, 3, 64])
def test_a_trellis_in_every_layout(coder: DeviceCoder, lanes: int, groups: int) -> None:
    """After plain parts; chains cross the rounds of fewer lanes, and every part begins anew."""
    rng = np.random.default_rng(lanes + groups)
    parts = [random_part(rng, size) for size in (40, 0)]
    parts += [random_trellis(rng, size, groups) for size in (0, 1, lanes + 1, 31, 33, 1000)]
    assert_same_as_cpu(coder, parts, lanes, groups, plain=2)


@pytest.mark.parametrize(("skipped", "wild"), [(0.0, 0.0), (0.0, 1.0), (0.5, 0.3), (0.97, 0.02), (1.0, 0.0)])
def test_escapes_and_skipped_positions(coder: DeviceCoder, skipped: float, wild: float) -> None:
    rng = np.random.default_rng(5)
    parts = [random_part(rng, size, skipped, wild) for size in (3 * 1024 + 37, 2048, 1024)]
    parts += [random_trellis(rng, size, 3, skipped, wild) for size in (2048 + 37, 1024)]
    assert_same_as_cpu(coder, parts, 32, 3, plain=3)


def test_more_groups_than_symbols(coder: DeviceCoder) -> None:
    rng = np.random.default_rng(6)
    parts = [random_part(rng, size) for size in (10, 64, 2000)]
    assert_same_as_cpu(coder, [*parts, random_trellis(rng, 10, 64)], 32, 64, plain=3)


def test_more_tiles_than_threads_that_add_them_up(coder: DeviceCoder) -> None:
    values, rows = random_part(np.random.default_rng(7), 300_001, skipped=0.99)
    rows[100_000:180_000] = SKIP_ROW
    assert_same_as_cpu(coder, [(values, rows)], 32, 2)


def test_extreme_values_on_every_row(coder: DeviceCoder) -> None:
    values = np.array([-32768, -32767, -1024, -129, -128, -127, -1, 0, 1, 127, 128, 1023, 32767], np.int16)
    rows = np.arange(tables.ROWS, dtype=np.uint8)
    parts = [(np.full(tables.ROWS, value, np.int16), rows) for value in values]
    assert_same_as_cpu(coder, parts)
    assert_same_as_cpu(coder, [of_trellis(v >> 1, rows, 1) for v, rows in parts], plain=0)


@pytest.mark.parametrize(("lanes", "size"), [(1, 500), (32, 33_000)])
def test_values_beyond_int16_wrap_as_on_the_cpu(machine: str, lanes: int, size: int) -> None:
    """Indices that no encoder writes: coded as plain values with the tables of all sets alike."""
    alike = Tables(np.tile(TABLES.freq[: tables.ROWS], (3, 1)), np.tile(TABLES.shift[: tables.ROWS], 3))
    rng, cpu = np.random.default_rng(18), Coder(alike)
    part = rng.integers(-32768, 32768, size).astype(np.int16), rng.integers(0, tables.ROWS, size).astype(np.uint8)
    stream = cpu.encode([part], lanes, 1)
    want = cpu.decoder(stream).decode(part[1], trellis=True, last=True)
    assert (np.abs(want.astype(int)) < 2 * np.abs(part[0].astype(int)) - 1).any()
    np.testing.assert_array_equal(decode(DeviceCoder(alike), stream, [part], plain=0)[0][0], want)


@pytest.mark.parametrize("at", [0, 99, 100, 199])
def test_a_value_off_the_grid_is_refused(coder: DeviceCoder, at: int) -> None:
    values, rows = of_trellis(np.full(200, 6, np.int16), np.full(200, 60, np.uint8), 2)
    values[at] += 1
    with pytest.raises(InputError, match="not on the grid"):
        coder.encode(on_device(coder, [(values, rows)]), 32, 2, plain=0)


@pytest.mark.parametrize("staged", [True, False], ids=["shared", "global"])
def test_rows_with_many_low_bits_and_gaps(machine: str, staged: bool) -> None:
    """Also with tables that do not fit into shared memory."""
    freq = np.zeros((tables.TABLE_ROWS, tables.SYMBOLS), np.uint16)
    freq[:, [0, 100, 127, 130, 254]] = [5, 1000, 90, 2000, 1]
    freq[:, tables.ESCAPE] = 1000
    freq[1::2, [0, 254, 100]] = [0, 0, 1006]
    odd = Tables(freq, (np.arange(tables.TABLE_ROWS) % 9).astype(np.uint8))
    rng = np.random.default_rng(1)
    rows = rng.integers(0, tables.ROWS, 2000).astype(np.uint8)
    buckets = rng.choice([-127, -27, 0, 3, 127, 1], 2000)
    low = rng.integers(0, 256, 2000) & ((1 << odd.shift[rows].astype(int)) - 1)
    values = ((buckets << odd.shift[rows]) + low).astype(np.int16)
    coder = DeviceCoder(odd)
    assert min(coder.staged_bytes) > 0
    coder.staged_bytes = [size * staged for size in coder.staged_bytes]
    assert_same_as_cpu(coder, [(values, rows), of_trellis(values >> 1, rows, 2)], 32, 2, Coder(odd), plain=1)


@needs_gcc
@pytest.mark.parametrize("kib", [48, 64, 99, 163, 227])
def test_what_a_decoder_searches_fits_into_shared_memory(
    emulation: None, emulated_library: Library, monkeypatch: pytest.MonkeyPatch, kib: int
) -> None:
    """Of a block, on cards small and large: there are shorter runs where there is more of it."""
    limit = ctypes.c_int.in_dll(emulated_library._functions, "emulated_shared_limit")
    monkeypatch.setattr(limit, "value", kib << 10)
    coder, rng = DeviceCoder(TABLES), np.random.default_rng(kib)
    for sets, (searched, staged) in enumerate(zip(coder.searched, coder.staged_bytes, strict=True), 1):
        runs = (staged - searched) // (4 * sets * tables.ROWS)
        assert runs in (8, 16, 32, 64, 128)
        assert staged < kib << 10
        assert runs == 128 or staged + (staged - searched) + 1024 > kib << 10
    assert_same_as_cpu(coder, [random_part(rng, 700), random_trellis(rng, 900, 2)], 8, 2, plain=1)


def test_nothing_to_code(coder: DeviceCoder) -> None:
    nothing = np.zeros(0, np.int16), np.zeros(0, np.uint8)
    skipped = np.full(100, 7, np.int16), np.full(100, SKIP_ROW, np.uint8)
    assert assert_same_as_cpu(coder, [], 1, 1) == bytes.fromhex("00 01 00000100")
    assert_same_as_cpu(coder, [nothing, skipped, nothing], 2, 1)


def test_the_digest_of_many_values(coder: DeviceCoder) -> None:
    """More values than the digest has threads, an odd number of them, and two parts."""
    rng = np.random.default_rng(11)
    values = rng.integers(-32768, 32768, 140_001).astype(np.int16)
    parts = [(values, np.full(len(values), 127, np.uint8)), (values[:77], np.full(77, 127, np.uint8))]
    ((_, digest),) = coder.start_encode(on_device(coder, parts), 32, 1).read()
    assert digest == zlib.crc32(values[:77].astype("<i2").tobytes(), zlib.crc32(values.astype("<i2").tobytes()))


def test_the_layout_is_chosen_as_on_the_cpu(coder: DeviceCoder) -> None:
    rng = np.random.default_rng(12)
    for sizes in ([], [0], [1, 5], [3000], [65_536, 200_000]):
        parts = [random_part(rng, size, skipped=0.9) for size in sizes]
        rows = [rows for _, rows in on_device(coder, parts)]
        assert coder.estimate_bytes(rows).tolist() == [CPU._estimate_bytes(parts, len(parts))]
        assert coder.estimate_bytes(rows, plain=1).tolist() == [CPU._estimate_bytes(parts, 1)]
        for groups in (1, 3):
            lanes = choose_lanes(CPU._estimate_bytes(parts, len(parts)) // groups)
            assert coder.choose_lanes(rows, groups).tolist() == [lanes]
    parts = [random_part(rng, 3000), random_trellis(rng, 500, 1)]
    assert coder.encode(on_device(coder, parts)) == CPU.encode(parts)
    assert coder.encode(on_device(coder, parts), lanes=4) == CPU.encode(parts, lanes=4)
    assert coder.encode(on_device(coder, parts), plain=1) == CPU.encode(parts, plain=1)


def test_one_decoder_for_many_streams(coder: DeviceCoder) -> None:
    """Fixed buffers, any layout, and a refused stream does not spoil the next one."""
    rng = np.random.default_rng(13)
    sizes = (2000, 700)
    decoder = coder.decoder(capacity=20_000, positions=max(sizes))
    outputs = [torch.empty(size, dtype=torch.int16, device=coder.device) for size in sizes]
    for lanes, groups in ((32, 1), (1, 64), (8, 3)):
        with pytest.raises(ConfigError, match="no stream"):
            decoder.decode(torch.zeros(1, dtype=torch.uint8, device=coder.device))
        parts = [random_part(rng, sizes[0]), random_trellis(rng, sizes[1], groups)]
        decoder.reset(memoryview(CPU.encode(parts, lanes, groups, plain=1)))
        for i, ((_, rows), out) in enumerate(zip(on_device(coder, parts), outputs, strict=True)):
            assert decoder.decode(rows, trellis=i == 1, last=i == 1, out=out) is out
        decoder.finish()
        for out, want in zip(outputs, expected(parts), strict=True):
            np.testing.assert_array_equal(out.cpu().numpy(), want)
        with pytest.raises(CorruptStreamError):
            decoder.reset(b"\0\1\0\0\0\0")
    with pytest.raises(LimitExceededError, match="20001 bytes"):
        decoder.reset(bytes(20_001))
    decoder.reset(CPU.encode([], 1, 1))
    with pytest.raises(InputError, match="2001 positions"):
        decoder.decode(torch.zeros(2001, dtype=torch.uint8, device=coder.device))


@pytest.mark.parametrize(("pictures", "groups", "lanes"), [(1, 2, None), (3, 1, None), (5, 3, 8), (4, 64, 1)])
def test_a_batch_is_each_of_its_pictures(coder: DeviceCoder, pictures: int, groups: int, lanes: int | None) -> None:
    """Streams, digests and searched values, of pictures as different as can be; sizes that no group divides."""
    rng, sizes = np.random.default_rng(pictures), (0, 37, 1500, 700)
    skipped = [[1.0, 0.0, 0.3, 0.9, 0.5][(i + pictures) % 5] for i in range(pictures)]
    batch = []  # of each picture its parts
    for share in skipped:
        parts = [random_part(rng, size, share, wild=0.1) for size in sizes[:2]]
        batch.append(parts + [random_trellis(rng, size, groups, share) for size in sizes[2:]])
    together = [
        tuple(np.concatenate(arrays) for arrays in zip(*part, strict=True)) for part in zip(*batch, strict=True)
    ]
    on_it = on_device(coder, together)
    encoded = coder.start_encode(on_it, lanes, groups, 2, pictures).read()
    for (stream, digest), parts in zip(encoded, batch, strict=True):
        assert stream == CPU.encode(parts, lanes, groups, 2)
        assert digest == zlib.crc32(b"".join(v.astype("<i2").tobytes() for v in expected(parts)))
    decoder = coder.decoder([stream for stream, _ in encoded])
    for i, ((_, rows), part) in enumerate(zip(on_it, together, strict=True)):
        values = decoder.decode(rows, trellis=i > 1, last=i == len(sizes) - 1)
        np.testing.assert_array_equal(values.cpu().numpy(), expected([part])[0])
    assert decoder.finish() == [digest for _, digest in encoded]
    rows, charges = together[2][1], TABLES.charges(0.1)
    residuals = random_residuals(rng, rows)
    each = zip(np.split(residuals, pictures), np.split(rows, pictures), strict=True)
    want = np.concatenate([CPU.quantise(r, t, charges, groups) for r, t in each])
    got = coder.quantise(*to_search(coder, residuals, rows, charges), groups, pictures)
    np.testing.assert_array_equal(got.cpu().numpy(), want)


def test_a_batch_of_streams_of_different_layouts(coder: DeviceCoder) -> None:
    """Other encoders choose lanes and groups as they like; a decoder is reused."""
    rng, layouts = np.random.default_rng(3), ((32, 1), (1, 64), (8, 3))
    decoder = coder.decoder(capacity=30_000, positions=3 * 900, pictures=3)
    for _ in range(2):
        batch = [[random_part(rng, 900), random_trellis(rng, 500, groups)] for _, groups in layouts]
        streams = [CPU.encode(parts, *layout, 1) for parts, layout in zip(batch, layouts, strict=True)]
        decoder.reset(*streams)
        for i, parts in enumerate(zip(*batch, strict=True)):
            rows = torch.tensor(np.concatenate([rows for _, rows in parts]), device=coder.device)
            want = np.concatenate(expected(parts))
            np.testing.assert_array_equal(decoder.decode(rows, i == 1, i == 1).cpu().numpy(), want)
        assert decoder.finish() == [
            zlib.crc32(b"".join(v.astype("<i2").tobytes() for v in expected(parts))) for parts in batch
        ]


def test_one_bad_picture_of_a_batch_is_found(coder: DeviceCoder) -> None:
    rng = np.random.default_rng(4)
    parts = [[random_part(rng, 300)] for _ in range(3)]
    streams = [CPU.encode(part, 4, 2) for part in parts]
    rows = torch.tensor(np.concatenate([part[0][1] for part in parts]), device=coder.device)
    for bad in range(3):
        with pytest.raises(TruncatedStreamError, match=f"stream {bad}: "):
            coder.decoder([s[: 3 if i == bad else None] for i, s in enumerate(streams)])
        decoder = coder.decoder([s + b"\0\0" * (i == bad) for i, s in enumerate(streams)])
        decoder.decode(rows, last=True)
        with pytest.raises(CorruptStreamError, match="left over"):
            decoder.finish()
        wrong = rows.clone()
        wrong[300 * bad + 7] = 200
        encoded = coder.start_encode([(torch.zeros_like(wrong, dtype=torch.int16), wrong)], 1, 1, None, 3)
        assert [bool(state[0]) for state in encoded._states] == [i == bad for i in range(3)]
        with pytest.raises(InputError, match="neither a table row nor 255"):
            encoded.read()


def test_batches_that_are_none_are_refused(coder: DeviceCoder) -> None:
    stream = CPU.encode([], 1, 3)
    with pytest.raises(LimitExceededError, match="more than the 2 groups"):
        coder.decoder(stream, groups=2)
    with pytest.raises(ConfigError, match="2 streams, the decoder was made for 1"):
        coder.decoder(capacity=99).reset(stream, stream)
    with pytest.raises(ConfigError, match="1 to 1024 pictures"):
        coder.decoder([])
    decoder = coder.decoder([stream, stream])
    with pytest.raises(InputError, match="not those of 2 pictures"):
        decoder.decode(torch.full((3,), SKIP_ROW, dtype=torch.uint8, device=coder.device))


DAMAGED_PARTS = [random_part(np.random.default_rng(8), size) for size in (40, 25)]


@pytest.mark.parametrize(("lanes", "groups"), [(1, 1), (4, 3), (32, 1)])
def test_a_cut_stream_is_refused(coder: DeviceCoder, lanes: int, groups: int) -> None:
    stream = CPU.encode(DAMAGED_PARTS, lanes, groups)
    for size in range(0, len(stream), 3):
        with pytest.raises((TruncatedStreamError, CorruptStreamError)):
            decode(coder, stream[:size], DAMAGED_PARTS)
    with pytest.raises(CorruptStreamError, match="left over"):
        decode(coder, stream + b"\0\0", DAMAGED_PARTS)


def test_the_device_says_the_same_of_a_changed_stream(coder: DeviceCoder) -> None:
    def outcome(run: object, stream: bytes) -> object:
        try:
            if run is coder:
                return [values.tolist() for values in decode(coder, stream, DAMAGED_PARTS, plain=1)[0]]
            decoder = CPU.decoder(stream)
            values = [decoder.decode(rows, i > 0, i > 0).tolist() for i, (_, rows) in enumerate(DAMAGED_PARTS)]
            decoder.finish()
            return values
        except BitstreamError as error:
            return type(error)

    rng = np.random.default_rng(9)
    refused = 0
    for trial in range(150):
        lanes, groups = int(rng.choice(LANES)), int(rng.integers(1, 4))
        (values, rows), plain_part = DAMAGED_PARTS[1], DAMAGED_PARTS[0]
        stream = bytearray(CPU.encode([plain_part, of_trellis(values >> 1, rows, groups)], lanes, groups, plain=1))
        reach = 12 if trial % 2 else len(stream)
        for at in rng.integers(0, min(reach, len(stream)), rng.integers(1, 4)):
            stream[at] ^= 1 << int(rng.integers(8))
        del stream[len(stream) - int(rng.integers(3)) :]
        outcomes = [outcome(run, bytes(stream)) for run in (CPU, coder)]
        assert outcomes[0] == outcomes[1], bytes(stream)
        refused += isinstance(outcomes[0], type)
    assert refused > 100


STATE = bytes.fromhex("00000100")


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (b"", TruncatedStreamError),
        (b"\0\1", TruncatedStreamError),
        (b"\6\1" + 64 * STATE, CorruptStreamError),
        (b"\0\0" + STATE, CorruptStreamError),
        (b"\0\x41" + 80 * STATE, CorruptStreamError),
        (b"\0\2\x84\0" + 2 * STATE, CorruptStreamError),
        (b"\0\2\xff\xff\xff\xff\x7f" + 2 * STATE, TruncatedStreamError),
        (b"\0\2\5" + 3 * STATE, CorruptStreamError),
        (b"\0\1\xff\xff\0\0", CorruptStreamError),
    ],
)
def test_a_damaged_header_is_named_as_on_the_cpu(
    coder: DeviceCoder, stream: bytes, error: type[BitstreamError]
) -> None:
    with pytest.raises(error) as refused:
        coder.decoder(stream)
    with pytest.raises(error) as refused_by_cpu:
        Coder(TABLES, "native").decoder(stream)
    assert str(refused.value) == str(refused_by_cpu.value)


def test_a_decoder_stays_at_its_error(coder: DeviceCoder) -> None:
    decoder = coder.decoder(CPU.encode(DAMAGED_PARTS, 32, 1))
    decoder.decode(torch.full((3000,), 90, dtype=torch.uint8, device=coder.device))
    with pytest.raises(TruncatedStreamError):
        decoder.check()
    after = decoder.decode(torch.full((3,), 90, dtype=torch.uint8, device=coder.device))
    assert after.tolist() == [0, 0, 0]
    with pytest.raises(TruncatedStreamError):
        decoder.finish()


def random_residuals(rng: np.random.Generator, rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """Gaussian on their rows, in 1/256 steps; some at the middle between two values, some beyond all of them."""
    residuals = rng.standard_normal(len(rows)) * 25.6 * 2 ** (np.minimum(rows, tables.ROWS - 1) / 12)
    residuals = np.rint(residuals).astype(np.int32)
    kind = rng.integers(0, 20, len(rows))
    residuals[kind == 0] = 80 * rng.integers(-40, 41, int((kind == 0).sum()))
    residuals[kind == 1] = rng.integers(-(1 << 31), 1 << 31, int((kind == 1).sum()))
    residuals[:4] = [-(1 << 31), (1 << 31) - 1, 8191 * 256 + 1, 0][: len(rows)]
    return residuals


def to_search(
    coder: DeviceCoder, residuals: npt.NDArray[np.int32], rows: npt.NDArray[np.uint8], charges: npt.NDArray[np.int32]
) -> tuple[Tensor, Tensor, Tensor]:
    residual, row, charge = (torch.tensor(array, device=coder.device) for array in (residuals, rows, charges))
    return residual, row, charge


def assert_quantised_as_on_cpu(
    coder: DeviceCoder,
    residuals: npt.NDArray[np.int32],
    rows: npt.NDArray[np.uint8],
    charges: npt.NDArray[np.int32],
    groups: int,
) -> None:
    want = trellis.quantise(residuals, rows, charges, groups)
    got = coder.quantise(*to_search(coder, residuals, rows, charges), groups)
    np.testing.assert_array_equal(got.cpu().numpy(), want)
    np.testing.assert_array_equal(CPU.quantise(residuals, rows, charges, groups), want)
    assert_same_as_cpu(coder, [(want, rows)], 32, groups, plain=0)


@pytest.mark.parametrize("chains", [1, 2, 4, 8, 16, 32])
def test_every_number_of_chains(coder: DeviceCoder, chains: int) -> None:
    """Search, streams and values; groups with a symbol more in some of their chains."""
    rng = np.random.default_rng(chains)
    for groups, extra, lanes in ((1, 5, 32), (3, 1, 8)):
        size = groups * chains * trellis.CHAIN_SYMBOLS + extra
        rows = rng.integers(0, 100, size).astype(np.uint8)
        residuals, charges = random_residuals(rng, rows), TABLES.charges(0.1)
        want = CPU.quantise(residuals, rows, charges, groups)
        got = coder.quantise(*to_search(coder, residuals, rows, charges), groups)
        np.testing.assert_array_equal(got.cpu().numpy(), want)
        assert_same_as_cpu(coder, [(want, rows)], lanes, groups, plain=0)


def test_chains_of_every_length(coder: DeviceCoder) -> None:
    """Whole blocks of a search and all rests; one and two chains; with edges at their limits, too."""
    rng, gaussian = np.random.default_rng(25), TABLES.charges(0.1)
    for size in (*range(1, 50), *range(120, 128), 496, 497, 2048, 2049, 2050, 2079, 2081, 2096):
        rows = rng.integers(0, 100, size).astype(np.uint8)
        residuals = random_residuals(rng, rows)
        for charges in (gaussian, rng.choice([0, 1 << 24], gaussian.shape).astype(np.int32)):
            want = CPU.quantise(residuals, rows, charges, 1)
            got = coder.quantise(*to_search(coder, residuals, rows, charges), 1)
            np.testing.assert_array_equal(got.cpu().numpy(), want, err_msg=str(size))


@pytest.mark.parametrize("groups", [1, 3, 64])
@pytest.mark.parametrize("size", [0, 1, 31, 33, 1000, 2100])
def test_a_trellis_is_searched_as_on_the_cpu(coder: DeviceCoder, size: int, groups: int) -> None:
    rng = np.random.default_rng(20 + size)
    rows = random_part(rng, size)[1]
    assert_quantised_as_on_cpu(coder, random_residuals(rng, rows), rows, TABLES.charges(0.1), groups)


@pytest.mark.parametrize("skipped", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("charges", ["none", "equal", "random", "largest"])
def test_a_search_with_extreme_charges(coder: DeviceCoder, charges: str, skipped: float) -> None:
    """The largest ones make the largest sums."""
    rng, shape = np.random.default_rng(21), (2, tables.ROWS, tables.SYMBOLS)
    amounts = {
        "none": np.zeros(shape),
        "equal": np.full(shape, 25_600),
        "random": rng.integers(0, 1 << 20, shape),
        "largest": rng.choice([0, 1 << 24], shape),
    }
    rows = random_part(rng, 1500, skipped)[1]
    residuals = random_residuals(rng, rows)
    assert_quantised_as_on_cpu(coder, residuals, rows, amounts[charges].astype(np.int32), 2)


def test_ties_of_paths_are_broken_as_on_the_cpu(coder: DeviceCoder) -> None:
    """Residuals on the grid and half-way between its values, at no charge: many paths have the same cost."""
    rng = np.random.default_rng(24)
    rows = random_part(rng, 1000, 0.1)[1]
    for step in (80, 160, 320):
        residuals = (step * rng.integers(-3, 4, 1000)).astype(np.int32)
        assert_quantised_as_on_cpu(coder, residuals, rows, np.zeros((2, 128, 256), np.int32), 3)


def test_rows_that_a_search_does_not_know_count_as_skipped(coder: DeviceCoder) -> None:
    rng = np.random.default_rng(22)
    rows = random_part(rng, 300)[1]
    residuals, charges = random_residuals(rng, rows), TABLES.charges(0.1)
    want = trellis.quantise(residuals, rows, charges, 2)
    rows[rows == SKIP_ROW] = rng.integers(tables.ROWS, 256, int((rows == SKIP_ROW).sum()))
    got = coder.quantise(*to_search(coder, residuals, rows, charges), 2)
    np.testing.assert_array_equal(got.cpu().numpy(), want)


def test_bad_rows_are_refused(coder: DeviceCoder) -> None:
    rows = torch.tensor([3, 128, 254, 255], dtype=torch.uint8, device=coder.device)
    with pytest.raises(InputError, match="neither a table row nor 255"):
        coder.encode([(torch.zeros(4, dtype=torch.int16, device=coder.device), rows)], 1, 1)
    decoder = coder.decoder(CPU.encode(DAMAGED_PARTS))
    assert decoder.decode(rows).shape == (4,)
    with pytest.raises(InputError, match="neither a table row nor 255"):
        decoder.finish()


def test_wrong_arguments_are_refused(coder: DeviceCoder) -> None:
    def zeros(size: int, dtype: torch.dtype, device: torch.device | str = coder.device) -> Tensor:
        return torch.zeros(size, dtype=dtype, device=device)

    values, rows = zeros(8, torch.int16), zeros(8, torch.uint8)
    decoder = coder.decoder(CPU.encode([], 1, 1))
    for bad, match in (
        (zeros(8, torch.uint8, "meta"), "is on meta"),
        (zeros(8, torch.int8), "contiguous 1-D torch.uint8"),
        (rows[::2], "contiguous"),
        (rows.view(2, 4), "1-D"),
        ([1, 2], "must be a tensor, got list"),
    ):
        with pytest.raises(InputError, match=match):
            coder.encode([(values, bad)], 1, 1)  # type: ignore[list-item]
        with pytest.raises(InputError, match=match):
            decoder.decode(bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="differ in length"):
        coder.encode([(values[:7], rows)], 1, 1)
    with pytest.raises(InputError, match="differ in length"):
        decoder.decode(rows, out=values[:7])
    with pytest.raises(InputError, match=r"values must be .*torch\.int16"):
        coder.encode([(values.int(), rows)], 1, 1)
    charges = zeros(2 * 128 * 256, torch.int32).view(2, 128, 256)
    for arguments, match in (
        ((zeros(7, torch.int32), rows, charges), "differ in length"),
        ((values, rows, charges), r"residuals must be .*torch\.int32"),
        ((zeros(8, torch.int32), rows, charges.float()), r"charges must be a contiguous 3-D torch\.int32"),
        ((zeros(8, torch.int32), rows, charges[:, :, 1:]), "charges must be a contiguous"),
        ((zeros(8, torch.int32), rows, charges[:1]), r"charges must be \[2, 128, 256\], got \[1, 128, 256\]"),
    ):
        with pytest.raises(InputError, match=match):
            coder.quantise(*arguments, 1)
    for groups in (0, 65):
        with pytest.raises(ConfigError, match="no streams of"):
            coder.quantise(zeros(8, torch.int32), rows, charges, groups)
    for lanes, groups in ((3, 1), (64, 1), (1, 0), (1, 65)):
        with pytest.raises(ConfigError, match="no layout"):
            coder.encode([(values, rows)], lanes, groups)
    with pytest.raises(ConfigError, match="capacity"):
        coder.decoder()
    with pytest.raises(ConfigError, match="capacity"):
        coder.decoder(capacity=1 << 31)
    with pytest.raises(ConfigError, match="positions"):
        coder.decoder(capacity=8, positions=-1)


def test_without_a_device_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_module.available() == (False, "PyTorch sees no CUDA device")
    with pytest.raises(BackendUnavailableError, match="no CUDA device"):
        DeviceCoder(TABLES, "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(BackendUnavailableError, match="not on cpu"):
        DeviceCoder(TABLES, "cpu")


FAKE_NVCC = """#!/bin/sh
echo run >> "{log}"
while [ "$1" != -o ]; do shift; done
[ -n "{error}" ] && echo "{error}" >&2 && exit 2
echo library > "$2"
"""


def fake_nvcc(folder: Path, monkeypatch: pytest.MonkeyPatch, error: str = "") -> Path:
    """Puts a compiler that writes a file or fails before all others; returns its log."""
    folder.mkdir(exist_ok=True)
    log = folder / "log"
    (folder / "nvcc").write_text(FAKE_NVCC.format(log=log, error=error))
    (folder / "nvcc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return log


def test_a_library_is_built_once_per_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = fake_nvcc(tmp_path / "bin", monkeypatch)
    monkeypatch.setenv("DCA_CACHE", str(tmp_path / "cache"))
    path = cuda_library.build("sm_90")
    assert path.parent == tmp_path / "cache"
    assert path.read_text() == "library\n"
    assert cuda_library.build("sm_90") == path
    assert cuda_library.build("sm_80") != path
    assert cuda_library.build("sm_80", tmp_path / "other").parent == tmp_path / "other"
    assert log.read_text() == 3 * "run\n"
    assert sorted(p.suffix for p in path.parent.iterdir()) == ["", ".sha256", ".sha256", ".so", ".so"]
    for other in (path, Path(str(find_spec("dca_fast._rans").origin))):
        with pytest.raises(BackendUnavailableError, match="cannot be loaded"):
            Library(other)


def test_a_library_that_was_cut_or_replaced_is_built_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not tried: loading one that was cut ends the process."""
    log = fake_nvcc(tmp_path / "bin", monkeypatch)
    monkeypatch.setenv("DCA_CACHE", str(tmp_path / "cache"))
    path = cuda_library.build("sm_90")
    digest = path.with_suffix(".sha256")
    for i, (file, content) in enumerate(((path, b"lib"), (path, b"another"), (digest, b"00"), (digest, b"\xff"))):
        file.write_bytes(content)
        assert cuda_library.build("sm_90").read_text() == "library\n"
        assert log.read_text() == (i + 2) * "run\n"
    digest.unlink()  # as in caches of old
    cuda_library.build("sm_90")
    assert log.read_text() == 5 * "run\n"


def test_the_cache_is_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = fake_nvcc(tmp_path / "bin", monkeypatch)
    cache = tmp_path / "cache"
    monkeypatch.setenv("DCA_CACHE", str(cache))
    path = cuda_library.build("sm_90")
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    # No compiler is needed where the library is there.
    monkeypatch.setattr(cuda_library, "_nvcc", lambda: pytest.fail("asked for a compiler"))
    assert cuda_library.build("sm_90") == path
    for loose in (cache, path):
        mode = loose.stat().st_mode
        loose.chmod(mode | 0o020)
        with pytest.raises(BackendUnavailableError, match="others can write to"):
            cuda_library.build("sm_90")
        loose.chmod(mode)
    monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    if path.stat().st_uid:
        with pytest.raises(BackendUnavailableError, match="others can write to"):
            cuda_library.build("sm_90")
    assert log.read_text() == "run\n"


def test_the_lock_follows_no_link_and_cuts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvcc(tmp_path / "bin", monkeypatch)
    cache, victim = tmp_path / "cache", tmp_path / "victim"
    monkeypatch.setenv("DCA_CACHE", str(cache))
    victim.write_text("of the user")
    cache.mkdir(mode=0o700)
    (cache / "lock").symlink_to(victim)
    with pytest.raises(BackendUnavailableError, match="cannot be built"):
        cuda_library.build("sm_90")
    assert victim.read_text() == "of the user"
    (cache / "lock").unlink()
    (cache / "lock").write_text("content")
    cuda_library.build("sm_90")
    assert (cache / "lock").read_text() == "content"


def test_what_cannot_be_loaded_is_built_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = fake_nvcc(tmp_path / "bin", monkeypatch)
    monkeypatch.setenv("DCA_CACHE", str(tmp_path / "cache"))
    with pytest.raises(BackendUnavailableError, match="cannot be loaded"):
        cuda_library.load.__wrapped__("sm_90")
    assert log.read_text() == 2 * "run\n"


def test_a_changed_source_is_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvcc(tmp_path / "bin", monkeypatch)
    monkeypatch.setattr(cuda_library, "PACKAGE", tmp_path)
    (tmp_path / "csrc" / "coder").mkdir(parents=True)
    for name in cuda_library.SOURCES:
        shutil.copy(ROOT / "csrc" / "coder" / name, tmp_path / "csrc" / "coder")
    before = cuda_library.build("sm_90", tmp_path / "cache")
    with open(tmp_path / "csrc/coder/rans.h", "a") as header:
        header.write("// changed\n")
    assert cuda_library.build("sm_90", tmp_path / "cache") != before


def test_a_failed_build_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("DCA_CACHE", raising=False)
    fake_nvcc(tmp_path / "bin", monkeypatch, error="unknown architecture")
    with pytest.raises(BackendUnavailableError, match="nvcc failed: unknown architecture"):
        cuda_library.build("sm_90")
    assert [p.name for p in (tmp_path / "dca-fast").iterdir()] == ["lock"]
    (tmp_path / "file").write_text("")
    with pytest.raises(BackendUnavailableError, match="cannot be built in"):
        cuda_library.build("sm_90", tmp_path / "file")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(BackendUnavailableError, match="no nvcc"):
        cuda_library.build("sm_90")
    monkeypatch.setattr(cuda_library, "PACKAGE", tmp_path / "nowhere" / "package")
    with pytest.raises(BackendUnavailableError, match="sources"):
        cuda_library.build("sm_90")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_nvcc_compiles_without_spills_and_warnings(arch: str, tmp_path: Path) -> None:
    flags = [*cuda_library.FLAGS, f"-arch={arch}", "-Xptxas", "-v", "-Werror", "all-warnings"]
    command = ["nvcc", *flags, "-Xcompiler", "-Wall,-Wextra", "-o", str(tmp_path / "a.so"), "csrc/coder/rans_cuda.cu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    stacks = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert len(stacks) > 8
    assert set(stacks) == {("0", "0", "0")}
    Library(tmp_path / "a.so")


@pytest.mark.slow
@needs_gcc
def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    cpu = [f"csrc/coder/rans_{name}.cpp" for name in ("scalar", "avx2", "avx512", "coder")]
    flags = ["-std=c++17", "-O1", "-pthread", "-Wno-unknown-pragmas"]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    program = str(tmp_path / "rans_emulated")
    sources = [
        "-I",
        "csrc/coder",
        "-I",
        "tests/cuda",
        "-x",
        "c++",
        "csrc/coder/rans_cuda.cu",
        "tests/cuda/rans_emulated.cpp",
        *cpu,
    ]
    subprocess.run(["g++", *flags, *sanitizers, *sources, "-o", program], cwd=ROOT, check=True)
    done = subprocess.run([program, "40"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "200 hostile streams" in done.stdout


@pytest.fixture
def gpu() -> DeviceCoder:
    return DeviceCoder(TABLES)


@pytest.mark.gpu
def test_large_parts_on_a_gpu(gpu: DeviceCoder) -> None:
    rng = np.random.default_rng(14)
    parts = [random_part(rng, size, 0.6) for size in (2_100_000, 300_000, 1_000_001)]
    rows, charges = parts[0][1], TABLES.charges(0.1)
    residuals = random_residuals(rng, rows)
    arrays = to_search(gpu, residuals, rows, charges)
    for lanes, groups in ((32, 1), (32, 16), (32, 64), (4, 2)):
        values = gpu.quantise(*arrays, groups).cpu().numpy()
        np.testing.assert_array_equal(values, CPU.quantise(residuals, rows, charges, groups))
        assert_same_as_cpu(gpu, [*parts, (values, rows)], lanes, groups, plain=3)


@pytest.mark.gpu
def test_a_recorded_graph_searches_and_encodes(gpu: DeviceCoder) -> None:
    rng = np.random.default_rng(23)
    rows, charges = random_part(rng, 40_000, 0.5)[1], TABLES.charges(0.1)
    fixed = to_search(gpu, random_residuals(rng, rows), rows, charges)

    def run() -> tuple[Tensor, Encoded]:
        values = gpu.quantise(*fixed, 5)
        return values, gpu.start_encode([(values, fixed[1])], 32, 5, plain=0)

    run()  # loads the kernels
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        values, encoded = run()
    for skipped in (0.1, 0.9, 0.5):
        rows = random_part(rng, 40_000, skipped)[1]
        residuals = random_residuals(rng, rows)
        for to, new in zip(fixed, (residuals, rows), strict=False):
            to.copy_(torch.tensor(new))
        graph.replay()
        want = CPU.quantise(residuals, rows, charges, 5)
        assert encoded.read()[0][0] == CPU.encode([(want, rows)], 32, 5, plain=0)
        np.testing.assert_array_equal(values.cpu().numpy(), want)


@pytest.mark.gpu
def test_a_recorded_graph_decodes_every_stream(gpu: DeviceCoder) -> None:
    rng = np.random.default_rng(15)
    sizes = (5000, 40_000)
    decoder = gpu.decoder(capacity=1 << 20, positions=max(sizes))
    rows = [torch.empty(size, dtype=torch.uint8, device="cuda") for size in sizes]
    outputs = [torch.empty(size, dtype=torch.int16, device="cuda") for size in sizes]

    def load(parts: Sequence[Part], lanes: int, groups: int) -> None:
        decoder.reset(CPU.encode(parts, lanes, groups))
        for fixed, (_, new) in zip(rows, parts, strict=True):
            fixed.copy_(torch.tensor(new))

    def run() -> None:
        for i, (r, out) in enumerate(zip(rows, outputs, strict=True)):
            decoder.decode(r, last=i == 1, out=out)
        decoder.close()

    images = [[random_part(rng, size, skipped) for size in sizes] for skipped in (0.1, 0.9, 0.5)]
    load(images[0], 32, 1)
    run()  # loads the kernels
    decoder.check()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for parts, (lanes, groups) in zip([*images, *images], [(32, 4), (1, 1), (16, 64)] * 2, strict=True):
        load(parts, lanes, groups)
        graph.replay()
        decoder.check()
        for out, want in zip(outputs, expected(parts), strict=True):
            np.testing.assert_array_equal(out.cpu().numpy(), want)


@pytest.mark.gpu
def test_a_stream_is_not_reset_while_a_graph_is_captured(gpu: DeviceCoder) -> None:
    decoder = gpu.decoder(CPU.encode(DAMAGED_PARTS))
    graph = torch.cuda.CUDAGraph()
    decoder.close()  # loads the kernel
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        decoder.close()
        with pytest.raises(BackendUnavailableError, match="captur"):
            decoder.reset(CPU.encode([], 1, 1))


@pytest.mark.gpu
def test_several_streams_at_once_on_a_gpu(gpu: DeviceCoder) -> None:
    rng = np.random.default_rng(16)
    images = [[random_part(rng, size, 0.4) for size in (100_000, 50_000)] for _ in range(6)]
    queues = [torch.cuda.Stream() for _ in images]
    inputs = [on_device(gpu, parts) for parts in images]
    torch.cuda.synchronize()
    started = []
    for i, queue in enumerate(queues):
        with torch.cuda.stream(queue):
            decoder = gpu.decoder(CPU.encode(images[i], 32, 1 + i))
            values = [decoder.decode(rows, last=j == 1) for j, (_, rows) in enumerate(inputs[i])]
            decoder.close()
            started.append((decoder, values, gpu.start_encode(inputs[i], 32, 1 + i)))
    for i, (decoder, values, encoded) in enumerate(started):
        with torch.cuda.stream(queues[i]):
            decoder.check()
            assert encoded.read()[0][0] == CPU.encode(images[i], 32, 1 + i)
            for got, want in zip(values, expected(images[i]), strict=True):
                np.testing.assert_array_equal(got.cpu().numpy(), want)
