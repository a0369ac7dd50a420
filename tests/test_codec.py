"""The codec with the shipped weights: exactness across backends, threads, batches and sizes; bad input; bad files."""

import io
import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dca_fast
from dca_fast import Codec, backends, errors, inspect
from dca_fast.entropy import coder
from dca_fast.errors import (
    BackendUnavailableError,
    BitstreamError,
    ConfigError,
    CorruptStreamError,
    InputError,
    LimitExceededError,
    NotADcaFileError,
    TruncatedStreamError,
    UnknownModelError,
    WeightsError,
)
from dca_fast.evaluation.measure import psnr
from dca_fast.files import container
from dca_fast.files.image_io import ImageInput
from dca_fast.testing import photograph
from tests.optional import torch

GOLDEN = Path(__file__).parent / "golden"
SIZES = [(1, 1), (1, 17), (16, 16), (63, 65), (127, 129), (1000, 3)]


@pytest.fixture(scope="module")
def native() -> Codec:
    return Codec("dca-s", backend="native", threads=1)


@pytest.fixture(scope="module")
def reference() -> Codec:
    assert torch.__version__
    return Codec("dca-s", backend="reference")


def test_auto_takes_the_fastest_and_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("DCA_BACKEND", raising=False)
    assert backends.resolve().name == "native"
    assert not caplog.records
    monkeypatch.setitem(backends._STATES, "native", lambda: (False, "there was no compiler"))
    assert torch.__version__
    assert backends.resolve().name == "reference"
    assert "there was no compiler" in caplog.text
    caplog.clear()
    monkeypatch.setenv("DCA_BACKEND", "reference")
    assert backends.resolve().name == "reference"
    assert not caplog.records


@pytest.mark.parametrize("size", SIZES)
def test_backends_agree_at_every_size(native: Codec, reference: Codec, size: tuple[int, int]) -> None:
    image = photograph(*size, seed=size[0])
    for quality, effort in ((0, 1), (61.37, 0), (61.37, 1), (100, 1)):
        data = native.encode(image, quality, effort=effort)
        assert reference.encode(image, quality, effort=effort) == data
        pixels = native.decode(data, "numpy")
        assert pixels.shape == (*size, 3)
        assert np.array_equal(reference.decode(data, "numpy"), pixels)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_the_golden_files(backend: str) -> None:
    """Bytes and pixels that another machine wrote down."""
    assert backend != "reference" or torch.__version__
    check = runpy.run_path(str(GOLDEN / "check.py"))["check"]
    check(Codec(backend=backend), efforts=2 if backend == "reference" else 6)  # the others take the reference minutes


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("isa", ["scalar", "neon", "avx2", "avx512", "avx512-tall", "amx"])
def test_threads_and_instruction_sets_change_nothing(
    native: Codec, monkeypatch: pytest.MonkeyPatch, isa: str, threads: int
) -> None:
    from dca_fast.ops import native as ops

    if isa not in ops.isas():
        pytest.skip(f"this processor has no {isa}")
    image = photograph(190, 330, seed=8)
    data = native.encode(image, 80)
    pixels = native.decode(data, "numpy")
    monkeypatch.setenv("DCA_ISA", isa)
    try:
        other = Codec("dca-s", backend="native", threads=threads)
        assert ops.isa() == isa
        assert other.encode(image, 80) == data
        assert np.array_equal(other.decode(data, "numpy"), pixels)
    finally:
        ops.set_isa("auto")


def test_batches_are_the_single_files(native: Codec) -> None:
    images = [photograph(96, 64, seed=i) for i in range(3)] + [photograph(33, 70, seed=9)]
    files = native.encode_batch(images, 40)
    assert files == [native.encode(image, 40) for image in images]
    for pixels, data in zip(native.decode_batch(files, "numpy"), files, strict=True):
        assert np.array_equal(pixels, native.decode(data, "numpy"))


def test_quality_buys_fidelity_with_bytes(native: Codec) -> None:
    image = photograph(256, 384, seed=4)
    sizes, fidelity = [], []
    for quality in range(0, 101, 10):
        data = native.encode(image, quality)
        sizes.append(len(data))
        fidelity.append(psnr(native.decode(data, "numpy"), image))
    assert sizes == sorted(sizes)
    assert fidelity[-1] > fidelity[0] + 4
    assert fidelity[-1] > 30


