"""Pointwise Triton kernels: the bits of the reference, in the interpreter or on a GPU; and what they compile to."""

from __future__ import annotations

import itertools

import pytest
import torch

from dca_fast.config import SKIP_ROW, coarse_to_fine
from dca_fast.ops import reference
from tests.kernel_tools import (
    ARCHITECTURES,
    DEVICE,
    EXTREME_M,
    INFINITE_PRODUCTS,
    check_compiled,
    compiled,
    int8,
    int16,
    int32,
    interpreter,
    kernels,
    multipliers,
    same,
)

numerics = kernels("numerics")
pointwise = kernels("pointwise")

import triton  # noqa: E402  after kernels(), which chooses the interpreter
import triton.language as tl  # noqa: E402

pytestmark = INFINITE_PRODUCTS
requantise, requantise_leaky = numerics.requantise, numerics.requantise_leaky

with interpreter():

    @triton.jit
    def requantise_kernel(acc, m, out, LIMIT: tl.constexpr, LEAKY: tl.constexpr, BLOCK: tl.constexpr):
        at = tl.arange(0, BLOCK)
        if LEAKY:
            r = requantise_leaky(tl.load(acc + at), tl.load(m + at), LIMIT)
        else:
            r = requantise(tl.load(acc + at), tl.load(m + at), LIMIT)
        tl.store(out + at, r)


@pytest.mark.parametrize("limit", [127, 32767, 1 << 20, 1 << 21, 1 << 22])
@pytest.mark.parametrize("leaky", [False, True])
def test_requantise_is_the_rounding_rule(limit: int, leaky: bool) -> None:
    edges = torch.tensor(
        [0, 1, 2, 3, 5, (1 << 23) - 1, (1 << 24) - 1, (1 << 24) + 1, (1 << 30) + 65, (1 << 31) - 1, (1 << 31) - 65]
    )
    acc = torch.cat([edges, -edges, int32(64 - 2 * len(edges), limit=1 << 30)]).to(torch.int32)
    for m in (*EXTREME_M, 1 / 3, 0.5, 0.25, 2.5, limit / 3e8):
        scale = torch.full((64,), m)
        out = torch.empty(64, dtype=torch.int32, device=DEVICE)
        requantise_kernel[(1,)](acc.to(DEVICE), scale.to(DEVICE), out, limit, leaky, 64, **numerics.EXACT)
        assert torch.equal(out.cpu(), reference.requantise(acc, scale, limit, leaky)), m


@pytest.mark.parametrize("shape", [(1, 1), (0, 4), (3, 2, 20), (2, 5, 7, 33), (1030, 3)])
def test_operands_and_add(shape: tuple[int, ...]) -> None:
    x, c = int16(*shape), shape[-1]
    same(pointwise.operand8, reference.operand8, x, multipliers(c, reach=200))
    same(pointwise.operand16, reference.operand16, x, multipliers(c, reach=0.7))
    same(pointwise.add, reference.add, x, int16(*shape))


@pytest.mark.parametrize("shape", [(0, 4), (3, 2, 20), (2, 5, 7, 34), (1030, 2)])
def test_slopes(shape: tuple[int, ...]) -> None:
    e, h = int8(*shape), (int8(*shape).int() * 2).clamp(-127, 127).to(torch.int8)
    h[..., ::3] = 0
    for leaky in (False, True):
        same(pointwise.act_slope, reference.act_slope, e, h, leaky)
    same(pointwise.add_slope, reference.add_slope, int16(*shape), int16(*shape), h)
    half = shape[-1] // 2
    for g in (0.0625, 0.002):
        m = multipliers(2 * half, reach=3000)
        same(pointwise.gate_slope, reference.gate_slope, int8(*shape[:-1], half), h, g, m)


