"""The shared library of the coder's CUDA kernels (csrc/coder/rans_cuda.cu): found or built, loaded, and its signatures.

It knows nothing of PyTorch: nvcc builds it in seconds, and it takes raw pointers and a stream. It is looked for
beside the package and in a cache, and else built there, once per source and architecture.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from dca_fast.errors import BackendUnavailableError
from dca_fast.files.atomic import write_atomic

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
    "dca_rans_quantise_bytes": (_U64, [_U32, _U32]),
    "dca_rans_tables": (None, [_P, _P, _P, _P]),
    "dca_rans_stage": (_U32, [_U32, _U32]),
    "dca_rans_error": (ctypes.c_char_p, [ctypes.c_int]),
}
_LAUNCHES = {
    "dca_rans_reset": [ctypes.c_char_p, _P, _U32, _P, _P, _P, _P, ctypes.c_char_p, _P],
    "dca_rans_decode": [_P, _U32, _U32, _U32, _U32, _P, _P, _U32, _U32, _P, _U32, _P, _P, _P],
    "dca_rans_finish": [_P, _U32, _P],
    "dca_rans_digest": [_P, _P, _P, _U32, _P, _U32, _P],
    "dca_rans_encode_open": [_P, _U32, _P, _U32, _U32, _P],
    "dca_rans_encode": [_P, _U32, _U32, _P, _U32, _U32, _P, _P, _U32, _P, _P, _P],
    "dca_rans_encode_close": [_P, _U32, _U32, _P, _P, _U64, _P],
    "dca_rans_quantise": [_P, _P, _U32, _U32, _P, _U32, _P, _P, _P],
    "dca_rans_histogram": [_P, _U32, _U32, _U32, _P, _P],
}


class Library:
    """The functions of csrc/coder/rans_cuda.cu, as `call` for the host's and `launch` for the device's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._functions = ctypes.CDLL(str(path))
            for name, (result, arguments) in _SIZES.items():
                function = getattr(self._functions, name)
                function.restype, function.argtypes = result, arguments
            for name, arguments in _LAUNCHES.items():
                function = getattr(self._functions, name)
                function.restype, function.argtypes = ctypes.c_int, arguments
        except (OSError, AttributeError) as error:
            raise BackendUnavailableError(f"{path} cannot be loaded: {error}") from error

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
    """The library for an architecture: the prebuilt one, else that in the cache, else a new one; see `build`.

    What the cache holds but cannot be loaded is built anew. A library whose bytes are not those that were built is not
    even tried: loading one that was cut ends the process.
    """
    name = _file_name(_sources(), arch)
    if (PACKAGE / name).exists():
        return Library(PACKAGE / name)
    path = build(arch)
    try:
        return Library(path)
    except BackendUnavailableError:
        with contextlib.suppress(OSError):
            path.unlink()
        return Library(build(arch))


def _digest_of(path: Path) -> Path:
    """The file that holds the SHA-256 of a library of the cache."""
    return path.with_suffix(".sha256")


def _is_whole(path: Path) -> bool:
    """Whether a library of the cache is there, and as it was built, where that is known."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return digest == _digest_of(path).read_text("ascii").strip()
    except FileNotFoundError:
        return path.exists()
    except (OSError, ValueError):
        return False


def build(arch: str, folder: Path | None = None) -> Path:
    """Build the library unless it is there; needs nvcc, but no GPU.

    Args:
        arch: nvcc's name of the architecture, such as "sm_90".
        folder: where to put it; default the cache: DCA_CACHE, else dca-fast in the user's cache directory.

    Returns:
        The library. Its name tells source and architecture; in the package's own folder it counts as prebuilt.

    Raises:
        BackendUnavailableError: no sources, no compiler, or a compiler that fails; or a cache that others may write to:
            their code would run here.
    """
    cache, sources = folder is None, _sources()
    folder = folder or _cache()
    path = folder / _file_name(sources, arch)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if cache:
            _check_owner(folder)
        there = partial(_is_whole, path) if cache else path.exists
        if cache and path.exists():
            _check_owner(path)
        if not there():
            nvcc = _nvcc()
            with _locked(folder) if cache else contextlib.nullcontext():
                if not there():
                    digest = _compile(nvcc, sources, arch, path)
                    if cache:
                        write_atomic(_digest_of(path), digest.encode())
    except OSError as error:
        raise BackendUnavailableError(f"the coder for the GPU cannot be built in {folder}: {error}") from error
    return path


def _check_owner(path: Path) -> None:
    """Refuse what somebody else could have put there."""
    if sys.platform == "win32":
        return
    facts = path.stat()
    if facts.st_uid not in (os.getuid(), 0) or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        advice = "its code is not run; chmod go-w, or name another folder in DCA_CACHE"
        raise BackendUnavailableError(f"others can write to {path}: {advice}")


def _compile(nvcc: str, sources: Path, arch: str, path: Path) -> str:
    """Make the library; its SHA-256."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        built = Path(scratch) / path.name
        command = [nvcc, *FLAGS, f"-arch={arch}", "-o", str(built), str(sources / SOURCES[0])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = " ".join((done.stderr or done.stdout).split())
            raise BackendUnavailableError(f"nvcc failed: {said[-1000:]}")
        built.chmod(0o755)  # before others see it
        with open(built, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
            os.fsync(file.fileno())
        built.replace(path)
    return digest


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    if sys.platform == "win32":
        raise BackendUnavailableError("the coder for the GPU is not built on Windows")
    import fcntl

    # A link could lead to any file of the user; nothing is truncated.
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        yield
    finally:
        os.close(lock)


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