def test_quality_is_continuous(native: Codec) -> None:
    image = photograph(128, 128, seed=4)
    files = {native.encode(image, q) for q in (50, 50.5, 51)}
    assert len(files) == 3
    assert inspect(native.encode(image, 50.25)).quality == 50.25


def test_every_input_type_gives_the_same_bytes(native: Codec) -> None:
    image = photograph(40, 50)
    data = native.encode(image)
    assert native.encode(Image.fromarray(image)) == data
    assert native.encode(np.ascontiguousarray(image[:, ::-1])[:, ::-1]) == data
    assert native.encode(torch.from_numpy(image).permute(2, 0, 1)) == data


def test_paths_and_file_objects_are_read(native: Codec, tmp_path: Path) -> None:
    image = photograph(24, 40)
    data = native.encode(image)
    path, coded = tmp_path / "photo.png", tmp_path / "photo.dca"
    Image.fromarray(image).save(path)
    coded.write_bytes(data)
    for source in (path, str(path), io.BytesIO(path.read_bytes())):
        assert native.encode(source) == data
    with path.open("rb") as file:
        assert native.encode(file) == data
    for source in (coded, str(coded), io.BytesIO(data), bytearray(data), memoryview(data)):
        assert np.array_equal(native.decode(source, "numpy"), native.decode(data, "numpy"))


def test_alpha_and_gray_come_in_and_out_of_arrays_and_tensors(native: Codec) -> None:
    image = photograph(24, 40)
    alpha = np.linspace(1, 255, 24 * 40).astype(np.uint8).reshape(24, 40)
    four = np.dstack([image, alpha])
    data = native.encode(Image.fromarray(four))
    assert native.encode(four) == data
    pixels = native.decode(data, "numpy")
    assert pixels.shape == (24, 40, 4)
    assert np.array_equal(pixels[..., 3], alpha)
    assert np.array_equal(np.asarray(native.decode(data)), pixels)
    opaque = np.dstack([image, np.full_like(alpha, 255)])
    assert native.encode(opaque) == native.encode(image)
    gray = native.encode(image[..., 0])
    assert native.encode(image[..., :1]) == gray
    assert native.encode(torch.from_numpy(four).permute(2, 0, 1)) == data
    assert np.array_equal(native.decode(data, "torch").permute(1, 2, 0).numpy(), pixels)
    assert native.encode(torch.from_numpy(image[..., 0])[None]) == gray


def test_a_batch_is_told_what_one_image_is(native: Codec) -> None:
    told: list[float] = []
    images, block = np.stack([photograph(20, 30, seed=i) for i in range(2)]), b"<x/>"
    for quality in (60, "lossless"):
        told.clear()
        files = native.encode(images, quality, metadata={"xmp": block}, progress=told.append)  # type: ignore[arg-type]
        assert [native.decode(data).info["xmp"] for data in files] == [block, block]  # type: ignore[arg-type]
        assert told == [0.5, 1.0]


@pytest.mark.parametrize(
    "image",
    [
        ImageInput(photograph(4, 5), np.zeros((4, 5), np.uint16)),
        ImageInput(photograph(4, 5), np.zeros((5, 4), np.uint8)),
        ImageInput(photograph(4, 5), b"alpha"),
        ImageInput(photograph(4, 5)[..., 0]),
        ImageInput(photograph(4, 5) / 255),
        ImageInput(photograph(4, 5), gray=True),
        ImageInput([[1, 2, 3]]),
    ],
)
@pytest.mark.parametrize("quality", [60, 100, "lossless"])
def test_an_image_input_is_what_it_says(native: Codec, image: ImageInput, quality: float | str) -> None:
    with pytest.raises(InputError, match=r"must be uint8|three planes are not equal"):
        native.encode(image, quality)