def test_features_with_ties_and_saturation() -> None:
    ends = torch.cat([torch.arange(-32767, -32700), torch.arange(-300, 301), torch.arange(32700, 32768)])
    x = ends.to(torch.int16).repeat_interleave(2).view(-1, 2).contiguous()
    for m in (*EXTREME_M, 1 / 3, 1.5, 2.0**-8):
        scale = torch.tensor([m, -m])
        same(pointwise.operand8, reference.operand8, x, scale)
        same(pointwise.operand16, reference.operand16, x, scale)
    same(pointwise.add, reference.add, x, x.flip(0).contiguous())
    same(pointwise.add, reference.add, x, x)


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize(("n", "h", "w", "size"), [(1, 2, 2, 1), (2, 6, 10, 7), (1, 4, 14, 20)])
def test_quadtree_step(n: int, h: int, w: int, size: int, step: int) -> None:
    y, mean = int16(n, h, w, 4 * size), int32(n, h, w, size, limit=9000)
    same(pointwise.quadtree_gather, reference.quadtree_gather, y, step)
    same(pointwise.quadtree_gather, reference.quadtree_gather, y.int() * 30000, step)
    gain = multipliers(4 * size, reach=1.0)
    same(pointwise.residuals, reference.residuals, y, mean, gain, step)
    same(pointwise.residuals, reference.residuals, y, mean // 9, gain / 20, step)
    same(pointwise.reconstruct, reference.reconstruct, int16(n, h, w, size), mean, 1 / gain, step, y)
    same(pointwise.reconstruct, reference.reconstruct, int16(n, h, w, size, limit=9), mean // 9, 1 / gain, step, y)
    row = torch.randint(0, 128, (n, h, w, size), dtype=torch.uint8)
    row[torch.rand(row.shape) < 0.3] = SKIP_ROW
    for strength, skip in ((0, 0), (3, 6), (15, 128)):
        same(pointwise.coarseness, reference.coarseness, row, int32(4, size, limit=2000), skip, strength)
    coarse = torch.randint(-15, 16, (n, h, w), dtype=torch.int8)
    for skip in (0, 6, 128):
        same(pointwise.coarser_rows, reference.coarser_rows, row, coarse, skip)
    factor = torch.exp2(coarse / 12)
    same(pointwise.residuals, reference.residuals, y, mean // 9, gain / 20, step, 1 / factor)
    same(pointwise.reconstruct, reference.reconstruct, int16(n, h, w, size), mean // 9, 1 / gain, step, y, factor)


@pytest.mark.parametrize(("n", "h", "w", "c"), [(1, 1, 2, 3), (2, 3, 5, 33), (1, 9, 8, 128)])
def test_means_of_neighbours(n: int, h: int, w: int, c: int) -> None:
    z = int16(n, h, w, c)
    for part in coarse_to_fine(2):
        if part.kind is not None and part.top < h and part.left < w:
            for m in (multipliers(4, c, reach=1.0), torch.full((4, c), 3e38)):
                same(pointwise.neighbour_mean, reference.neighbour_mean, z, m, part)


def test_large_means_and_values_saturate() -> None:
    y = torch.full((1, 2, 2, 4), 32767, dtype=torch.int16)
    for mean, gain in itertools.product((-(1 << 20), 0, 1 << 20), (-1e9, -1.0, 3e38)):
        means = torch.full((1, 2, 2, 1), mean, dtype=torch.int32)
        gains = torch.full((4,), gain)
        same(pointwise.residuals, reference.residuals, y, means, gains, 2)
        factor = torch.full((1, 2, 2), 2.375)
        same(pointwise.residuals, reference.residuals, y, means, gains, 2, factor)
        for value in (-32768, 8191, 32767):
            q = torch.full((1, 2, 2, 1), value, dtype=torch.int16)
            same(pointwise.reconstruct, reference.reconstruct, q, means, gains, 1, y)
            same(pointwise.reconstruct, reference.reconstruct, q, means, gains, 1, y, factor)
    row = torch.tensor([0, 127, SKIP_ROW, 6], dtype=torch.uint8).view(1, 2, 2, 1).expand(1, 2, 2, 40).contiguous()
    for offset in (-(1 << 20), 0, 1 << 20):
        same(pointwise.coarseness, reference.coarseness, row, torch.full((4, 40), offset, dtype=torch.int32), 6, 15)


@pytest.mark.parametrize(("n", "h", "w"), [(1, 8, 8), (2, 8, 24)])
def test_pixels_and_sites(n: int, h: int, w: int) -> None:
    image = torch.randint(0, 256, (n, h, w, 3), dtype=torch.uint8)
    for size in (8, 4):
        same(pointwise.patches_from_image, reference.patches_from_image, image, size)
    patches = (reference.patches_from_image(image) + 128).to(torch.uint8)
    same(pointwise.image_from_patches, reference.image_from_patches, patches)
    for x in (int8(n, h, w, 5), int16(n, h, w, 16)):
        same(pointwise.space_to_depth2, reference.space_to_depth2, x)
        same(pointwise.depth_to_space2, reference.depth_to_space2, reference.space_to_depth2(x))


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (9, 130)])
def test_padding(size: tuple[int, int]) -> None:
    image = torch.randint(0, 256, (*size, 3), dtype=torch.uint8)
    for padded in (size, (16, 192), (size[0] + 1, size[1])):
        same(pointwise.pad_edges, reference.pad_edges, image, *padded)
        same(pointwise.pad_edges, reference.pad_edges, image, *padded, torch.zeros(1, *padded, 3, dtype=torch.uint8))
        for other in (image.permute(2, 0, 1).contiguous().permute(1, 2, 0), image.flip(2), image[:, ::2]):
            expected = reference.pad_edges(other, *padded)
            assert torch.equal(pointwise.pad_edges(other.to(DEVICE), *padded).cpu(), expected)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (9, 130), (40, 33)])
