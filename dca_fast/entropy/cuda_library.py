"""The shared library of the coder's CUDA kernels (csrc/coder/rans_cuda.cu): found or built, loaded, and its signatures.

It knows nothing of PyTorch: nvcc builds it in seconds, and it takes raw pointers and a stream. It is looked for
beside the package and in a cache, and else built there, once per source and architecture.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dca_fast.errors import BackendUnavailableError

__all__ = ["Library", "build", "load"]

PACKAGE = Path(__file__).resolve().parents[1]
SOURCES = ("rans_cuda.cu", "rans_layout.h", "rans.h")
FLAGS = ("-O3", "-std=c++17", "-shared", "-Xcompiler", "-fPIC")

_P, _U32, _U64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64
_SIZES = {
    "dca_rans_table_bytes": (_U64, []),
    "dca_rans_state_bytes": (_U64, []),
    "dca_rans_decode_bytes": (_U64, [_U32]),
    "dca_rans_encode_bytes": (_U64, [_U32]),
    "dca_rans_quantise_bytes": (_U64, [_U32]),
    "dca_rans_tables": (None, [_P, _P, _P, _P]),
    "dca_rans_stage": (_U32, [_U32, _U32]),
    "dca_rans_error": (ctypes.c_char_p, [ctypes.c_int]),
}
_LAUNCHES = {
    "dca_rans_reset": [ctypes.c_char_p, _U64, _P, _P, ctypes.c_char_p, _P],
    "dca_rans_decode": [_P, _U32, _U32, _P, _P, _P, _U32, _P, _P, _P],
    "dca_rans_finish": [_P, _P],
    "dca_rans_digest": [_P, _P, _P, _U32, _P, _P],
    "dca_rans_encode_open": [_P, _U32, _U32, _U32, _P],
    "dca_rans_encode": [_P, _U32, _P, _P, _P, _U32, _P, _P, _P],
    "dca_rans_encode_close": [_P, _P, _P, _P],
    "dca_rans_quantise": [_P, _P, _U32, _P, _U32, _P, _P, _P],
    "dca_rans_histogram": [_P, _U32, _U32, _P, _P],
}


class Library:
    """The functions of csrc/coder/rans_cuda.cu, as `call` for the host's and `launch` for the device's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._functions = ctypes.CDLL(str(path))
        except OSError as error:
            raise BackendUnavailableError(f"{path} cannot be loaded: {error}") from error
        for name, (result, arguments) in _SIZES.items():
            function = getattr(self._functions, name)
            function.restype, function.argtypes = result, arguments
        for name, arguments in _LAUNCHES.items():
            function = getattr(self._functions, name)
            function.restype, function.argtypes = ctypes.c_int, arguments

    def call(self, name: str, *arguments: object) -> int:
        """A function that computes a size or a table."""
        result: int = getattr(self._functions, f"dca_rans_{name}")(*arguments)
        return result

    def launch(self, name: str, *arguments: object) -> int:
        """A function that puts work into a stream; negative results, which concern its data, are returned."""
        code: int = getattr(self._functions, f"dca_rans_{name}")(*arguments)
        if code > 0:
            raise BackendUnavailableError(f"CUDA: {self._functions.dca_rans_error(code).decode()}")
        return code


@functools.cache
def load(arch: str) -> Library:
    """The library for an architecture: the prebuilt one, else that in the cache, else a new one; see `build`."""
    prebuilt = PACKAGE / _file_name(_sources(), arch)
    return Library(prebuilt if prebuilt.exists() else build(arch))


def build(arch: str, folder: Path | None = None) -> Path:
    """Build the library unless it is there; needs nvcc, but no GPU.

    Args:
        arch: nvcc's name of the architecture, such as "sm_90".
        folder: where to put it; default the cache: DCA_CACHE, else dca-fast in the user's cache directory.

    Returns:
        The library. Its name tells source and architecture; in the package's own folder it counts as prebuilt.

    Raises:
        BackendUnavailableError: no sources, no compiler, or a compiler that fails.
    """
    folder, sources = folder or _cache(), _sources()
    path = folder / _file_name(sources, arch)
    nvcc = _nvcc()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if not path.exists():
                _compile(nvcc, sources, arch, path)
    except OSError as error:
        raise BackendUnavailableError(f"the coder for the GPU cannot be built in {folder}: {error}") from error
    return path


def _compile(nvcc: str, sources: Path, arch: str, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        compiled = Path(scratch) / path.name
        command = [nvcc, *FLAGS, f"-arch={arch}", "-o", str(compiled), str(sources / SOURCES[0])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BackendUnavailableError(f"nvcc failed: {(done.stderr or done.stdout).strip()[-1000:]}")
        compiled.replace(path)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    if sys.platform == "win32":
        raise BackendUnavailableError("the coder for the GPU is not built on Windows")
    import fcntl

    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        yield


def _sources() -> Path:
    """In an installed package, or in the source tree."""
    for folder in (PACKAGE / "csrc" / "coder", PACKAGE.parent / "csrc" / "coder"):
        if all((folder / name).is_file() for name in SOURCES):
            return folder
    raise BackendUnavailableError("the sources of the coder for the GPU are not installed")


def _file_name(sources: Path, arch: str) -> str:
    content = repr(FLAGS).encode() + b"".join((sources / name).read_bytes() for name in SOURCES)
    return f"rans_cuda-{hashlib.sha256(content).hexdigest()[:16]}-{arch}.so"


def _cache() -> Path:
    if folder := os.environ.get("DCA_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dca-fast"


def _nvcc() -> str:
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    if nvcc := shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin"):
        return nvcc
    raise BackendUnavailableError("the coder for the GPU is not built, and there is no nvcc to build it")
