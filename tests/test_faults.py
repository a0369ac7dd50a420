"""Files survive kills, full disks, vanished folders, little memory and other writers; hostile ones are refused."""

import ctypes
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from dca_fast import Codec
from dca_fast.cli.parser import main
from dca_fast.errors import BitstreamError
from dca_fast.files import atomic, container
from dca_fast.testing import photograph

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
FORK = multiprocessing.get_context("fork" if hasattr(os, "fork") else None)
KILLS = 30
PICTURES = 12


def started(work: Callable[[], object]) -> multiprocessing.process.BaseProcess:
    """A forked process that ends with what `work` returns as its exit code."""

    def run() -> None:
        with open(os.devnull, "w") as nowhere:
            sys.stdout = sys.stderr = nowhere
            os._exit(int(work() or 0))  # type: ignore[call-overload]

    process = FORK.Process(target=run)
    process.start()
    return process


def code_of(process: multiprocessing.process.BaseProcess) -> int:
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def encode(source: Path, out: Path, *options: object) -> int:
    return main(["encode", str(source), "-o", str(out), "--quiet", "--threads", "1", *map(str, options)])


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(PICTURES):
        below = folder / f"{i % 3}"
        below.mkdir(exist_ok=True)
        Image.fromarray(photograph(40 + 8 * i, 60, seed=i)).save(below / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed run writes."""
    out = tmp_path_factory.mktemp("whole")
    assert encode(source, out) == 0
    files = contents(out)
    assert len(files) == PICTURES
    return files


def test_a_killed_batch_leaves_whole_files_and_goes_on(
    source: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    begin = time.perf_counter()
    assert code_of(started(lambda: encode(source, tmp_path / "timed"))) == 0
    whole = time.perf_counter() - begin
    moments, stages = random.Random(5), set()
    for i in range(KILLS):
        out = tmp_path / str(i)
        process = started(lambda out=out: encode(source, out, "--manifest", tmp_path / f"{out.name}.jsonl"))  # type: ignore[misc]
        time.sleep(moments.random() * whole)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        after = {name: data for name, data in contents(out).items() if not name.endswith(".tmp")}
        assert after.items() <= expected.items()
        stages.add(len(after))
        assert encode(source, out, "--no-overwrite", "--manifest", tmp_path / f"{out.name}.jsonl") == 0
        assert contents(out) == expected
        lines = [json.loads(line) for line in (tmp_path / f"{out.name}.jsonl").read_text().splitlines()]
        assert {line["status"] for line in lines} <= {"done", "kept"}
        assert len(lines) == PICTURES
    assert len(stages) > 3  # some were killed on the way


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_batch_that_is_asked_to_end_leaves_whole_files(
    source: Path, expected: dict[str, bytes], tmp_path: Path, number: signal.Signals
) -> None:
    process = started(lambda: encode(source, tmp_path / "out"))
    while not contents(tmp_path).keys():
        time.sleep(0.01)
    os.kill(process.pid or 0, number)
    code_of(process)
    after = contents(tmp_path / "out")
    assert {name: data for name, data in after.items() if not name.endswith(".tmp")}.items() <= expected.items()
    assert encode(source, tmp_path / "out", "--no-overwrite") == 0
    assert contents(tmp_path / "out") == expected


def test_files_that_do_not_fit_are_not_written(source: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    """The system refuses files above a size; those that are there stay as they were."""
    sizes = sorted(map(len, expected.values()))
    limit, out = sizes[PICTURES // 2], tmp_path / "out"
    shutil.copytree(source, tmp_path / "in")
    assert encode(source, out, "-q", "5") == 0
    before = contents(out)

    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return encode(source, out)

    assert code_of(started(limited)) == 2
    after = contents(out)
    assert {name for name in after if name.endswith(".tmp")} == set()
    for name, data in expected.items():
        assert after[name] == (data if len(data) <= limit else before[name])
    assert sum(after[name] == data for name, data in expected.items()) == PICTURES // 2 + 1


def test_a_full_disk(source: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    """A file system of its own, where this process may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or os.system(f"mount -t tmpfs -o size=16k tmpfs '{disk}' 2>/dev/null"):
        pytest.skip("no file system can be mounted")
    try:
        assert encode(source, disk / "out", "--manifest", tmp_path / "m") == 2
        after = contents(disk)
        assert 0 < len(after) < PICTURES
        assert {name.removeprefix("out/"): data for name, data in after.items()}.items() <= expected.items()
        states = [json.loads(line)["status"] for line in (tmp_path / "m").read_text().splitlines()]
        assert sorted(set(states)) == ["done", "failed"]
        assert states.count("done") == len(after)
    finally:
        os.system(f"umount '{disk}'")


def test_a_disk_under_the_manifest_that_is_full_from_the_start(
    source: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """It ends nothing but the manifest, and is named."""
    disk, manifest = tmp_path / "disk", tmp_path / "disk" / "m.jsonl"
    disk.mkdir()
    if os.geteuid() or os.system(f"mount -t tmpfs -o size=16k tmpfs '{disk}' 2>/dev/null"):
        pytest.skip("no file system can be mounted")
    try:
        assert encode(source / "0", tmp_path / "before", "--manifest", manifest) == 0
        manifest.write_bytes(2 * manifest.read_bytes())  # as of a run that was killed
        with suppress(OSError), open(disk / "rest", "wb", buffering=0) as rest:
            while True:
                rest.write(bytes(1 << 10))
        before = manifest.read_bytes()
        command = [sys.executable, "-m", "dca_fast", "encode", source, "-o", tmp_path / "out", "-e", "0", "-q", "60"]
        done = subprocess.run([*command, "--manifest", manifest], capture_output=True, text=True)
        assert done.returncode == 2
        assert f"{manifest}: No space left on device" in done.stderr
        assert contents(tmp_path / "out").keys() == expected.keys()
        assert manifest.read_bytes() == before
    finally:
        os.system(f"umount '{disk}'")


def test_what_is_in_the_place_of_an_output(source: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    """A pipe would be waited for."""
    out = tmp_path / "out"
    (out / "0").mkdir(parents=True)
    name = next(name for name in expected if name.startswith("0/"))
    os.mkfifo(out / name)
    for options in ((), ("--no-overwrite",), ("--force",)):
        assert encode(source, out, *options) == 2
        assert contents(out) == {other: data for other, data in expected.items() if other != name}


def test_temporary_files_of_killed_processes_go(source: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    """Also where nothing is left to write; those of others, under whatever names, stay."""
    assert encode(source, tmp_path / "out") == 0
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    names = {f".dca-{atomic._host()}-{number}-ab.tmp" for number in (int(ended.stdout), 10**20, "x", os.getpid())}
    for name in names:
        (tmp_path / "out" / "1" / name).touch()
    atomic.remove_abandoned.cache_clear()
    assert encode(source, tmp_path / "out", "--no-overwrite") == 0
    left = contents(tmp_path / "out").keys() - expected.keys()
    assert left == {f"1/{name}" for name in names if f"-{int(ended.stdout)}-" not in name}


def obeying_modes() -> None:
    """This process, from now on, may do no more to files than their modes say, even if it is root's."""
    if os.geteuid():
        return
    libc, header, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    sets[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, of those in effect
    assert libc.capset(header, sets) == 0


def test_a_folder_that_may_not_be_written(source: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    """Every file is named, and none is left behind. A folder below that may not even be read stops no other."""
    out = tmp_path / "out"
    out.mkdir()

    def limited() -> int:
        obeying_modes()
        return encode(source, out, "--manifest", tmp_path / "m")

    def states() -> dict[str, str]:
        return {line["output"]: line["status"] for line in map(json.loads, (tmp_path / "m").read_text().splitlines())}

    out.chmod(0o555)
    assert code_of(started(limited)) == 2
    assert contents(out) == {}
    assert states() == {str(out / name): "failed" for name in expected}
    out.chmod(0o777)
    (out / "0").mkdir(mode=0)
    assert code_of(started(limited)) == 2
    (out / "0").chmod(0o700)
    assert contents(out) == {name: data for name, data in expected.items() if not name.startswith("0/")}
    assert states() == {str(out / name): "failed" if name.startswith("0/") else "done" for name in expected}


def test_inputs_and_outputs_that_vanish(
    source: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(source, tmp_path / "in")
    coded, out = Codec.encode, tmp_path / "out"

    def once(*args: object, **options: object) -> bytes:
        with suppress(OSError):
            shutil.rmtree(tmp_path / "in" / "2")
            shutil.rmtree(out)
        return coded(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Codec, "encode", once)
    assert encode(tmp_path / "in", out, "--manifest", tmp_path / "m") == 2
    states = {line["source"]: line["status"] for line in map(json.loads, (tmp_path / "m").read_text().splitlines())}
    assert len(states) == PICTURES
    for name, state in states.items():
        assert (state == "failed") == (Path(name).parent.name == "2")
    assert contents(out).items() <= expected.items()


def test_two_writers_of_one_folder(source: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    for option in ((), ("--no-overwrite",)):
        out = tmp_path / f"out{len(option)}"
        both = [
            started(lambda: encode(source, out, "--manifest", tmp_path / "m", *option))  # noqa: B023 (forked at once)
            for _ in range(2)
        ]
        assert [code_of(process) for process in both] == [0, 0]
        assert contents(out) == expected
        for line in (tmp_path / "m").read_text().splitlines():
            assert json.loads(line)["status"] in ("done", "kept")


LIMITED = """
import resource, sys
from pathlib import Path
from dca_fast import Codec
from dca_fast.cli.parser import main
from dca_fast.errors import OutOfMemoryError
from dca_fast.testing import photograph

codec = Codec(threads=1)
codec.decode(codec.encode(photograph(64, 64)))  # what every picture needs is there
pages = int(Path("/proc/self/statm").read_text().split()[0])
most = pages * resource.getpagesize() + (192 << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
try:
    codec.decode(Path(sys.argv[1]).read_bytes(), "numpy")
    sys.exit("enough memory")
except OutOfMemoryError:
    pass
sys.exit(main(["encode", sys.argv[2], "-o", sys.argv[3], "--threads", "1"]))
"""


def test_a_lack_of_memory_is_one_error_and_stops_nothing(tmp_path: Path) -> None:
    """A batch goes on after a picture that is too large for the memory of its process, which is a fresh one."""
    folder, file = tmp_path / "in", tmp_path / "large.dca"
    folder.mkdir()
    large = np.zeros((9000, 9000, 3), np.uint8)  # more than the limit leaves
    Image.fromarray(large).save(folder / "a_large.png", compress_level=1)
    Image.fromarray(photograph(32, 32)).save(folder / "b_small.png")
    file.write_bytes(Codec().encode(large, "lossless"))
    command = [sys.executable, "-c", LIMITED, file, folder, tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 4, done.stderr
    assert done.stderr.count("not enough memory") == 1
    assert set(contents(tmp_path / "out")) == {"b_small.dca"}


def test_soak(source: Path) -> None:
    """Many pictures of many sizes on several threads at once: every file is the same, and memory does not grow."""
    codec = Codec(threads=2)
    pictures = [np.asarray(Image.open(path)) for path in sorted(source.rglob("*.png"))]
    files = [codec.encode(picture, 10 * (i % 10) + 3, effort=i % 2) for i, picture in enumerate(pictures)]
    backs = [codec.decode(data, "numpy") for data in files]

    def rounds(count: int) -> None:
        for i in range(count):
            n = i * 5 % PICTURES
            assert codec.encode(pictures[n], 10 * (n % 10) + 3, effort=n % 2) == files[n]
            assert np.array_equal(codec.decode(files[n], "numpy"), backs[n])

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    problems: list[BaseException] = []

    def guarded() -> None:
        try:
            rounds(40)
        except BaseException as error:
            problems.append(error)

    def on_threads() -> int:
        threads = [threading.Thread(target=guarded) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not problems
        return resident()

    first = max(on_threads() for _ in range(2))
    last = [on_threads() for _ in range(3)]
    assert min(last) - first < 16 << 20


def test_the_soak_that_takes_an_hour(benchmark_script: Callable[[str], ModuleType]) -> None:
    """For a moment: the script works, and what it codes is the same every time."""
    soak = benchmark_script("measure/soak")
    jobs = soak.jobs_of(((17, 40),))
    facts = soak.run(jobs, 0.01)
    assert facts["pictures"] >= 25
    assert facts["mismatches"] == 0


def test_hostile_files_of_every_kind(benchmark_script: Callable[[str], ModuleType]) -> None:
    """Mutations that know the layout of a file, on every golden file of moderate size."""
    hostile = benchmark_script("measure/hostile")
    codec = Codec(threads=1, max_pixels=hostile.MAX_PIXELS)
    seeds = hostile.seeds_of([Path(__file__).parent / "golden"], codec)
    assert len(seeds) >= 8
    result = hostile.run(seeds, codec, 1500, number=1)
    assert result["wrong_pictures"] == 0
    kinds = {name.partition(":")[0] for name in result["outcomes"]}
    assert len(kinds) == 8
    for kind in kinds:
        assert any(name.startswith(kind) and name.endswith("Error") for name in result["outcomes"])
    assert result["outcomes"]["stream, digests not compared: decoded"] > 0


def test_a_section_with_the_tag_of_an_ancillary_one_makes_another_file(
    benchmark_script: Callable[[str], ModuleType],
) -> None:
    hostile = benchmark_script("measure/hostile")
    seed = container.parse((Path(__file__).parent / "conformance" / "vectors" / "gray_alpha.dca").read_bytes())
    renamed = replace(seed, sections={128 | tag: block for tag, block in seed.sections.items()})
    case = container.parse(container.pack(renamed.header, renamed.stream, renamed.sections))
    codec = Codec(threads=1)
    pictures = [codec.decode(container.pack(d.header, d.stream, d.sections), "numpy") for d in (seed, case)]
    assert np.array_equal(pictures[0][..., :3], pictures[1])
    assert hostile.is_another_file("bytes, checksum mended", case, seed)
    assert not hostile.is_another_file("bytes, checksum mended", seed, seed)
    assert not hostile.is_another_file("stream", case, seed)


@pytest.mark.parametrize("kind", ["network", "cut", "exact", "alpha"])
def test_what_a_small_file_claims_costs_nothing(kind: str) -> None:
    """Few bytes that name 2^28 pixels, or the eight megapixels of one tile, are refused before there is memory for
    them."""
    codec, side = Codec(threads=1), {"network": 1 << 14, "exact": 1 << 14}.get(kind, 2700)
    own = container.parse(codec.encode(photograph(64, 64), 50))
    exact = container.Header(side, side, 10000, bytes(4), 1, exact=True)
    header = exact if kind in ("exact", "alpha") else replace(own.header, width=side, height=side)
    stream = own.stream[:40] if kind == "cut" else bytes(30)
    sections = {container.Section.ALPHA: bytes(30)} if kind == "alpha" else {}
    data = container.pack(header, stream, sections)

    def refused() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + (96 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        try:
            codec.decode(data, "numpy")
        except BitstreamError:
            return 7
        return 0

    assert code_of(started(refused)) == 7
