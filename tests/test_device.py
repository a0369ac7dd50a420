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
    STRIP_LINES,
    CudaEngine,
    _all_settings,
    _batches,
    _DecoderGraph,
    _Settings,
)
from dca_fast.errors import BitstreamError, DeviceMemoryError, InputError
from dca_fast.files import container
from dca_fast.network import models, weights
from dca_fast.network.program import Model
from dca_fast.network.walk import Grid
from dca_fast.ops import Linear, Ops, Params
from dca_fast.ops.reference import OPS
from dca_fast.region import Region
from dca_fast.testing import page, photograph
from tests import test_rans_device
from tests.recording_tools import overwrite_unowned, recorded

OK, REASON = backends.available()["cuda"]
on_gpu = pytest.mark.skipif(not OK and not os.environ.get("DCA_REQUIRE_GPU"), reason=REASON)


# What needs no device.


def test_settings_in_fixed_memory_are_those_of_every_quality() -> None:
    model = Model(weights.load(models.named("dca-s")), OPS)
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
    assert bare()._in_memory(failing(1)) == STRIP_LINES[1]
    with pytest.raises(DeviceMemoryError, match="no room"):
        bare()._in_memory(failing(len(STRIP_LINES)))
    with pytest.raises(DeviceMemoryError, match="no room"):
        bare()._in_memory(failing(1), 1)
    monkeypatch.setattr("dca_fast.engines.cuda.STRIP_LINES", (16,))  # as a test below does
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
def test_a_batch_is_each_of_its_pictures(imitated: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of mixed sizes, in batches of two numbers, launch by launch and recorded; what one waits for is once a batch."""
    monkeypatch.setattr("dca_fast.engines.cuda.BATCHES", (3, 2, 1))
    sizes = [(40, 100), (36, 99), (64, 64), (40, 100), (40, 100), (40, 97), (40, 64)]
    images = [torch.from_numpy(photograph(*size, seed=i)) for i, size in enumerate(sizes)]
    plain, engine = Codec().engine, imitated.engine
    for quality, effort in ((3000, 0), (6000, 0), (6000, 1)):
        want = [plain.encode(plain.image(image), quality, effort, 3) for image in images]
        streams, pixels = [one.stream for one in want], []
        headers = [container.Header(w, h, quality, b"", 0, aq=3) for h, w in sizes]
        for one, header in zip(streams, headers, strict=True):
            pixels.append(plain.decode(one, header, Region.whole(header.height, header.width)))
        for _ in range(3):
            assert engine.encode_batch(images, quality, effort, 3) == want
            for (mine, digest), (expected, same) in zip(engine.decode_batch(streams, headers), pixels, strict=True):
                assert np.array_equal(mine.numpy(), expected)
                assert digest == same
    assert isinstance(engine, CudaEngine)
    kinds = {key[0] for key, graph in engine._seen.items() if graph is not None}
    assert kinds == {"encode", "encode 2", "encode 3", "decode", "decode 2", "decode 3"}
    for graph in engine._seen.values():
        if graph is not None:
            overwrite_unowned(graph)
    want = [plain.encode(plain.image(image), 4500, 0, 3) for image in images]
    assert engine.encode_batch(images, 4500, 0, 3) == want
    bad = [streams[0], streams[1], streams[2][:-8], *streams[3:]]
    with pytest.raises(BitstreamError):
        engine.decode_batch(bad, headers)
    assert len(engine.decode_batch(streams, headers)) == len(streams)


@test_rans_device.needs_gcc
def test_files_of_a_batch_are_those_of_each_picture(imitated: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photographs, graphics, alpha, gray; with and without a network, at the top, and what is out of order."""
    monkeypatch.setattr("dca_fast.engines.cuda.BATCHES", (2, 1))
    monkeypatch.setattr(CudaEngine, "together", 5)
    photographs, drawn = [photograph(40, 64, seed=i) for i in range(3)], page(48, 64, seed=11)
    alpha = np.dstack((photographs[0], np.arange(40 * 64, dtype=np.uint8).reshape(40, 64)))
    images = [photographs[0], drawn, alpha, photographs[1][..., 0].copy(), photographs[2], np.zeros_like(drawn)]
    plain = Codec()
    for quality, effort in ((50, 0), (100, 0), ("lossless", 0)):
        files = [plain.encode(image, quality, effort=effort) for image in images]
        assert imitated.encode_batch(iter(images), quality, effort=effort) == files
        for output in ("numpy", "torch"):
            pixels = [plain.decode(data, output) for data in files]
            for mine, expected in zip(imitated.decode_batch(iter(files), output), pixels, strict=True):
                assert np.array_equal(mine, expected)
    assert imitated.encode_batch(np.stack(photographs), 50, effort=0) == [
        plain.encode(image, 50, effort=0) for image in photographs
    ]
    assert imitated.encode_batch([]) == imitated.decode_batch([]) == []
    with pytest.raises(BitstreamError):
        imitated.decode_batch([files[0], files[1][:-9]])
    with pytest.raises(InputError):
        imitated.encode_batch([photographs[0], 3])


@test_rans_device.needs_gcc
def test_batches_fit_into_memory(imitated: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dca_fast.engines.cuda.LARGEST_GRAPH", 3 * 128 * 128)
    split = [_batches(list(range(n)), Grid.of(100, 100), together=True) for n in (1, 2, 3, 7)]
    assert [[len(some) for some in own] for own in split] == [[1], [2], [2, 1], [2, 2, 2, 1]]
    assert [len(some) for some in _batches([1, 2], Grid.of(9000, 100), together=True)] == [1, 1]
    assert [len(some) for some in _batches([1, 2], Grid.of(9, 9), together=False)] == [1, 1]


@test_rans_device.needs_gcc
def test_tiles_go_through_a_graph_of_their_picture(imitated: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dca_fast.network.walk.TILE", 4)
    image, plain = photograph(70, 190, seed=5), Codec()
    assert len(Grid.of(70, 190).tiles()) == 6
    for quality, effort in ((30, 0), (60, 1), (40, 2)):
        data = plain.encode(image, quality, effort=effort)
        pixels = plain.decode(data, "numpy")
        for _ in range(2):  # launch by launch, recorded
            assert imitated.encode(image, quality, effort=effort) == data
            assert np.array_equal(imitated.decode(data, "numpy"), pixels)
        assert np.array_equal(imitated.decode(data, "numpy", region=(30, 20, 80, 25)), pixels[20:45, 30:110])
    assert isinstance(imitated.engine, CudaEngine)
    graphs = list(imitated.engine._seen.values())
    assert sum(isinstance(graph, _DecoderGraph) for graph in graphs) == 1
    for graph in graphs:
        if graph is not None:
            overwrite_unowned(graph)
    data = plain.encode(image, 45, effort=1)
    assert imitated.encode(image, 45, effort=1) == data
    assert np.array_equal(imitated.decode(data, "numpy"), plain.decode(data, "numpy"))
    stream = bytearray(container.parse(data).stream)
    stream[0] ^= 1  # of the digest of the first tile
    with pytest.raises(BitstreamError, match="tile 0"):
        imitated.decode(container.pack(container.parse(data).header, bytes(stream)))


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
    monkeypatch.setattr("dca_fast.engines.cuda.STRIP_LINES", (16,))
    monkeypatch.setattr("dca_fast.engines.cuda.LARGEST_GRAPH", 0)
    assert gpu.encode(image, 50) == data
    assert np.array_equal(gpu.decode(data, "numpy"), cpu.decode(data, "numpy"))
