"""The weights of the restoration filter: a regression, rounded and paid for."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from dca_fast import Codec
from dca_fast.encoder import restoration_fit
from dca_fast.files.container import pack_restoration, parse
from dca_fast.ops import Ops, reference
from dca_fast.ops import native as native_module
from dca_fast.testing import photograph
from tests.bridge import OnTensors

TENSORS = reference.arrays("cpu")
native = OnTensors(native_module)


def as_tensor(weights: tuple[int, ...]) -> torch.Tensor:
    return restoration_fit.as_array(TENSORS, weights)


def fit(ops: Ops, picture: torch.Tensor, image: torch.Tensor, bits: float) -> tuple[int, ...]:
    arrays = ops.arrays("cpu")
    return restoration_fit.fit(ops, arrays, arrays.array(picture.numpy()), arrays.array(image.numpy()), bits)


def blurred(pixels: np.ndarray) -> torch.Tensor:
    x = torch.from_numpy(pixels).float().permute(2, 0, 1)[:, None]
    return (
        torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)[:, 0]
        .permute(1, 2, 0)
        .round()
        .byte()
        .contiguous()
    )


def squares(a: torch.Tensor, b: torch.Tensor) -> int:
    return int((a.int() - b.int()).square().sum())


def test_weights_are_those_of_the_regression_but_for_their_rounding() -> None:
    """What all roundings together may cost where each answers those before it."""
    image = torch.from_numpy(photograph(90, 130, seed=2))
    picture = blurred(image.numpy())
    sums = reference.restore_sums(picture, image, 1)
    sums[:, 18:] //= 4  # of the error only a quarter: weights that need no clamping
    products, wanted = sums[:, :18].double(), sums[:, 18:].double()
    ridge = 90 * 130 / restoration_fit.RIDGE
    found = restoration_fit._solutions(sums[:, :18].numpy(), sums[:, 18:].numpy(), ridge)
    for (rings, grid), solution in zip(restoration_fit.FILTERS, found, strict=True):
        k = 6 * rings
        normal = products[:k, :k] + ridge * torch.eye(k).double()
        expected = 256 * torch.linalg.solve(normal, wanted[:k]).T
        weights = torch.tensor(solution[:, :k]).double()
        assert not solution[:, k:].any()
        assert not torch.any(weights % grid)
        factor = torch.linalg.cholesky(normal)
        costs = ((weights - expected) @ factor).square().sum(1)[weights.abs().amax(1) < 127 // grid * grid]
        assert len(costs) > 0
        assert torch.all(costs <= (factor.diagonal() * grid / 2).square().sum() * (1 + 1e-9))


@pytest.mark.parametrize("ops", [reference.OPS, native.OPS], ids=["reference", "native"])
def test_the_filter_takes_error_away_and_is_worth_its_bits(ops: Ops) -> None:
    image = torch.from_numpy(photograph(150, 200, seed=5))
    picture, bits = blurred(image.numpy()), 0.01
    weights = fit(ops, picture, image, bits)
    assert weights == fit(reference.OPS, picture, image, bits)
    before, after = squares(picture, image), squares(reference.restore(picture, as_tensor(weights)), image)
    assert (before - after) / 3 * bits > 8 * len(pack_restoration(weights))
    assert after < 0.7 * before
    assert fit(reference.OPS, picture, image, 1e-9) == ()
    assert fit(reference.OPS, image, image, 1.0) == ()


def test_more_bits_buy_more_rings() -> None:
    image = torch.from_numpy(photograph(150, 200, seed=5))
    sizes = [len(fit(native.OPS, blurred(image.numpy()), image, bits)) for bits in (1e-9, 0.003, 1.0)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (0, 54)


def test_the_gain_is_what_rounded_weights_bring() -> None:
    """The normal equations say it to the bit, but for the filter's rounding and the ends of a byte."""
    image = torch.from_numpy(photograph(80, 80, seed=1)) // 2 + 64
    picture = blurred(image.numpy())
    sums = reference.restore_sums(picture, image, 1).numpy()
    weights = restoration_fit.choose(sums, 6400, 1.0)
    size = len(weights) // 3
    assert size > 0
    w = [[Fraction(x, 256) for x in weights[c * size : (c + 1) * size]] for c in range(3)]
    gain = sum(
        2 * w[c][i] * int(sums[i, 18 + c]) - w[c][i] * sum(w[c][j] * int(sums[i, j]) for j in range(size))
        for c in range(3)
        for i in range(size)
    )
    after = squares(reference.restore(picture, as_tensor(weights)), image)
    rounding = picture.numel() / 12
    assert abs(squares(picture, image) - gain + rounding - after) < 0.3 * rounding + 0.01 * gain


