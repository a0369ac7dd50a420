"""The C library on other systems, each in what runs its programs here: qemu-user and Wine (`tests/elsewhere.py`)."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from tests import elsewhere
from tests.decoder_library import build, can_build

FILES = "size_17x15", "gray_1x1", "alpha_mask", "layer_corners", "deep_gray"


@can_build
@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("zig") is None and importlib.util.find_spec("ziglang") is None, reason="no Zig to compile with"
)
@pytest.mark.parametrize(
    ("target", "runner"),
    [
        pytest.param(target, runner, marks=pytest.mark.skipif(shutil.which(runner) is None, reason=f"no {runner}"))
        for target, runner in (("aarch64-linux-musl", "qemu-aarch64"), ("x86_64-windows-gnu", "wine"))
    ],
)
def test_another_system_decodes_the_same(target: str, runner: str, tmp_path: Path) -> None:
    theirs, ours = elsewhere.built(target), build() / "decode"
    for name in FILES:
        data = elsewhere.CONFORMANCE / "vectors" / f"{name}.dca"
        assert elsewhere.decoded([runner, theirs], data, tmp_path) == elsewhere.decoded([ours], data, tmp_path), name
