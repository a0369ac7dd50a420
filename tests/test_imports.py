"""Imports go downwards, and importing the package stays cheap."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Every module of the package and its layer; a name ending in ".*" stands for a package and all it contains.
# A module may import its own layer and the ones below. The package itself is on top: nobody below imports it.
LAYERS = {
    "errors": 0,
    "config": 0,
    "leb128": 0,
    "reduced": 1,
    "region": 1,
    "testing": 0,
    "_cpu": 1,
    "_exact": 1,
    "_rans": 1,
    "metrics": 1,
    "ssimulacra2": 1,
    "tensors": 1,
    "threads": 1,
    "ops.*": 1,
    "files.*": 1,
    "entropy": 1,
    "exact": 1,
    "exact.coder": 1,
    "exact.colours": 1,
    "exact.decisions": 1,
    "exact.layer": 1,
    "exact.picture": 3,
    "exact.planes": 1,
    "exact.reference": 1,
    "entropy.tables": 1,
    "entropy.rans": 1,
    "entropy.trellis": 1,
    "entropy.cuda_library": 1,
    "entropy.coder": 2,
    "entropy.cuda_coder": 2,
    "kernels.*": 2,
    "network": 1,
    "network.weights": 1,
    "network.models": 2,
    "network.layout": 1,
    "network.program": 2,
    "network.walk": 3,
    "encoder": 2,
    "encoder.linear_gradient": 2,
    "encoder.full_gradient": 2,
    "encoder.restoration_fit": 2,
    "encoder.rate_control": 3,
    "encoder.effort": 4,
    "encoder.screen": 4,
    "model.*": 2,
    "model.compressai": 7,
    "profile.recorder": 2,
    "inputs": 2,
    "backends": 3,
    "engines.*": 4,
    "codec": 5,
    "bulk": 6,
    "loading": 6,
    "pillow": 6,
    "evaluation.*": 6,
    "train.*": 7,
    "cli.*": 7,
    "profile.*": 7,
    "__main__": 8,
    "": 8,
}
# All that a picture passes through on a CPU, every command but `train`, `ablate` and `export`, and the profiler.
TORCH_FREE = [
    "__main__",
    "backends",
    "bulk",
    "cli",
    "cli.batch",
    "cli.commands",
    "cli.compare",
    "cli.convert",
    "cli.demo",
    "cli.examples",
    "cli.manifest",
    "cli.package",
    "cli.parser",
    "cli.verify",
    "codec",
    "config",
    "encoder",
    "encoder.effort",
    "encoder.full_gradient",
    "encoder.linear_gradient",
    "encoder.rate_control",
    "encoder.restoration_fit",
    "encoder.screen",
    "engines",
    "engines.cpu",
    "engines.tiles",
    "entropy.coder",
    "entropy.rans",
    "entropy.tables",
    "entropy.trellis",
    "errors",
    "evaluation",
    "evaluation.measure",
    "evaluation.peers",
    "evaluation.report",
    "exact",
    "exact.coder",
    "exact.colours",
    "exact.decisions",
    "exact.layer",
    "exact.picture",
    "exact.planes",
    "exact.reference",
    "files",
    "files.atomic",
    "files.container",
    "files.hidden",
    "files.image_io",
    "files.image_out",
    "files.metadata",
    "inputs",
    "leb128",
    "loading",
    "metrics",
    "network",
    "network.program",
    "network.walk",
    "network.layout",
    "network.weights",
    "network.models",
    "ops",
    "ops.limits",
    "ops.native",
    "pillow",
    "profile",
    "profile.recorder",
    "reduced",
    "region",
    "ssimulacra2",
    "profile.report",
    "profile.run",
    "tensors",
    "threads",
]
HEAVY = {"torch", "triton", "compressai", "matplotlib", "scipy"}


def module_name(path: Path) -> str:
    """Name inside the package: dca_fast/entropy/rans.py -> entropy.rans, kernels/norm.py -> kernels.norm."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "dca_fast" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_name(path): path for folder in ("dca_fast", "kernels") for path in sorted((ROOT / folder).rglob("*.py"))
}


def layer(module: str) -> int:
    if module in LAYERS:
        return LAYERS[module]
    package = f"{module.split('.')[0]}.*"
    assert package in LAYERS, f"dca_fast.{module} has no layer; give it one in LAYERS"
    return LAYERS[package]


def is_module(name: str) -> bool:
    return name in SOURCES or name in ("_rans", "_cpu", "_exact")


