"""Other people's schedulers: the same bytes, a bad file named, a killed worker made good, nothing replaced."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dca_fast import Codec
from dca_fast.bulk import Decoder, Encoder, decode_items, encode_items
from dca_fast.errors import ConfigError, InputError, NotADcaFileError
from dca_fast.testing import photograph

HANG = 300  # seconds; the work takes a few


def png(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(photograph(40, 56, seed=seed)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(threads=1)


def test_items_there_and_back(codec: Codec) -> None:
    items = [("a.png", png(1)), ("b/bad.png", b"no picture"), ("c.png", png(2))]
    files = list(encode_items(items, codec, quality=40))
    assert [name for name, _ in files] == ["a.png.dca", "b/bad.png", "c.png.dca"]
    assert files[0][1] == codec.encode(io.BytesIO(items[0][1]), 40)
    assert isinstance(files[1][1], InputError)
    again = list(decode_items([(name, b"" if isinstance(data, Exception) else data) for name, data in files], codec))
    assert [name for name, _ in again] == ["a.png", "b/bad.png", "c.png"]
    assert isinstance(again[1][1], NotADcaFileError)
    with Image.open(io.BytesIO(again[2][1])) as image:  # type: ignore[arg-type]
        assert np.array_equal(image, codec.decode(files[2][1], "numpy"))  # type: ignore[arg-type]


def test_items_have_the_options_of_the_codec(codec: Codec) -> None:
    ((_, small),) = encode_items([("a.png", png())], codec, max_bytes=600)
    ((_, exact),) = encode_items([("a.png", png())], codec, quality="lossless")
    assert isinstance(small, bytes)
    assert len(small) <= 600
    ((name, back),) = decode_items([("a.dca", exact)], codec, extension=".bmp", reduce=2)  # type: ignore[list-item]
    assert name == "a.bmp"
    with Image.open(io.BytesIO(back)) as image:  # type: ignore[arg-type]
        assert image.size == (28, 20)


def test_a_wrong_option_is_no_fault_of_a_picture(codec: Codec) -> None:
    with pytest.raises(TypeError, match="qualty"):
        encode_items([], codec, qualty=3)
    with pytest.raises(TypeError, match="quality"):
        encode_items([], codec, quality=3, bpp=1.0)
    with pytest.raises(ConfigError, match="quality"):
        list(encode_items([("a.png", png())], codec, quality=101))
    with pytest.raises(InputError, match="known extensions"):
        decode_items([], codec, extension=".gif")


def batch(*items: tuple[str, bytes]) -> dict[str, np.ndarray]:
    paths, contents = zip(*items, strict=True)
    return {"path": np.array(paths, object), "bytes": np.array(contents, object)}


def test_bytes_of_other_types(codec: Codec) -> None:
    """Spark gives bytearray."""
    data = png(1)
    want = list(encode_items([("a.png", data)], codec))
    assert list(encode_items([("a.png", bytearray(data))], codec)) == want  # type: ignore[list-item]


def test_batches_as_columns() -> None:
    encoded = Encoder(quality=30, codec={"threads": 1})(batch(("/in/a.png", png()), ("s3://b/bad.png", b"")))
    assert list(encoded["path"]) == ["/in/a.png", "s3://b/bad.png"]
    assert list(encoded["name"]) == ["a.png.dca", ""]
    assert encoded["bytes"][1] == b""
    assert encoded["error"][0] == ""
    assert encoded["error"][1].startswith("InputError: ")
    decoded = Decoder(extension=".webp", codec={"threads": 1})(batch(("/in/a.dca", encoded["bytes"][0])))
    assert (list(decoded["name"]), list(decoded["error"])) == (["a.webp"], [""])


def test_files_are_not_replaced(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="Ray Data's file systems")
    encoder = Encoder(str(tmp_path), root="/in", codec={"threads": 1})
    (tmp_path / "b.png.dca").write_bytes(b"of somebody else")
    items = [("/in/sub/a.png", png()), ("/in/b.png", png()), ("/in/../../c.png", png())]
    for _ in range(2):  # the second time as after a worker was killed
        rows = encoder(batch(*items))
        assert list(rows["output"]) == [f"{tmp_path}/sub/a.png.dca", "", ""]
        assert "exists, and is another file" in rows["error"][1]
        assert "leads out of" in rows["error"][2]
    assert (tmp_path / "b.png.dca").read_bytes() == b"of somebody else"
    assert rows["output_bytes"][0] == (tmp_path / "sub" / "a.png.dca").stat().st_size
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["a.png.dca", "b.png.dca"]


def test_a_bucket_is_written_to() -> None:
    """A store in memory stands for one of objects: what fsspec has, pyarrow writes to."""
    fs = pytest.importorskip("pyarrow.fs")
    memory = pytest.importorskip("fsspec").filesystem("memory")
    store = fs.PyFileSystem(fs.FSSpecHandler(memory))
    rows = Encoder("bucket", filesystem=store, codec={"threads": 1})(batch(("s3://x/a.png", png())))
    assert list(rows["error"]) == [""]
    assert memory.ls("/bucket", detail=False) == ["/bucket/a.png.dca"]


RAY = """
import os, signal, sys
import ray
from ray.data import ActorPoolStrategy, read_binary_files
from dca_fast.bulk import Encoder