def test_numbers_of_numpy_are_numbers(native: Codec) -> None:
    image = photograph(20, 30)
    rgba = np.dstack([image, image[..., 0]])
    data = native.encode(rgba, np.float32(60), alpha_quality=np.float32(50), effort=np.int64(0))  # type: ignore[arg-type]
    assert data == native.encode(rgba, 60, alpha_quality=50, effort=0)
    assert native.decode(data, "numpy", reduce=np.int64(2)).shape == (10, 15, 4)
    gray = image[..., 0].view(np.matrix)
    for quality in (60, "lossless"):
        assert native.encode(gray, quality, effort=0) == native.encode(image[..., 0], quality, effort=0)
    for encode in (native.encode, lambda image, quality: native.encode_batch([image], quality)):
        with pytest.raises(ConfigError, match="quality must be"):
            encode(image, np.array([50, 50]))  # type: ignore[arg-type]
    assert Codec(threads=np.int64(2), max_pixels=np.int64(600)).threads == 2  # type: ignore[arg-type]
    assert Codec(threads=10**12).encode(image, 60) == native.encode(image, 60)
    for region in (5, (1, 2), iter((0, 0, 1, 1.5)), (0, 0, True, 1)):
        with pytest.raises(InputError, match="a region is"):
            native.decode(data, region=region)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="metadata holds bytes"):
        native.encode(image, metadata=[])  # type: ignore[arg-type]


def test_batches_of_four_dimensions_give_lists(native: Codec) -> None:
    images = np.stack([photograph(24, 40, seed) for seed in range(3)])
    files = [native.encode(image) for image in images]
    assert native.encode(images) == native.encode_batch(images) == files
    assert native.encode_batch(iter(images), effort=0) == [native.encode(image, effort=0) for image in images]
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2)
    assert native.encode(tensors) == native.encode_batch(tensors) == files
    assert native.encode(tensors[:1]) == files[:1]


def test_a_codec_says_what_it_is(native: Codec) -> None:
    assert repr(native) == f"Codec('dca-s', model_id='{native.model_id}', backend='native', threads=1)"


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_can_be_imported_from_the_package(name: str) -> None:
    assert getattr(dca_fast, name) is getattr(errors, name)
    assert name in dca_fast.__all__


def test_every_output_type_holds_the_same_pixels(native: Codec) -> None:
    assert torch.__version__
    data = native.encode(photograph(40, 50))
    pixels = native.decode(data, "numpy")
    assert np.array_equal(np.asarray(native.decode(data)), pixels)
    tensor = native.decode(data, "torch")
    assert tensor.dtype == torch.uint8
    assert np.array_equal(tensor.permute(1, 2, 0).numpy(), pixels)


def test_gray_alpha_and_metadata_survive(native: Codec) -> None:
    image = photograph(48, 32)
    gray = native.decode(native.encode(image[:, :, 0]))
    assert gray.mode == "L"
    alpha = np.linspace(0, 255, 48 * 32).astype(np.uint8).reshape(48, 32)
    source = Image.fromarray(np.dstack([image, alpha]))
    source.info["icc_profile"] = b"profile"
    back = native.decode(native.encode(source))
    assert back.mode == "RGBA"
    assert np.array_equal(np.asarray(back)[:, :, 3], alpha)
    assert back.info["icc_profile"] == b"profile"
    replaced = native.decode(native.encode(image, metadata={"xmp": b"<x/>"}))
    assert replaced.info["xmp"] == b"<x/>"


@pytest.mark.parametrize(
    "image",
    [
        lambda: np.zeros((4, 4, 3), np.float32),
        lambda: np.zeros((4, 4, 2), np.uint8),
        lambda: np.zeros((2, 4, 4, 5), np.uint8),
        lambda: np.zeros((2, 2, 4, 4, 3), np.uint8),
        lambda: np.zeros(4, np.uint8),
        lambda: np.zeros((0, 4, 3), np.uint8),
        lambda: np.zeros((0, 4, 4), np.uint8),
        lambda: torch.zeros(4, 4, dtype=torch.uint8),
        lambda: torch.zeros(5, 4, 3, dtype=torch.uint8),
        lambda: torch.zeros(3, 4, 4),
        lambda: torch.zeros(3, 4, 4, dtype=torch.uint8, device="meta"),
        lambda: torch.zeros(3, 4, 4, dtype=torch.uint8).to_sparse(),
        lambda: io.StringIO("text"),
        lambda: b"bytes",
        lambda: None,
    ],
)
def test_wrong_images_are_refused_by_name(native: Codec, image: Callable[[], Any]) -> None:
    wrong = image()
    with pytest.raises(InputError):
        native.encode(wrong)


def test_a_missing_device_is_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(BackendUnavailableError, match="CUDA device"):
        Codec(device="cuda")


