"""Large pictures in tiles: where these lie, the table of the stream, regions, and files of every backend."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dca_fast import Codec
from dca_fast.config import REDUCTIONS
from dca_fast.engines import tiles
from dca_fast.entropy.coder import crc32
from dca_fast.errors import BitstreamError, CorruptStreamError, InputError, TruncatedStreamError
from dca_fast.files import container
from dca_fast.network import walk
from dca_fast.network.walk import Grid
from dca_fast.testing import photograph
from tests.optional import torch

SIZE = 230, 400  # height and width: 16 x 28 sites, which do not touch all of the last ones


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 8 sites, so that small pictures have them."""
    monkeypatch.setattr(walk, "TILE", 8)


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(threads=2)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1, 1), (1, 1)),
        ((2160, 3840), (1, 2)),
        ((3456, 2304), (2, 1)),
        ((3392, 2304), (1, 1)),
        ((4000, 6000), (2, 2)),
        ((6000, 4000), (2, 2)),
        ((4000, 8000), (2, 3)),
        ((10000, 10000), (4, 5)),
        ((64, 65535), (1, 1)),
        ((65535, 400), (6, 1)),
        ((65535, 65535), (28, 29)),
    ],
)
def test_tiles_cover_a_picture_once_and_are_about_alike(size: tuple[int, int], expected: tuple[int, int]) -> None:
    grid = Grid.of(*size)
    found = grid.tiles()
    assert (len({tile.top for tile in found}), len({tile.left for tile in found})) == expected
    counts = np.zeros(tuple(side // 4 for side in grid.sites), int)
    valid = 0
    for tile in found:
        assert all(side % 4 == 0 for side in (tile.top, tile.left, *tile.grid.sites))
        counts[tile.top // 4 : tile.bottom // 4, tile.left // 4 : tile.right // 4] += 1
        valid += tile.grid.valid[0] * tile.grid.valid[1]
    assert (counts == 1).all()
    assert valid == grid.valid[0] * grid.valid[1]
    assert len({tile.grid.sites[0] for tile in found}) <= 2
    assert len({tile.grid.sites[1] for tile in found}) <= 2
    areas = [tile.grid.sites[0] * tile.grid.sites[1] for tile in found]
    if len(found) > 1:
        assert 0.7 * 144**2 < min(areas) <= max(areas) <= 1.5 * 144**2
    assert list(found) == sorted(found, key=lambda tile: (tile.top, tile.left))


def test_small_pictures_are_one_tile_which_is_all() -> None:
    for size in ((1, 1), (64, 64), (1080, 1920), (2304, 3008), (3000, 2000)):
        grid = Grid.of(*size)
        assert grid.tiles() == ((0, 0, grid),)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("effort", [0, 1, 2, 3])
def test_backends_make_and_read_the_same_files(codec: Codec, effort: int) -> None:
    assert torch.__version__
    image, reference = photograph(*SIZE, seed=4), Codec(backend="reference")
    data = codec.encode(image, 40, effort=effort)
    assert len(Grid.of(*SIZE).tiles()) == 8
    if effort < 3:
        assert reference.encode(image, 40, effort=effort) == data
    pixels = codec.decode(data, "numpy")
    assert np.array_equal(reference.decode(data, "numpy"), pixels)
    assert np.array_equal(Codec(threads=1).decode(data, "numpy"), pixels)
    whole = pytest.MonkeyPatch()
    with whole.context() as patch:  # little is lost by tiles
        patch.setattr(walk, "TILE", 1000)
        other = codec.decode(codec.encode(image, 40, effort=effort), "numpy")
    errors = [np.square(found.astype(float) - image).mean() for found in (pixels, other)]
    assert errors[0] < 1.1 * errors[1]


@pytest.mark.usefixtures("small")
def test_tiles_have_no_seams(codec: Codec) -> None:
    """A step of a smooth picture is not larger between tiles than within them."""
    ramp = np.add.outer(np.linspace(20, 120, SIZE[0]), np.linspace(0, 110, SIZE[1]))
    pixels = codec.decode(codec.encode(np.dstack([ramp] * 3).astype(np.uint8), 30), "numpy").astype(int)
    cuts = [16 * tile.left for tile in Grid.of(*SIZE).tiles() if tile.left]
    steps = np.abs(np.diff(pixels, axis=1)).mean((0, 2))
    assert steps[[cut - 1 for cut in cuts]].max() < 2 * steps.mean()


REGIONS = [
    (0, 0, 400, 230),
    (0, 0, 1, 1),
    (399, 229, 1, 1),
    (17, 33, 50, 41),
    (130, 60, 128, 128),
    (0, 100, 400, 3),
    (200, 0, 5, 230),
]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("output", ["numpy", "pil", "torch"])
@pytest.mark.parametrize("kind", ["colour", "gray", "alpha", "lossless", "untiled", "deep"])
def test_a_region_is_the_crop_of_the_whole(
    codec: Codec, kind: str, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert output != "torch" or torch.__version__
    image: Any = photograph(*SIZE, seed=5)
    if kind == "untiled":
        monkeypatch.setattr(walk, "TILE", 1000)
    if kind == "gray":
        image = image[..., 0]
    if kind == "alpha":
        image = np.dstack([image, image[..., 1] // 64 * 64])
    if kind == "deep":
        image = image.astype(np.uint16)[..., 0] * 257
    data = codec.encode(image, "lossless" if kind in ("lossless", "deep") else 55)
    assert kind in ("lossless", "deep") or container.parse(data).header.restoration
    whole = np.asarray(codec.decode(data, output))
    for left, top, width, height in REGIONS:
        part = np.asarray(codec.decode(data, output, region=(left, top, width, height)))
        rows, columns = slice(top, top + height), slice(left, left + width)
        assert np.array_equal(part, whole[:, rows, columns] if output == "torch" else whole[rows, columns])


@pytest.mark.usefixtures("small")
def test_a_region_decodes_the_tiles_that_it_needs(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    data, decoded = codec.encode(photograph(256, 1024, seed=5), 55), []  # 2 x 8 tiles of 8 x 8 sites
    open_stream = codec.engine.coder.decoder

    def counted(stream: bytes) -> Any:
        decoded.append(len(stream))
        return open_stream(stream)

    monkeypatch.setattr(codec.engine.coder, "decoder", counted)
    for region, count in (((0, 0, 1024, 256), 16), ((0, 0, 40, 40), 1), ((500, 120, 8, 8), 4), ((0, 0, 100, 40), 2)):
        decoded.clear()
        codec.decode(data, "numpy", region=region)
        assert len(decoded) == count, region


@pytest.mark.parametrize(
    "region",
    [
        (0, 0, 0, 1),
        (0, 0, 1, 0),
        (-1, 0, 5, 5),
        (0, -1, 5, 5),
        (0, 0, 401, 1),
        (0, 0, 1, 231),
        (400, 0, 1, 1),
        (1 << 70, 0, 1, 1),
        (0, 0, 10),
        (0, 0, 10, 10, 10),
        (0.0, 0, 10, 10),
        (0, 0, True, 1),
        "0,0,",
    ],
)
def test_other_regions_are_refused(codec: Codec, region: Any) -> None:
    for quality in (20, "lossless"):
        data = codec.encode(photograph(*SIZE, seed=1), quality, effort=0)
        with pytest.raises(InputError, match="region"):
            codec.decode(data, region=region)


def test_numbers_of_numpy_make_a_region(codec: Codec) -> None:
    data = codec.encode(photograph(40, 40, seed=1), 20, effort=0)
    assert codec.decode(data, region=np.array([1, 2, 3, 4])).size == (3, 4)


def test_the_table_goes_both_ways() -> None:
    for sizes in ((5,), (1, 1), (127, 128, 3), (70000, 2, 2, 300)):
        coded = [(bytes([i]) * size, 0xFFFFFFFF - i) for i, size in enumerate(sizes)]
        stream, digest = tiles.join(coded)
        streams, digests = tiles.split(stream, len(coded))
        assert streams == [own for own, _ in coded]
        found: list[int | None] = [own for _, own in coded]
        assert tiles.checked(digests, found) == digest
        if len(coded) > 1:
            assert tiles.checked(digests, [None, *found[1:]]) == digest == crc32(b"".join(digests), 0)
            with pytest.raises(CorruptStreamError, match="tile 1 do not have its digest"):
                tiles.checked(digests, [found[0], 5, *found[2:]])


def test_wrong_tables_are_refused_before_anything_is_made_of_them() -> None:
    coded = [(b"a" * 200, 1), (b"b" * 3, 2), (b"c" * 4, 3)]
    stream, _ = tiles.join(coded)
    for end in range(len(stream) - 4):
        with pytest.raises(TruncatedStreamError):
            tiles.split(stream[:end], 3)
    for size in (b"\x80\x00", b"\xc8\x81\x00", b"\x80\x80\x80\x80\x80", b"\xff\xff\xff\xff\xff\x01"):
        with pytest.raises(CorruptStreamError, match="malformed size"):
            tiles.split(stream[:4] + size + stream[6:], 3)
    with pytest.raises(TruncatedStreamError, match="inside its 3 tiles"):
        tiles.split(stream[:4] + b"\xff\xff\xff\xff\x7f" + stream[6:], 3)
    with pytest.raises(TruncatedStreamError, match="table of its 1000000000 tiles"):
        tiles.split(stream, 10**9)


@pytest.mark.usefixtures("small")
def test_damaged_tiles_raise(codec: Codec) -> None:
    """Whatever the checksum of the file says: it is made good again."""
    dca = container.parse(codec.encode(photograph(*SIZE, seed=3), 30, effort=0))
    generator = np.random.default_rng(2)
    for _ in range(60):
        stream = bytearray(dca.stream)
        stream[int(generator.integers(len(stream)))] ^= 1 << int(generator.integers(8))
        with pytest.raises(BitstreamError):
            codec.decode(container.pack(dca.header, bytes(stream), dca.sections))
    for end in (0, 1, 20, 45, len(dca.stream) // 2, len(dca.stream) - 1):
        with pytest.raises(BitstreamError):
            codec.decode(container.pack(dca.header, dca.stream[:end], dca.sections))
    with pytest.raises(BitstreamError):
        codec.decode(container.pack(dca.header, dca.stream + b"\0\0", dca.sections))


@pytest.mark.usefixtures("small")
def test_a_region_is_verified_alone(codec: Codec) -> None:
    """A damaged tile is no matter where it is not needed, and the digest of all is that of the table."""
    dca = container.parse(codec.encode(photograph(*SIZE, seed=3), 30, effort=0))
    stream = bytearray(dca.stream)
    stream[-20] ^= 1  # in the last tile
    damaged = container.pack(dca.header, bytes(stream), dca.sections)
    with pytest.raises(BitstreamError):
        codec.decode(damaged)
    with pytest.raises(BitstreamError):
        codec.decode(damaged, region=(390, 220, 10, 10))
    expected = codec.decode(container.pack(dca.header, dca.stream, dca.sections), "numpy")[:40, :40]
    assert np.array_equal(codec.decode(damaged, "numpy", region=(0, 0, 40, 40)), expected)


def test_the_golden_file(codec: Codec) -> None:
    golden = Path(__file__).parent / "golden"
    data = (golden / "tiles.dca").read_bytes()
    pixels = codec.decode(data, "numpy")
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == (golden / "tiles.sha256").read_text().strip()
    for region in ((1700, 900, 140, 100), (0, 0, 64, 64), (3480, 2250, 40, 54)):
        left, top, width, height = region
        part = codec.decode(data, "numpy", region=region)
        assert np.array_equal(part, pixels[top : top + height, left : left + width])
    hashes = (golden / "previews.sha256").read_text().split()
    for reduce, expected in zip(REDUCTIONS[1:], hashes, strict=True):
        assert hashlib.sha256(codec.decode(data, "numpy", reduce=reduce).tobytes()).hexdigest() == expected
