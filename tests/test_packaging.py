"""What a source archive and a wheel contain, and that the wheel works from anywhere."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from dca_fast.network import models
from tests.once import once

ROOT = Path(__file__).resolve().parents[1]
BUILT = ("__pycache__", "*.pyc", "*.so", "*.pyd", ".*")
NO_COMPILER = {"CC": "absent", "CXX": "absent"}  # what is not about the extensions does without their minute
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources alone, with dist/ holding the source archive and the wheel built from that archive."""

    def make(folder: Path) -> None:
        tree = folder / "tree"
        tree.mkdir()
        for name in ("csrc", "dca_fast", "docs", "kernels", "tests"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns(*BUILT))
        for pattern in ("*.md", "*.toml", "*.in", "setup.py", "LICENSE", "NOTICE"):
            for path in ROOT.glob(pattern):
                shutil.copy(path, tree)
        run(sys.executable, "-m", "build", "--no-isolation", "--skip-dependency-check", cwd=tree)

    return once(tmp_path_factory, "packaging", make) / "tree"


@pytest.fixture(scope="module")
def wheel(tree: Path) -> Path:
    return next((tree / "dist").glob("*.whl"))


def sources(folder: str) -> set[str]:
    """Every file of a source folder, as a path relative to the root."""
    files = (path for path in (ROOT / folder).rglob("*") if path.is_file())
    return {p.relative_to(ROOT).as_posix() for p in files if not any(p.match(pattern) for pattern in BUILT)}


def run(*command: str | Path, cwd: Path, path: Path | None = None, **changed: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | changed
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def copy_of(tree: Path, folder: Path) -> Path:
    """The sources, without what was built of them."""
    return Path(
        shutil.copytree(tree, folder / "tree", ignore=shutil.ignore_patterns(*BUILT, "build", "dist", "*.egg-info"))
    )


def test_source_archive_has_all_sources(tree: Path) -> None:
    with tarfile.open(next((tree / "dist").glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert sources("csrc") | sources("dca_fast") | sources("kernels") <= names
    assert {"LICENSE", "NOTICE", "README.md", "docs/spec/bitstream.md", "tests/conftest.py"} <= names


def test_wheel_has_one_top_level_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        top_level = next(name for name in names if name.endswith("/top_level.txt"))
        assert archive.read(top_level).decode().split() == ["dca_fast"]
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"dca_fast"}


def test_wheel_has_modules_kernels_extensions_and_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert sources("dca_fast") | {f"dca_fast/{name}" for name in sources("kernels")} <= names
    for extension in ("_rans", "_cpu", "_exact"):
        assert any(name.startswith(f"dca_fast/{extension}.") for name in names), extension
    sources_of_coder = {f"dca_fast/csrc/coder/{name}" for name in ("rans_cuda.cu", "rans_layout.h", "rans.h")}
    assert {name for name in names if name.endswith((".h", ".cpp", ".cu"))} == sources_of_coder


def test_all_but_the_weights_is_small(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        rest = [info.compress_size for info in archive.infolist() if not info.filename.endswith(".safetensors")]
    assert sum(rest) < 3 << 20


def test_one_wheel_serves_python_3_12_and_later(wheel: Path) -> None:
    own = f"cp3{sys.version_info.minor}"
    stable = sys.version_info >= (3, 12) and not sys.abiflags
    assert wheel.name.split("-")[2:4] == (["cp312", "abi3"] if stable else [own, own + sys.abiflags])


def test_a_wheel_holds_the_coder_of_a_gpu(tree: Path, tmp_path: Path) -> None:
    """Built by whatever nvcc there is: here one that says for which architecture it was called."""
    (tmp_path / "bin").mkdir()
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.write_text(
        '#!/bin/sh\nfor a; do case $a in -arch=*) arch=$a;; *.so) out=$a;; esac; done; echo "$arch" > "$out"\n'
    )
    nvcc.chmod(0o755)
    path = os.pathsep.join([str(nvcc.parent), os.environ["PATH"]])
    out, copied = tmp_path / "dist", copy_of(tree, tmp_path)
    command = [sys.executable, "-m", "build", "--no-isolation", "--skip-dependency-check", "-w", "-o", str(out)]
    run(*command, cwd=copied, PATH=path, DCA_CUDA_ARCHS="sm_80 sm_90", **NO_COMPILER)
    with zipfile.ZipFile(next(out.glob("*.whl"))) as archive:
        built = {name: archive.read(name).decode() for name in archive.namelist() if "rans_cuda-" in name}
        assert "dca_fast/lock" not in archive.namelist()
    assert sorted(built.values()) == ["-arch=sm_80\n", "-arch=sm_90\n"]
    for name, content in built.items():
        assert name.startswith("dca_fast/rans_cuda-")
        assert name.endswith(f"-{content.strip().removeprefix('-arch=')}.so")


def test_a_slim_wheel_wants_the_package_of_its_weights(tree: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", "--skip-dependency-check", "-w", "-o", str(tmp_path)]
    run(*command, cwd=copy_of(tree, tmp_path), DCA_SLIM="1", **NO_COMPILER)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as archive:
        names = archive.namelist()
        facts = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    assert {name for name in names if name.startswith("dca_fast/data/")} == {"dca_fast/data/models.json"}
    assert f"Requires-Dist: dca-fast-weights-{next(iter(models.released()))[:4].hex()}\n" in facts


def test_without_a_compiler_everything_else_is_installed(tree: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = "-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation", "-v", "--target", site
    said = run(sys.executable, *install, copy_of(tree, tmp_path), cwd=tmp_path, **NO_COMPILER)
    assert "no C++ compiler works here" in said
    assert not list(site.rglob("*.so"))
    code = """
import sys
# an editable installation beside it would lend its extensions
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
import numpy as np
from dca_fast import Codec
from dca_fast.backends import available
codec = Codec()
print(codec.decode(codec.encode(np.zeros((5, 7, 3), np.uint8), 50), "numpy").shape, available()["native"])
"""
    told = run(sys.executable, "-c", code, cwd=tmp_path, path=site)
    assert "(5, 7, 3) (False, " in told
    assert told.count("the C++ extension is not built") == 2
    assert "coding takes many times as long as it could" in told


def test_wheel_works_in_the_source_tree_and_outside(wheel: Path, tree: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel
    run(sys.executable, *install, cwd=tmp_path)
    code = "import dca_fast, dca_fast._cpu, dca_fast._exact, dca_fast._rans, dca_fast.kernels as kernels\n"
    code += "print(dca_fast.__file__, kernels.__file__)"
    outside = run(sys.executable, "-c", code, cwd=tmp_path, path=site).split()
    assert outside == [str(site / "dca_fast/__init__.py"), str(site / "dca_fast/kernels/__init__.py")]
    # in the tree its sources come first; what only an installation has is still found
    inside = run(sys.executable, "-c", code, cwd=tree, path=site).split()
    assert inside == [str(tree / "dca_fast/__init__.py"), outside[1]]
    told = run(sys.executable, tree / "tests/golden/check.py", cwd=tmp_path, path=site)
    assert "the same bytes and pixels" in told
    assert str(site / "dca_fast") in told
