"""The codec on a CUDA device: bytes and pixels of the CPU, graphs that follow the quality, memory that runs out."""

from __future__ import annotations

import itertools
import os
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import fields, replace
from threading import Lock
from typing import Any

import numpy as np
import pytest
import torch

from dca_fast import Codec, backends, inspect
from dca_fast.engines.cuda import (
    CACHED_GRAPHS,
    LARGEST_GRAPH,
    STRIP_ROWS,
    CudaEngine,
    _all_settings,
    _DecoderGraph,
    _Settings,
)
from dca_fast.errors import BitstreamError, DeviceMemoryError
from dca_fast.network import weights
from dca_fast.network.program import Model
from dca_fast.network.walk import Grid
from dca_fast.ops import Linear, Ops, Params
from dca_fast.ops.reference import OPS
from dca_fast.testing import page, photograph
from tests import test_rans_device
from tests.recording_tools import overwrite_unowned, recorded

OK, REASON = backends.available()["cuda"]
on_gpu = pytest.mark.skipif(not OK and not os.environ.get("DCA_REQUIRE_GPU"), reason=REASON)


# What needs no device.


def test_settings_in_fixed_memory_are_those_of_every_quality() -> None:
    model = Model(weights.load(weights.find("dca-s")), OPS)
    fixed = _Settings(model)
    before = {name: view.data_ptr() for name, view in fixed.views.items()}
    for quality in (0, 6000, 10000, 1):
        fixed.load(quality)
        expected = _all_settings(model.weights, quality)
        assert fixed.views.keys() == expected.keys()
        assert all(view.equal(expected[name]) for name, view in fixed.views.items())
    assert before == {name: view.data_ptr() for name, view in fixed.views.items()}
    assert all(address % 16 == 0 for address in before.values())


def bare() -> CudaEngine:
    """One that has its caches and no device."""
    codec = CudaEngine.__new__(CudaEngine)
    codec._seen, codec._lock = OrderedDict(), Lock()
    return codec


def test_a_size_is_recorded_when_it_comes_again_and_few_are_kept() -> None:
    codec, made = bare(), []

    def graph(way: str, side: int) -> Any:
        def make() -> Any:
            made.append((way, side))
            return (way, side)

        return codec._graph((way, (side, side), (side, side)), Grid((side, side), (side, side)), make)

    for side in range(4, 2 * CACHED_GRAPHS + 1, 4):
        for way in ("encode", "decode"):
            assert graph(way, side) is None
            assert graph(way, side) == graph(way, side) == (way, side)
    assert len(made) == len(codec._seen) == CACHED_GRAPHS
    assert graph("encode", 200) is None
    assert ("encode", (4, 4), (4, 4)) not in codec._seen
    huge = int(LARGEST_GRAPH**0.5) // 16 + 4
    assert graph("decode", huge) is graph("decode", huge) is None


def test_short_memory_means_strips_then_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(times: int) -> Callable[[int | None], int | None]:
        tried: list[int | None] = []

        def work(rows: int | None) -> int | None:
            tried.append(rows)
            if len(tried) <= times:
                raise torch.cuda.OutOfMemoryError("no room")
            return rows

        return work

    assert bare()._in_memory(failing(0)) is None
    assert bare()._in_memory(failing(1)) == STRIP_ROWS[1]
    with pytest.raises(DeviceMemoryError, match="no room"):
        bare()._in_memory(failing(len(STRIP_ROWS)))
    with pytest.raises(DeviceMemoryError, match="no room"):
        bare()._in_memory(failing(1), 1)
    monkeypatch.setattr("dca_fast.engines.cuda.STRIP_ROWS", (16,))  # as a test below does
    assert bare()._in_memory(failing(0)) == 16