def own_imports(module: str, source: str, is_package: bool) -> Iterator[str]:
    """Names inside the package that a module imports anywhere, also inside functions."""
    here = f"dca_fast.{module}".rstrip(".").split(".")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            up = node.level - is_package if node.level else 0
            base = ".".join(here[: len(here) - up]) if node.level else ""
            base = ".".join(filter(None, [base, node.module]))
            # `from package import name` imports a module where there is one of that name
            names = [f"{base}.{alias.name}" for alias in node.names]
            targets = [name if is_module(name.removeprefix("dca_fast.")) else base for name in names]
        else:
            continue
        for target in targets:
            assert target.split(".")[0] != "kernels", f"{module} imports kernels/ past the package"
            if target.split(".")[0] == "dca_fast":
                yield target.removeprefix("dca_fast").removeprefix(".")


@pytest.mark.parametrize("module", SOURCES, ids=lambda module: module or "dca_fast")
def test_imports_go_downwards(module: str) -> None:
    path = SOURCES[module]
    for target in own_imports(module, path.read_text("utf-8"), path.name == "__init__.py"):
        assert is_module(target), f"{module} imports dca_fast.{target}, which does not exist"
        assert layer(target) <= layer(module), f"{module} imports {target} from a higher layer"
        if module.split(".")[0] == "kernels":
            assert target.split(".")[0] in ("kernels", "ops", "config", "errors"), f"{module} must not know {target}"


def test_the_reader_of_imports_sees_every_form() -> None:
    source = (
        "import dca_fast.codec\n"
        "from dca_fast import errors\n"
        "from dca_fast.config import ModelConfig\n"
        "from . import rans\n"
        "def f():\n    from ..container import parse\n    import numpy\n"
    )
    assert set(own_imports("entropy.tables", source, False)) == {
        "codec",
        "errors",
        "config",
        "entropy.rans",
        "container",
    }
    with pytest.raises(AssertionError, match="no layer"):
        layer("surprise")
    with pytest.raises(AssertionError, match="past the package"):
        list(own_imports("codec", "import kernels", False))


def loaded_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after running `code`."""
    script = f"{code}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_is_cheap() -> None:
    loaded = loaded_after("import dca_fast; dca_fast.DcaError, dca_fast.__version__")
    assert not loaded & (HEAVY | {"numpy", "PIL"})
    assert not loaded_after("from dca_fast import inspect") & (HEAVY | {"numpy"})


@pytest.mark.parametrize("module", TORCH_FREE)
def test_modules_that_need_no_torch_do_not_load_it(module: str) -> None:
    assert not loaded_after(f"import dca_fast.{module}") & HEAVY


def test_nobody_imports_what_a_light_installation_lacks_on_the_way_there() -> None:
    """Modules without PyTorch import those that need it inside of functions only."""
    for module in TORCH_FREE:
        path = SOURCES[module]
        top = "\n".join(map(ast.unparse, at_import(ast.parse(path.read_text("utf-8")))))
        for target in own_imports(module, top, path.name == "__init__.py"):
            light = (*TORCH_FREE, "", "_cpu", "_rans", "_exact", "testing", "entropy", "exact")
            assert target in light, f"{module} imports {target}"


def at_import(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported."""
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node


def test_coding_a_picture_loads_neither_torch_nor_other_heavy_packages() -> None:
    code = (
        "import numpy as np; from dca_fast import Codec; codec = Codec(); image = np.zeros((20, 30, 4), np.uint8)\n"
        "for level in range(4):\n"
        "    for output in ('numpy', 'pil'): codec.decode(codec.encode(image, effort=level), output)\n"
        "codec.encode_to(image[..., 0], psnr=30)"
    )
    assert not loaded_after(code) & HEAVY


def test_the_kernels_folder_is_not_a_package_of_its_own() -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        loaded_after("import kernels")
    assert "import this package as 'dca_fast.kernels'" in caught.value.stderr


def test_kernels_say_whether_they_can_run() -> None:
    from dca_fast import kernels

    available, reason = kernels.is_available()
    assert isinstance(available, bool)
    assert reason


def test_unknown_names_are_attribute_errors() -> None:
    import dca_fast

    with pytest.raises(AttributeError, match="nothing"):
        _ = dca_fast.nothing
    assert set(dca_fast.__all__) - {"Codec"} <= set(dir(dca_fast)) | {"inspect"}