def test_files_that_are_not_there_are_named(native: Codec) -> None:
    for call in (native.encode, native.decode):
        with pytest.raises(FileNotFoundError, match=r"photo\.png"):
            call("photo.png")


def test_wrong_arguments_are_refused_by_name(native: Codec, tmp_path: Path) -> None:
    image = photograph(8, 8)
    assert native.encode(image, np.float32(60)) == native.encode(image, np.int64(60)) == native.encode(image)  # type: ignore[arg-type]
    for quality in (-1, 100.01, float("nan"), "high", True):
        with pytest.raises(ConfigError):
            native.encode(image, quality)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="output"):
        native.decode(native.encode(image), "jpeg")
    for threads in (0, 1.5, True, "2"):
        with pytest.raises(ConfigError, match="threads"):
            Codec(threads=threads)  # type: ignore[arg-type]
    for data in (5, None, io.StringIO("file"), [1, 2]):
        with pytest.raises(InputError, match="bytes"):
            native.decode(data)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="backend"):
        Codec(backend="fpga")
    with pytest.raises(BackendUnavailableError, match="abacus"):
        Codec(device="abacus")
    with pytest.raises(ConfigError, match="does not run on"):
        Codec(device="cpu", backend="cuda")
    with pytest.raises(WeightsError, match="those here: dca-s"):
        Codec("dca-xxl")
    with pytest.raises(WeightsError):
        Codec(weights=tmp_path / "none.safetensors")
    with pytest.raises(LimitExceededError):
        Codec(max_pixels=63).encode(image)
    with pytest.raises(LimitExceededError):
        Codec(max_pixels=63).decode(native.encode(image))