@pytest.mark.parametrize("rings", [1, 2, 3])
def test_restoration(size: tuple[int, int], rings: int) -> None:
    picture = torch.randint(0, 256, (*size, 3)).to(torch.uint8)
    picture[: size[0] // 2].clamp_(100, 110)  # differences on both sides of the limit
    same(pointwise.restore, reference.restore, picture, torch.randint(-127, 128, (3, 6 * rings)).to(torch.int8))
    for weight in (-127, 127):
        same(pointwise.restore, reference.restore, picture, torch.full((3, 6 * rings), weight, dtype=torch.int8))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2), (40, 33), (5, 430)])
def test_sums_of_the_restoration(size: tuple[int, int]) -> None:
    picture, image = (torch.randint(0, 256, (*size, 3)).to(torch.uint8) for _ in range(2))
    picture[: size[0] // 2].clamp_(100, 110)
    for stride in (1, 3):
        same(pointwise.restore_sums, reference.restore_sums, picture, image, stride)
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    dots = ((rows % 3 == 1) & (columns % 3 == 1)).to(torch.uint8).mul(255)[:, :, None].repeat(1, 1, 3)
    for extreme in (dots, 255 - dots):  # the largest features of both signs
        same(pointwise.restore_sums, reference.restore_sums, extreme, 255 - extreme, 1)


# Compilation, with the shapes of dca-s.


def dca_s_calls() -> None:
    h, w = 16, 24
    x, y, mean = int16(1, h, w, 160), int16(1, h, w, 384), int32(1, h, w, 96)
    row, m = torch.zeros(1, h, w, 96, dtype=torch.uint8), torch.ones(384)
    image = torch.zeros(1, 128, 192, 3, dtype=torch.uint8)
    pointwise.operand8(x, m)
    pointwise.operand16(y, m)
    pointwise.add(x, x)
    hidden = int8(1, h, w, 160)
    pointwise.act_slope(hidden, hidden, True)
    pointwise.act_slope(hidden, hidden, False)
    pointwise.gate_slope(hidden[..., :80].contiguous(), hidden, 0.0625, m[:160])
    pointwise.add_slope(x, x, hidden)
    pointwise.quadtree_gather(y, 1)
    factor = torch.ones(1, h, w)
    for part in coarse_to_fine(2)[1:]:
        pointwise.neighbour_mean(y, m.expand(4, -1).contiguous(), part)
    coarse = pointwise.coarseness(row, torch.zeros(4, 96, dtype=torch.int32), 6, 3)
    pointwise.coarser_rows(row, coarse, 6)
    for adapted in ((), (factor,)):
        pointwise.residuals(y, mean, m, 1, *adapted)
        pointwise.reconstruct(y[..., :96].contiguous(), mean, m, 1, y, *adapted)
    pointwise.pad_edges(image[0], 192, 256)
    pointwise.image_from_patches(pointwise.patches_from_image(image).to(torch.uint8))
    pointwise.depth_to_space2(pointwise.space_to_depth2(int8(1, h, w, 160)))
    pointwise.restore(image[0], torch.ones(3, 18, dtype=torch.int8, device=image.device))


def restoration_sums() -> None:
    image = torch.zeros(128, 192, 3, dtype=torch.uint8)
    pointwise.restore_sums(image, image, 2)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_compile(architecture: int) -> None:
    for record in compiled(__name__, "dca_s_calls", architecture):
        check_compiled(record, architecture, tensor_core=False)
    for record in compiled(__name__, "restoration_sums", architecture):
        check_compiled(record, architecture, tensor_core=True)