class Mortal(Encoder):
    def __init__(self, marker, **options):
        super().__init__(**options)
        self.marker = marker

    def __call__(self, batch):
        result = super().__call__(batch)  # its files are there when it dies
        try:
            os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return result | {"threads": [self._codec.threads] * len(result["path"])}
        os.kill(os.getpid(), signal.SIGKILL)

marker, source, out = sys.argv[1:]
ray.init(num_cpus=5, log_to_driver=False, include_dashboard=False)
rows = read_binary_files(source, include_paths=True, override_num_blocks=4).map_batches(
    Mortal,
    fn_constructor_kwargs={"marker": marker, "out": out, "root": source},
    compute=ActorPoolStrategy(size=2),
    num_cpus=2,
    batch_size=2,
)
for row in rows.iter_rows():
    print("row", row["path"].rpartition("/")[2], row["threads"], row["error"] or "done")
"""


def without_threads() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "DCA_THREADS", "PYTEST_CURRENT_TEST")}


@pytest.mark.slow
def test_ray_with_a_killed_worker_and_a_bad_file(tmp_path: Path, codec: Codec) -> None:
    pytest.importorskip("ray.data", reason="pip install 'ray[data]'")
    (tmp_path / "in").mkdir()
    for i in range(6):
        (tmp_path / "in" / f"{i}.png").write_bytes(png(i))
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    program = tmp_path / "mortal.py"
    program.write_text(RAY)
    command = [sys.executable, program, tmp_path / "marker", tmp_path / "in", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, env=without_threads())
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "marker").exists()
    lines = sorted(line[4:] for line in done.stdout.splitlines() if line.startswith("row "))
    assert len(lines) == 7
    assert lines[:6] == [f"{i}.png 2 done" for i in range(6)]
    assert lines[6].startswith("bad.png 2 InputError: ")
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert files == {f"{i}.png.dca": codec.encode(io.BytesIO(png(i))) for i in range(6)}


@pytest.mark.slow
def test_dask_maps_partitions(codec: Codec) -> None:
    bag = pytest.importorskip("dask.bag", reason="pip install 'dask[bag]'")
    items = [(f"{i}.png", png(i)) for i in range(3)] + [("bad.png", b"")]
    done = bag.from_sequence(items, npartitions=2).map_partitions(lambda some: list(encode_items(some)))
    results = dict(done.compute(scheduler="processes"))
    assert results["2.png.dca"] == codec.encode(io.BytesIO(png(2)))
    assert isinstance(results["bad.png"], InputError)
    assert len(results) == 4


@pytest.mark.slow
def test_spark_maps_partitions(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    sql = pytest.importorskip("pyspark.sql", reason="pip install pyspark, and Java")
    items = [(f"{i}.png", png(i)) for i in range(3)] + [("bad.png", b"")]
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    session = sql.SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
    try:
        results = dict(session.sparkContext.parallelize(items, 2).mapPartitions(encode_items).collect())
    finally:
        session.stop()
    assert bytes(results["2.png.dca"]) == codec.encode(io.BytesIO(png(2)))
    assert isinstance(results["bad.png"], InputError)