def test_alpha_quality_rounds_alpha_to_fewer_levels(native: Codec) -> None:
    generator = np.random.default_rng(5)
    soft = np.add.outer(np.arange(64) * 2, np.arange(96)) + generator.integers(-2, 3, (64, 96))
    alpha = np.where(np.arange(96) < 8, 0, np.where(np.arange(96) > 90, 255, soft.clip(1, 254))).astype(np.uint8)
    picture = np.dstack([photograph(64, 96), alpha])
    sizes = []
    for quality, levels in ((100, 256), (79, 92), (50, 23), (0, 2)):
        data = native.encode(picture, 60, effort=0, alpha_quality=quality)
        got = native.decode(data, "numpy")[..., 3]
        sizes.append(len(data))
        assert len(np.unique(got)) <= levels
        assert np.abs(got.astype(int) - alpha).max() <= -(-255 // (levels - 1)) // 2 * (levels < 256) + (levels == 2)
        assert (got[alpha == 0] == 0).all()
        assert (got[alpha == 255] == 255).all()
        assert native.encode_batch([picture, picture], 60, effort=0, alpha_quality=quality) == [data, data]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4
    exact = native.encode(picture, "lossless", alpha_quality=0)
    assert np.array_equal(native.decode(exact, "numpy"), picture)
    for bad in (-1, 101, float("nan"), "high", True):
        with pytest.raises(ConfigError, match="alpha_quality"):
            native.encode(picture, alpha_quality=bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("metadata", [{"foo": b"x"}, {"xmp": "text"}, {"alpha": b"junk"}])
def test_wrong_metadata_is_refused_by_name(native: Codec, metadata: dict) -> None:
    with pytest.raises(InputError, match="metadata"):
        native.encode(photograph(8, 8), metadata=metadata)


@pytest.mark.parametrize(("isa", "error"), [("foo", ConfigError), ("", None)])
def test_instruction_sets_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, isa: str, error: type[Exception] | None
) -> None:
    monkeypatch.setenv("DCA_ISA", isa)
    monkeypatch.setenv("DCA_THREADS", "")
    if error is None:
        assert Codec().threads >= 1
    else:
        with pytest.raises(error, match="avx512"):
            Codec()


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_the_hosts_torch_defaults_change_nothing(native: Codec, backend: str) -> None:
    image = photograph(64, 80, seed=1)
    data, smaller = native.encode(image, 70, effort=0), native.encode(image, 70, effort=2)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        codec = Codec(backend=backend)
        assert codec.encode(image, 70, effort=0) == data
        assert codec.encode(image, 70, effort=2) == smaller != data
        pixels = codec.decode(data, "numpy")
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert np.array_equal(pixels, native.decode(data, "numpy"))


def test_every_truncation_is_refused(native: Codec) -> None:
    data = native.encode(photograph(64, 48), 50)
    for size in range(len(data)):
        with pytest.raises((TruncatedStreamError, NotADcaFileError, CorruptStreamError)):
            native.decode(data[:size])


def _decodes_or_raises(codec: Codec, data: bytes, pixels: np.ndarray) -> bool:
    """True if refused. A file that is not refused must give the identical picture."""
    try:
        back = codec.decode(data, "numpy")
    except BitstreamError:
        return True
    assert np.array_equal(back, pixels)
    return False


def test_mutations_are_refused_even_with_a_mended_checksum(native: Codec) -> None:
    """Bytes behind a correct CRC reach the entropy decoder: it and the digest must hold the line, of another size,
    quality, strength, flag or filter, too."""
    data = native.encode(photograph(64, 48), 50)
    pixels = native.decode(data, "numpy")
    generator = np.random.default_rng(0)
    refused = 0
    for i in range(400):
        body = bytearray(data[:-4])
        end = len(body) if i % 2 else 40  # half of them in the header and the filter
        for _ in range(generator.integers(1, 4)):
            body[generator.integers(len(container.MAGIC) + 1, end)] ^= 1 << generator.integers(8)
        body += container.zlib.crc32(body).to_bytes(4, "little")
        try:
            container.parse(bytes(body), max_pixels=1 << 20)
        except BitstreamError:
            refused += 1
            continue
        refused += _decodes_or_raises(native, bytes(body), pixels)
    assert refused > 360


def test_files_of_other_weights_are_refused_by_name(native: Codec) -> None:
    dca = container.parse(native.encode(photograph(16, 16)))
    header = container.Header(16, 16, dca.header.quality, b"abcd", dca.header.digest)
    with pytest.raises(UnknownModelError, match="61626364"):
        native.decode(container.pack(header, dca.stream))


def test_a_wrong_digest_is_refused(native: Codec) -> None:
    dca = container.parse(native.encode(photograph(16, 16)))
    header = replace(dca.header, digest=dca.header.digest ^ 1)
    with pytest.raises(CorruptStreamError, match="digest"):
        native.decode(container.pack(header, dca.stream))


def test_one_codec_serves_many_threads(native: Codec) -> None:
    from concurrent.futures import ThreadPoolExecutor

    images = [photograph(70, 60 + i, seed=i) for i in range(6)]
    expected = [native.encode(image, 30 + i) for i, image in enumerate(images)]
    with ThreadPoolExecutor(4) as pool:
        files = list(pool.map(lambda pair: native.encode(pair[1], 30 + pair[0]), enumerate(images)))
        assert files == expected
        decoded = list(pool.map(lambda data: native.decode(data, "numpy"), files))
    for pixels, data in zip(decoded, expected, strict=True):
        assert np.array_equal(pixels, native.decode(data, "numpy"))


def test_the_python_coder_reads_native_streams(native: Codec, reference: Codec) -> None:
    assert coder.available()[0]
    data = native.encode(photograph(120, 100), 90)
    assert np.array_equal(reference.decode(data, "numpy"), native.decode(data, "numpy"))


def test_the_limit_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument, the environment, 2^28, in this order."""
    picture = photograph(10, 10)
    monkeypatch.delenv("DCA_MAX_PIXELS", raising=False)
    assert Codec().max_pixels == 1 << 28
    data = Codec(max_pixels=100).encode(picture, "lossless")
    monkeypatch.setenv("DCA_MAX_PIXELS", "99")
    for work in (lambda codec: codec.encode(picture, "lossless"), lambda codec: codec.decode(data)):
        with pytest.raises(LimitExceededError, match="99"):
            work(Codec())
        work(Codec(max_pixels=100))
    for text in ("0", "000", "-1", "many", "1e6"):
        monkeypatch.setenv("DCA_MAX_PIXELS", text)
        with pytest.raises(ConfigError, match="DCA_MAX_PIXELS"):
            Codec()
    monkeypatch.setenv("DCA_MAX_PIXELS", "9" * 5000)  # more digits than Python converts
    Codec().encode(picture, "lossless")
    for given in (0, -1, True, "9", 1.5):
        with pytest.raises(ConfigError, match="max_pixels"):
            Codec(max_pixels=given)  # type: ignore[arg-type]
