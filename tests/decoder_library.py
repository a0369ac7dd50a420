"""The C library of csrc/decoder as the tests use it: built once, called through ctypes."""

from __future__ import annotations

import ctypes
import fcntl
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dca_fast import errors

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "dca_fast" / "data" / "dca-s.safetensors"
can_build = pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("c++") is None, reason="no CMake and C++ compiler to build with"
)

BAD_ARGUMENT, NOT_AVAILABLE = 8, 9
STATUS = {
    1: errors.NotADcaFileError,
    2: errors.UnsupportedVersionError,
    3: errors.UnknownModelError,
    4: errors.TruncatedStreamError,
    5: errors.CorruptStreamError,
    6: errors.LimitExceededError,
    7: errors.WeightsError,
    BAD_ARGUMENT: errors.ConfigError,
    NOT_AVAILABLE: errors.BackendUnavailableError,
    10: MemoryError,
}


class _Bytes(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t))


class _Info(ctypes.Structure):
    _fields_ = (
        ("width", ctypes.c_uint32),
        ("height", ctypes.c_uint32),
        ("channels", ctypes.c_int),
        ("depth", ctypes.c_int),
        ("quality", ctypes.c_int),
        ("exact", ctypes.c_int),
        ("model_id", ctypes.c_uint8 * 4),
        ("graphic_blocks", ctypes.c_size_t),
        ("row_bytes", ctypes.c_size_t),
        ("icc", _Bytes),
        ("exif", _Bytes),
        ("xmp", _Bytes),
    )

    def metadata(self) -> dict[str, bytes]:
        blocks = {name: getattr(self, name) for name in ("icc", "exif", "xmp")}
        return {name: ctypes.string_at(b.data, b.size) for name, b in blocks.items() if b.data}


class _Error(ctypes.Structure):
    _fields_ = (("status", ctypes.c_int), ("message", ctypes.c_char * 256))


class _Options(ctypes.Structure):
    _fields_ = (("threads", ctypes.c_int), ("max_pixels", ctypes.c_uint64), ("isa", ctypes.c_char_p))


def build(name: str = "decoder", *options: str) -> Path:
    """The folder that a configuration is built in; processes that test side by side wait for the one that builds."""
    folder = ROOT / "build" / name
    folder.parent.mkdir(exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        configure = ["cmake", "-S", "csrc/decoder", "-B", folder, *options]
        for command in (configure, ["cmake", "--build", folder, "--parallel", "2"]):
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            assert done.returncode == 0, done.stdout
    return folder


def library() -> Any:
    return ctypes.CDLL(str(next(path for path in build().iterdir() if path.name in ("libdca.so", "libdca.dylib"))))


def random_weights(path: Path, **change: Any) -> Path:
    """A small network of other shapes, as `ModelConfig` takes them, with random weights."""
    torch = pytest.importorskip("torch")
    from dca_fast.config import ModelConfig
    from dca_fast.model.network import Network
    from dca_fast.network import weights
    from dca_fast.train.export import export

    sizes = {"width": 32, "latent": 64, "latent_hidden": 32, "context_width": 32, "heads": 2, "local": 4}
    sizes |= {"regional": 16, "regional_levels": 2, "tokens": 4, "local_blocks": 2}
    network = Network(ModelConfig(**{"name": "tiny", **sizes, **change})).eval()
    with torch.no_grad():
        for p in network.factorised.parameters():
            p.add_(torch.randn_like(p) * 0.5 + 1)
        for name, p in network.named_parameters():
            if name.endswith(("slope", "bias")):
                p.add_(torch.randn_like(p) * 0.2)
    weights.save(path, export(network), network.config, 6)
    return path


def checked(status: int, error: _Error) -> None:
    """Raise what Python raises."""
    assert status == error.status
    assert (status == 0) == (error.message == b"")
    if status:
        raise STATUS[status](error.message.decode())


class Decoder:
    """`dca_decoder`: pixels [H, W, channels of the file]."""

    def __init__(
        self, lib: Any, weights: bytes | None, *, threads: int = 1, max_pixels: int = 0, isa: str | None = None
    ) -> None:
        self.lib, self.handle, error = lib, ctypes.c_void_p(), _Error()
        options = _Options(threads, max_pixels, None if isa is None else isa.encode())
        size = ctypes.c_size_t(len(weights or b""))
        made = lib.dca_decoder_new(weights, size, ctypes.byref(options), ctypes.byref(self.handle), ctypes.byref(error))
        checked(made, error)

    def __del__(self) -> None:
        self.lib.dca_decoder_free(self.handle)

    @property
    def model_id(self) -> bytes:
        out = (ctypes.c_uint8 * 4)()
        self.lib.dca_decoder_model(self.handle, out)
        return bytes(out)

    def inspect(self, data: bytes) -> _Info:
        info, error = _Info(), _Error()
        checked(self.lib.dca_inspect(data, ctypes.c_size_t(len(data)), ctypes.byref(info), ctypes.byref(error)), error)
        return info

    def decode(self, data: bytes, reduce: int = 1, region: tuple[int, int, int, int] | None = None) -> np.ndarray:
        info, error, pixels = _Info(), _Error(), ctypes.c_void_p()
        size, out = ctypes.c_size_t(len(data)), (ctypes.byref(info), ctypes.byref(pixels), ctypes.byref(error))
        if region is not None:
            done = self.lib.dca_decode_region(self.handle, data, size, *map(ctypes.c_uint32, region), *out)
        elif reduce == 1:
            done = self.lib.dca_decode(self.handle, data, size, *out)
        else:
            done = self.lib.dca_decode_preview(self.handle, data, size, reduce, *out)
        assert bool(pixels) == (done == 0)
        checked(done, error)
        held = ctypes.string_at(pixels, info.row_bytes * info.height)
        self.lib.dca_free(pixels)
        samples = np.frombuffer(held, np.uint8 if info.depth == 8 else np.uint16)
        return samples.reshape(info.height, info.width, info.channels)

    def decode_to(self, data: bytes, memory: np.ndarray, stride: int) -> None:
        error, at = _Error(), ctypes.c_void_p(memory.ctypes.data)
        size = ctypes.c_size_t(len(data))
        done = self.lib.dca_decode_to(self.handle, data, size, at, ctypes.c_size_t(stride), ctypes.byref(error))
        checked(done, error)