@pytest.mark.parametrize("value", [0, 128, 255])
def test_flat_pictures_need_no_filter(value: int) -> None:
    flat = torch.full((70, 90, 3), value, dtype=torch.uint8)
    assert fit(native.OPS, flat, flat, 1.0) == ()
    noise = (flat.int() + torch.randint(-2, 3, flat.shape)).clamp(0, 255).byte()
    assert fit(native.OPS, flat, noise, 1.0) == ()  # nothing to weigh


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (300, 2), (130, 190)])
@pytest.mark.parametrize("gray", [False, True])
def test_files_with_filters_decode_alike(size: tuple[int, int], gray: bool) -> None:
    pixels = photograph(*size, seed=4)
    image = pixels[:, :, 1] if gray else pixels
    codec, slow = Codec(threads=2), Codec(backend="reference")
    data = codec.encode(image, 90)
    assert slow.encode(image, 90) == data
    assert np.array_equal(slow.decode(data, "numpy"), codec.decode(data, "numpy"))
    assert size != (130, 190) or parse(data).header.restoration
    assert not parse(codec.encode(image, 90, effort=0)).header.restoration


def test_large_pictures_are_fitted_to_some_of_their_rows() -> None:
    image = torch.from_numpy(np.tile(photograph(200, 300, seed=3), (5, 4, 1)))
    picture, seen = blurred(image.numpy()), []

    class Watching:
        @staticmethod
        def restore_sums(picture: torch.Tensor, image: torch.Tensor, stride: int) -> torch.Tensor:
            seen.append(stride)
            return native.restore_sums(picture, image, stride)

    weights = restoration_fit.fit(Watching, TENSORS, picture, image, 0.01)  # type: ignore[arg-type]
    assert seen == [6]
    after = squares(native.restore(picture, as_tensor(weights)), image)
    whole = restoration_fit.choose(native.restore_sums(picture, image, 1).numpy(), image.numel() // 3, 0.01)
    best = squares(native.restore(picture, as_tensor(whole)), image)
    assert best <= after < 1.02 * best < 0.9 * squares(picture, image)


@pytest.mark.parametrize("size", [(128, 192), (100, 150), (65, 129)])
def test_a_part_is_filtered_as_the_whole(size: tuple[int, int]) -> None:
    """With as much around it as the filter sees; padding stays as it is."""
    generator = np.random.default_rng(5)
    picture = generator.integers(0, 256, (1, 128, 192, 3), np.uint8)
    w = generator.integers(-60, 60, (3, 18)).astype(np.int8)
    arrays = native_module.OPS.arrays("cpu")
    expected, (height, width) = picture.copy(), size
    expected[0, :height, :width] = native_module.restore(np.ascontiguousarray(picture[0, :height, :width]), w)
    for rows in (slice(0, 128), slice(0, 64), slice(64, 128)):
        for columns in (slice(0, 192), slice(64, 128), slice(128, 192)):
            part = slice(None), rows, columns
            found = restoration_fit.restored(native_module.OPS, arrays, picture, w, size, part)
            assert np.array_equal(found, expected[part])
