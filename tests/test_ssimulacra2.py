"""SSIMULACRA2 has the scores of the reference's program."""

import numpy as np
import pytest

from dca_fast.errors import InputError
from dca_fast.ssimulacra2 import ssimulacra2
from dca_fast.testing import landscape, photograph

NEAR = 0.05  # of 100; the reference blurs recursively in float32

# Of the program `ssimulacra2` of github.com/cloudinary/ssimulacra2 (2.1), by the pictures below as PNG: in steps of 32,
# with noise, moved by a pixel.
SCORES = [
    (photograph(150, 200, seed=3), (-0.38021332, 65.39076376, 46.05100576)),
    (landscape(96, 131), (23.45501947, 49.61455632, 32.98715299)),  # an odd side
    (photograph(17, 40), (64.86911754, 77.17876613, 85.43628561)),  # few scales
]


def test_scores_are_those_of_the_reference() -> None:
    random = np.random.default_rng(7)
    for image, scores in SCORES:
        steps = image // 32 * 32 + np.uint8(16)
        noisy = np.clip(image + random.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
        for distorted, score in zip((steps, noisy, np.roll(image, 1, 1)), scores, strict=True):
            assert ssimulacra2(image, distorted) == pytest.approx(score, abs=NEAR)


def test_equal_pictures_have_100() -> None:
    image = photograph(8, 9)
    assert ssimulacra2(image, image) == 100
    assert 0 < ssimulacra2(image, image ^ np.uint8(8)) < 100


def test_other_sizes_are_refused() -> None:
    image = photograph(8, 9)
    for a, b in ((image[:7], image[:7]), (image, image[:, :8])):
        with pytest.raises(InputError, match="two pictures of one size, 8 pixels a side or more"):
            ssimulacra2(a, b)
