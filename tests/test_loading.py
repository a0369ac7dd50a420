"""Loaders of training data and libraries of pictures open .dca files."""

import io
import tarfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dca_fast.pillow  # noqa: F401 (what is tested)
from dca_fast import Codec
from dca_fast.errors import CorruptStreamError
from dca_fast.loading import Handler, decoded
from dca_fast.ssimulacra2 import ssimulacra2
from dca_fast.testing import photograph
from tests.optional import torch

PICTURES = [photograph(40, 56, seed=seed) for seed in range(5)]


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(threads=1)


@pytest.fixture(scope="module")
def files(codec: Codec) -> list[bytes]:
    return [codec.encode(picture, effort=0) for picture in PICTURES]


@pytest.fixture
def foreign_warnings() -> Iterator[None]:
    """What other packages warn of is no fault of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def shard(path: Path, files: list[bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for number, data in enumerate(files):
            for name, content in ((f"{number}.dca", data), (f"{number}.txt", b"a picture")):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return str(path)


def test_a_handler_takes_dca_files_only(codec: Codec, files: list[bytes]) -> None:
    handler = Handler("numpy", codec, reduce=8)
    assert handler(".jpg", files[0]) is None
    assert handler(".txt", b"a picture") is None
    assert np.array_equal(handler(".seg.DCA", files[0]), codec.decode(files[0], "numpy", reduce=8))
    assert Handler("pil")(".dca", files[0]).size == (56, 40)
    with pytest.raises(CorruptStreamError):
        handler(".dca", files[0][:-1] + bytes([files[0][-1] ^ 1]))
    with pytest.raises(TypeError, match="reduced"):
        Handler(reduced=8)


@pytest.mark.usefixtures("foreign_warnings")
@pytest.mark.parametrize("workers", [0, 2])
def test_webdataset_decodes_shards(tmp_path: Path, codec: Codec, files: list[bytes], workers: int) -> None:
    webdataset = pytest.importorskip("webdataset", reason="pip install webdataset")
    samples = webdataset.WebDataset(shard(tmp_path / "a.tar", files), shardshuffle=False, empty_check=False)
    loader = torch.utils.data.DataLoader(samples.decode(Handler("torch")), batch_size=None, num_workers=workers)
    found = {sample["__key__"]: sample for sample in loader}
    assert len(found) == len(files)
    for number, data in enumerate(files):
        assert torch.equal(found[str(number)]["dca"], codec.decode(data, "torch"))
        assert found[str(number)]["txt"] == "a picture"


@pytest.mark.usefixtures("foreign_warnings")
def test_webdataset_names_a_damaged_sample(tmp_path: Path, files: list[bytes]) -> None:
    webdataset = pytest.importorskip("webdataset", reason="pip install webdataset")
    path = shard(tmp_path / "a.tar", [files[0], files[1][:-1], files[2]])
    errors: list[Exception] = []

    def note(error: Exception) -> bool:
        errors.append(error)
        return True

    samples = webdataset.WebDataset(path, shardshuffle=False).decode(Handler("numpy"), handler=note)
    assert [sample["__key__"] for sample in samples] == ["0", "2"]
    assert len(errors) == 1


@pytest.mark.usefixtures("foreign_warnings")
def test_webdatasets_own_handler_reads_them_through_pillow(tmp_path: Path, codec: Codec, files: list[bytes]) -> None:
    webdataset = pytest.importorskip("webdataset", reason="pip install webdataset")
    samples = webdataset.WebDataset(shard(tmp_path / "a.tar", files), shardshuffle=False)
    sample = next(iter(samples.decode(webdataset.imagehandler("rgb8", ["dca"]))))
    assert np.array_equal(sample["dca"], codec.decode(files[0], "numpy"))


def check_batches(codec: Codec, on: Codec, files: list[bytes], other: bytes) -> None:
    same, mixed = decoded([{"dca": files, "label": [1, 2, 3, 4, 5]}, {"dca": [files[0], other]}], on)
    assert same["label"] == [1, 2, 3, 4, 5]
    assert same["dca"].shape == (5, 3, 40, 56)
    for picture, data in zip([*same["dca"], *mixed["dca"]], [*files, files[0], other], strict=True):
        assert torch.equal(picture.cpu(), codec.decode(data, "torch"))
    assert [picture.shape[1:] for picture in mixed["dca"]] == [(40, 56), (30, 56)]


def test_batches_are_decoded_behind_the_loader(codec: Codec, files: list[bytes]) -> None:
    assert torch.__version__
    check_batches(codec, codec, files, codec.encode(PICTURES[0][:30], effort=0))


@pytest.mark.gpu
def test_batches_are_decoded_on_a_gpu(codec: Codec, files: list[bytes]) -> None:
    on = Codec(device="cuda")
    check_batches(codec, on, files, codec.encode(PICTURES[0][:30], effort=0))
    (batch,) = decoded([{"dca": files}], on)
    assert batch["dca"].is_cuda


@pytest.mark.usefixtures("foreign_warnings")
def test_hugging_face_datasets(codec: Codec, files: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="pip install datasets")
    rows: dict[str, Any] = {"image": [{"bytes": data, "path": None} for data in files]}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    assert np.array_equal(table[3]["image"], codec.decode(files[3], "numpy"))
    assert torch.equal(table.with_format("torch")[1]["image"], codec.decode(files[1], "torch"))


def test_the_benchmark_compares_like_with_like(
    files: list[bytes], benchmark_script: Callable[[str], ModuleType]
) -> None:
    assert torch.__version__
    script = benchmark_script("measure/loading")

    def score(quality: int) -> float:
        return ssimulacra2(PICTURES[0], script.by_pillow(script.jpeg(PICTURES[0], quality)).permute(1, 2, 0).numpy())

    quality = script.as_good(PICTURES[0], 60)
    assert score(quality - 1) < 60 <= score(quality)
    assert [script.rate(files, 12, script.Dca(), workers) > 0 for workers in (0, 2)] == [True, True]
    rates = iter([2.0, 1.0, 4.0, 8.0, 1.0, 1.0])
    found = script.measured({name: lambda: next(rates) for name in ("a", "b")}, 3, "a")
    assert found == {"a": {"pictures_per_second": 2, "ratio": 1}, "b": {"pictures_per_second": 1, "ratio": 1}}


# Libraries of pictures


def test_imageio_reads_and_writes(tmp_path: Path, codec: Codec, files: list[bytes]) -> None:
    iio = pytest.importorskip("imageio.v3", reason="pip install imageio")
    (tmp_path / "a.dca").write_bytes(files[0])
    assert np.array_equal(iio.imread(tmp_path / "a.dca"), codec.decode(files[0], "numpy"))
    assert np.array_equal(iio.imread(files[0]), codec.decode(files[0], "numpy"))
    iio.imwrite(tmp_path / "b.dca", PICTURES[1], quality=40)
    assert (tmp_path / "b.dca").read_bytes() == codec.encode(PICTURES[1], 40)


def test_arrays_of_opencv(codec: Codec) -> None:
    cv2 = pytest.importorskip("cv2", reason="pip install opencv-python-headless")
    bgr = cv2.cvtColor(PICTURES[0], cv2.COLOR_RGB2BGR)
    data = codec.encode(bgr[..., ::-1], 70)
    assert data == codec.encode(PICTURES[0], 70)
    back = np.ascontiguousarray(codec.decode(data, "numpy")[..., ::-1])
    assert np.array_equal(back, cv2.cvtColor(codec.decode(data, "numpy"), cv2.COLOR_RGB2BGR))
    assert cv2.GaussianBlur(back, (3, 3), 0).shape == bgr.shape


@pytest.mark.usefixtures("foreign_warnings")
def test_transforms_of_torchvision(tmp_path: Path, codec: Codec, files: list[bytes]) -> None:
    assert torch.__version__
    pytest.importorskip("torchvision", reason="pip install torchvision")
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "a.dca").write_bytes(files[0])
    change = v2.Compose([v2.ToImage(), v2.CenterCrop(32), v2.ToDtype(torch.float32, scale=True)])
    (picture, label) = ImageFolder(str(tmp_path), change, is_valid_file=lambda name: name.endswith(".dca"))[0]
    whole = codec.decode(files[0], "torch")
    assert label == 0
    assert torch.equal(picture, change(whole))
    with Image.open(io.BytesIO(files[0])) as image:
        assert torch.equal(v2.functional.pil_to_tensor(image), whole)
