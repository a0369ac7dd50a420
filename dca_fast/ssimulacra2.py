"""SSIMULACRA 2.1, a measure of what people see of a compression, in NumPy.

Two pictures are compared at six scales, in X, Y and B - Y of the XYB colours, by three maps of errors: SSIM without
its term for brightness, edges that were added, and edges that were lost. A polynomial of the weighted means of the maps
and of their fourth powers gives the score: 100 for equal pictures, 90 for what cannot be told apart, 70 for high
quality, 50 for medium, 30 for low; below 0 there is no likeness.

Source: J. Sneyers, github.com/cloudinary/ssimulacra2 (BSD-3-Clause), whose weights these are; scores differ from its
program's by some 0.02, at most 0.1. The blur: D. Charalampidis, "Recursive Implementation of the Gaussian Filter Using
Truncated Cosine Functions", IEEE Trans. Signal Processing, 2016.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import numpy.typing as npt

from dca_fast.errors import InputError

__all__ = ["SIDE", "ssimulacra2"]

SIDE = 8  # pixels; of smaller pictures there is no scale
_SCALES, _SIGMA, _C2 = 6, 1.5, 0.0009
_BIAS = 0.0037930732552754493
_OPSIN = np.array([[0.3, 0.622, 0.078], [0.23, 0.692, 0.078], [0.24342268924547819, 0.20476744424496821, 0.0]])
_OPSIN[2, 2] = 1 - _OPSIN[2].sum()
Planes = npt.NDArray[np.float32]

# For X, Y, B - Y: a row for each scale, of the mean and then the norm of fourth powers of errors of SSIM, edges added,
# edges lost.
_WEIGHTS = np.array(
    [
        [0, 0.0007376606707406586, 0, 0, 0.0007793481682867309, 0],
        [0, 0.0004371155730107379, 0, 1.1041726426657346, 0.00066284834129271, 0.00015231632783718752],
        [0, 0.0016406437456599754, 0, 1.8422455520539298, 11.441172603757666, 0],
        [0.0007989109436015163, 0.000176816438078653, 0, 1.8787594979546387, 10.94906990605142, 0],
        [
            0.0007289346991508072,
            0.9677937080626833,
            0,
            0.00014003424285435884,
            0.9981766977854967,
            0.00031949755934435053,
        ],
        [0.0004550992113792063, 0, 0, 0.0013648766163243398, 0, 0],
        [0, 0, 0, 7.466890328078848, 0, 17.445833984131262],
        [0.0006235601634041466, 0, 0, 6.683678146179332, 0.00037724407979611296, 1.027889937768264],
        [225.20515300849274, 0, 0, 19.213238186143016, 0.0011401524586618361, 0.001237755635509985],
        [176.39317598450694, 0, 0, 24.43300999870476, 0.28520802612117757, 0.0004485436923833408],
        [0, 0, 0, 34.77906344483772, 44.835625328877896, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0.0008680556573291698, 0, 0, 0, 0],
        [0, 0.0005313191874358747, 0, 0.00016533814161379112, 0, 0],
        [0, 0, 0, 0.0004179171803251336, 0.0017290828234722833, 0],
        [0.0020827005846636437, 0, 0, 8.826982764996862, 23.19243343998926, 0],
        [
            95.1080498811086,
            0.9863978034400682,
            0.9834382792465353,
            0.0012286405048278493,
            171.2667255897307,
            0.9807858872435379,
        ],
        [0, 0, 0, 0.0005130064588990679, 0, 0.00010854057858411537],
    ]
)


def ssimulacra2(original: npt.NDArray[np.uint8], distorted: npt.NDArray[np.uint8]) -> float:
    """The score of a picture against the one that it was made from.

    Args:
        original, distorted: sRGB, uint8 [H, W, 3], of at least 8 pixels a side.

    Returns:
        At most 100; there is no lower end.

    Raises:
        InputError: a smaller picture, or two that differ in size.
    """
    if original.shape != distorted.shape or min(original.shape[:2]) < SIDE:
        shapes = f"{original.shape} and {distorted.shape}"
        raise InputError(f"SSIMULACRA2 is of two pictures of one size, {SIDE} pixels a side or more, not {shapes}")
    colours = [_LINEAR[picture].transpose(2, 0, 1) for picture in (original, distorted)]
    features: list[npt.NDArray[np.float64]] = []
    while len(features) < _SCALES:
        a, b = map(_xyb, colours)
        features.append(_features(a, b))
        if min(a.shape[1:]) < SIDE:
            break
        colours = [_halved(planes) for planes in colours]
    found = np.stack(features, 1)  # [channel, scale, 6]
    # Where there are fewer scales, weights follow each other as in the reference.
    total = 0.9562382616834844 * float(_WEIGHTS.ravel()[: found.size] @ found.ravel())
    error = 2.326765642916932 * total - 0.020884521182843837 * total**2 + 6.248496625763138e-05 * total**3
    return 100 - 10 * error**0.6276336467831387 if error > 0 else 100.0


def _features(a: Planes, b: Planes) -> npt.NDArray[np.float64]:
    """Errors of one scale, [channel, 6]."""
    mean_a, mean_b = _blurred(a), _blurred(b)
    structure = 2 * (_blurred(a * b) - mean_a * mean_b) + np.float32(_C2)
    spread = (_blurred(a * a) - mean_a**2) + (_blurred(b * b) - mean_b**2) + np.float32(_C2)
    unlike = np.maximum(1 - (1 - (mean_a - mean_b) ** 2) * structure / spread, 0)
    edges = (1.0 + np.abs(b - mean_b)) / (1.0 + np.abs(a - mean_a)) - 1.0
    maps = [unlike, np.maximum(edges, 0), np.maximum(-edges, 0)]
    means = [m.mean((1, 2), dtype=np.float64) for m in maps]
    norms = [(m**4).mean((1, 2), dtype=np.float64) ** 0.25 for m in maps]
    return np.stack(means + norms, 1)


def _xyb(linear: Planes) -> Planes:
    """Linear RGB, [3, H, W], as X, Y, B - Y within about 0..1."""
    mixed = np.tensordot(_OPSIN.astype(np.float32), linear, 1) + np.float32(_BIAS)
    long, middle, short = np.cbrt(np.maximum(mixed, 0)) - np.float32(math.cbrt(_BIAS))
    x, y = (long - middle) / 2, (long + middle) / 2
    return np.stack((x * 14 + np.float32(0.42), y + np.float32(0.01), short - y + np.float32(0.55)))


def _halved(linear: Planes) -> Planes:
    """Means of 2 by 2; the last row and column count twice where their number is odd."""
    _, height, width = linear.shape
    even = np.pad(linear, ((0, 0), (0, height % 2), (0, width % 2)), "edge")
    halved: Planes = (even[:, ::2, ::2] + even[:, ::2, 1::2] + even[:, 1::2, ::2] + even[:, 1::2, 1::2]) / 4
    return halved


@cache
def _kernel() -> tuple[float, ...]:
    """Taps 0, 1, ... of the symmetrical filter: three truncated cosines, fitted to a Gaussian."""
    radius = round(3.2795 * _SIGMA + 0.2546)
    omega = np.array([1, 3, 5]) * math.pi / (2 * radius)
    p = np.array([1, -1, 1]) / np.tan(omega / 2)
    r = np.array([1, -1, 1]) * p**2 / np.sin(omega)
    rho = np.exp(-(_SIGMA**2) / 2 * omega**2) / radius
    across = np.cross(p, r)
    zeta = across / across[2]
    beta = np.linalg.solve(np.stack((p, r, zeta)), [1, radius**2 - _SIGMA**2, zeta @ rho])
    return tuple(float(beta @ np.cos(omega * n)) for n in range(radius))


def _blurred(planes: Planes) -> Planes:
    """Both ways; around the picture there are zeros."""
    first, *taps = _kernel()
    for axis in (1, 2):
        result = planes * np.float32(first)
        for n, tap in enumerate(taps, 1):
            there: list[slice] = [slice(None)] * 3
            back = there.copy()
            there[axis], back[axis] = slice(n, None), slice(None, -n)
            result[tuple(back)] += planes[tuple(there)] * np.float32(tap)
            result[tuple(there)] += planes[tuple(back)] * np.float32(tap)
        planes = result
    return planes


_CODES = np.arange(256) / 255
_LINEAR = np.where(_CODES <= 0.04045, _CODES / 12.92, ((_CODES + 0.055) / 1.055) ** 2.4).astype(np.float32)