def test_the_cpu_searches_where_a_device_has_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(work: Callable[..., Any], tries: int | None = None) -> None:
        raise DeviceMemoryError("no room")

    codec, pixels = Codec(), photograph(64, 80, seed=2)
    expected, on_cpu = codec.encode(pixels, 50, effort=2), codec.engine
    engine = vars(bare()) | {"_in_memory": full, "_on_cpu": lambda: on_cpu, "device": torch.device("cpu")}
    codec.engine = CudaEngine.__new__(CudaEngine)
    vars(codec.engine).update(engine, _adjoint=None, _model=None, arrays=on_cpu.arrays, ops=on_cpu.ops)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    assert codec.encode(pixels, 50, effort=2) == expected


# Recorded launches on an imitated device (recording_tools.py).

emulated_library, emulation = test_rans_device.emulated_library, test_rans_device.emulation


def packed(value: Any) -> Any:
    """Arguments of an operation with the weights of wide layers packed, into the layer's cache, as kernels do."""
    if isinstance(value, Linear) and value.w.dtype == torch.int16:
        return Linear(value.cache.setdefault("imitation", value.w.clone()), value.b, value.m)
    if isinstance(value, Params):
        return type(value)(*map(packed, value.values()))
    return value


def packing() -> Ops:
    """The reference operations, reading packed weights."""

    def reading(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: function(*map(packed, arguments))

    return replace(OPS, **{f.name: reading(getattr(OPS, f.name)) for f in fields(Ops) if f.name != "name"}, name="cuda")


@pytest.fixture
def imitated(monkeypatch: pytest.MonkeyPatch, emulation: None) -> Codec:
    monkeypatch.setattr("dca_fast.codec.resolve", lambda backend, device: packing())
    monkeypatch.setattr("dca_fast.engines.cuda.record", recorded)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    return Codec(device="cuda")


@test_rans_device.needs_gcc
def test_graphs_own_what_they_read(imitated: Codec) -> None:
    image, plain = photograph(70, 100, seed=5), Codec()
    other = photograph(70, 100, seed=6)
    imitated.warm_up(70, 100, effort=1)
    imitated.warm_up(70, 100, effort=0)
    assert isinstance(imitated.engine, CudaEngine)
    graphs = list(imitated.engine._seen.values())
    assert sorted(type(graph).__name__ for graph in graphs) == ["_DecoderGraph", "_EncoderGraph", "_EncoderGraph"]
    for graph in graphs:
        assert graph is not None
        overwrite_unowned(graph)
    for picture, quality, effort in ((image, 30, 0), (other, 75, 1), (image, 60, 1)):
        data = plain.encode(picture, quality, effort=effort)
        assert imitated.encode(picture, quality, effort=effort) == data
        assert np.array_equal(imitated.decode(data, "numpy"), plain.decode(data, "numpy"))


@test_rans_device.needs_gcc
def test_a_graph_without_its_program_is_noticed(imitated: Codec) -> None:
    """That the test above can fail: as decoders were recorded before their graphs kept programs."""
    image, plain = photograph(70, 100, seed=5), Codec()
    imitated.warm_up(70, 100, effort=0)
    assert isinstance(imitated.engine, CudaEngine)
    (graph,) = (graph for graph in imitated.engine._seen.values() if isinstance(graph, _DecoderGraph))
    del graph._program
    overwrite_unowned(graph)
    data = plain.encode(image, 60)
    try:
        pixels = imitated.decode(data, "numpy")
    except BitstreamError:
        return
    assert not np.array_equal(pixels, plain.decode(data, "numpy"))


# On a device.


@pytest.fixture(scope="module")
def cpu() -> Codec:
    return Codec(device="cpu")


@pytest.fixture(scope="module")
def gpu() -> Codec:
    return Codec(device="cuda")


@on_gpu
@pytest.mark.parametrize("size", [(1, 1), (1, 17), (64, 64), (63, 65), (255, 257), (1000, 3), (512, 768)])
def test_files_and_pixels_are_those_of_the_cpu(cpu: Codec, gpu: Codec, size: tuple[int, int]) -> None:
    image = photograph(*size, seed=7)
    for quality, effort in itertools.product((0, 31.7, 60, 100), (0, 1, 4)):
        data = cpu.encode(image, quality, effort=effort)
        pixels = cpu.decode(data, "numpy")
        for _ in range(3):  # launch by launch, recorded, replayed
            assert gpu.encode(image, quality, effort=effort) == data
            assert np.array_equal(gpu.decode(data, "numpy"), pixels)


@on_gpu
def test_tensors_stay_on_the_device(cpu: Codec, gpu: Codec) -> None:
    image = torch.from_numpy(photograph(200, 300, seed=3)).permute(2, 0, 1)
    data = gpu.encode(image.cuda(), 70)
    assert data == cpu.encode(image, 70)
    pixels = gpu.decode(data, "torch")
    assert pixels.is_cuda
    assert pixels.cpu().equal(cpu.decode(data, "torch"))


@on_gpu
@pytest.mark.parametrize("effort", [0, 1, 2])
def test_graphic_blocks_are_pasted_on_the_device(cpu: Codec, gpu: Codec, effort: int) -> None:
    image = page(96, 128, seed=11)
    data = cpu.encode(image, 60, effort=effort)
    assert inspect(data).graphic_blocks
    tensor = torch.from_numpy(image).permute(2, 0, 1).cuda()
    for picture in (image, tensor):
        assert gpu.encode(picture, 60, effort=effort) == data
    pixels = gpu.decode(data, "torch")
    assert pixels.is_cuda
    assert pixels.cpu().equal(cpu.decode(data, "torch"))


@on_gpu
def test_graphs_are_of_one_strength(cpu: Codec, gpu: Codec) -> None:
    """All recorded for one size; and a step of effort that counts errors of sites at their prices."""
    image = photograph(96, 128, seed=4)
    for effort in (0, 1, 2):
        files = {strength: cpu.encode(image, 50, effort=effort, aq_strength=strength) for strength in (0, 0.25, 0.75)}
        for strength, data in [*files.items()] * 3:
            assert gpu.encode(image, 50, effort=effort, aq_strength=strength) == data
            assert np.array_equal(gpu.decode(data, "numpy"), cpu.decode(data, "numpy"))


@on_gpu
def test_mixed_sizes_from_many_threads_and_streams(cpu: Codec, gpu: Codec) -> None:
    images = [photograph(64 * (1 + i % 3), 64 * (1 + i % 2), seed=i) for i in range(24)]
    options = [{"effort": i % 4, "aq_strength": i // 6 / 16} for i in range(24)]
    expected = [cpu.encode(image, 4 * i, **options[i]) for i, image in enumerate(images)]

    def both(i: int) -> bool:
        with torch.cuda.stream(torch.cuda.Stream()):
            data = gpu.encode(images[i], 4 * i, **options[i])
            return data == expected[i] and np.array_equal(gpu.decode(data, "numpy"), cpu.decode(data, "numpy"))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(both, range(len(images))))


@on_gpu
def test_damaged_files_raise_and_leave_the_codec_usable(cpu: Codec, gpu: Codec) -> None:
    image = photograph(128, 128, seed=9)
    data = cpu.encode(image, 80)
    generator = np.random.default_rng(0)
    for _ in range(200):
        bad = bytearray(data)
        bad[int(generator.integers(len(bad)))] ^= 1 << int(generator.integers(8))
        with pytest.raises(BitstreamError):
            gpu.decode(bytes(bad))
    assert np.array_equal(gpu.decode(data, "numpy"), cpu.decode(data, "numpy"))


@on_gpu
def test_strips_on_the_device_are_exact(cpu: Codec, gpu: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    image = photograph(640, 192, seed=5)
    data = cpu.encode(image, 50)
    monkeypatch.setattr("dca_fast.engines.cuda.STRIP_ROWS", (16,))
    monkeypatch.setattr("dca_fast.engines.cuda.LARGEST_GRAPH", 0)
    assert gpu.encode(image, 50) == data
    assert np.array_equal(gpu.decode(data, "numpy"), cpu.decode(data, "numpy"))
