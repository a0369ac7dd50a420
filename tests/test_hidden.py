"""Colours under alpha 0: filled smoothly, in integers, and nowhere else."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dca_fast import Codec
from dca_fast.errors import InputError
from dca_fast.files.hidden import fill
from dca_fast.files.image_io import ImageInput
from dca_fast.testing import photograph

SIDE = 128
Y, X = np.mgrid[0:SIDE, 0:SIDE]
ALPHA = np.clip((50 - np.hypot(Y - 64, X - 64)) * 85, 0, 255).astype(np.uint8)
SEEN = ALPHA > 0
PHOTO = photograph(SIDE, SIDE)
NOISE = np.random.default_rng(1).integers(0, 256, PHOTO.shape, np.uint8)


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(threads=1)


def reference(pixels: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """The same pyramid, one number at a time."""
    if seen.all():
        return pixels
    height, width = seen.shape
    half = np.zeros((-(-height // 2), -(-width // 2), 3), np.int64)
    known = np.zeros(half.shape[:2], bool)
    for y, x in np.ndindex(known.shape):
        block = (slice(2 * y, 2 * y + 2), slice(2 * x, 2 * x + 2))
        count = int(seen[block].sum())
        if count:
            known[y, x] = True
            half[y, x] = (2 * pixels[block][seen[block]].sum(0) + count) // (2 * count)
    half = reference(half, known)
    result = pixels.copy()
    for y, x in np.argwhere(~seen):
        near = y // 2, x // 2
        far = [
            min(max(n + (1 if i % 2 else -1), 0), size - 1)
            for n, i, size in zip(near, (y, x), known.shape, strict=True)
        ]
        total = 9 * half[near] + 3 * half[far[0], near[1]] + 3 * half[near[0], far[1]] + half[far[0], far[1]]
        result[y, x] = (total + 8) // 16
    return result


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32), st.floats(0, 1))
def test_it_is_the_pyramid(height: int, width: int, seed: int, share: float) -> None:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (height, width, 3), np.uint8)
    seen = generator.random((height, width)) < share
    seen[generator.integers(height), generator.integers(width)] = True
    filled = fill(pixels, seen.astype(np.uint8))
    assert filled.dtype == np.uint8
    assert np.array_equal(filled[seen], pixels[seen])
    rows, columns = (np.flatnonzero((~seen).any(axis)) for axis in (1, 0))
    if not len(rows):
        assert filled is pixels
        return
    box = slice(max(0, rows[0] - 1), rows[-1] + 2), slice(max(0, columns[0] - 1), columns[-1] + 2)
    assert np.array_equal(filled[box], reference(pixels[box].astype(np.int64), seen[box]))


def test_what_is_hidden_changes_nothing() -> None:
    assert np.array_equal(fill(PHOTO, ALPHA), fill(np.where(SEEN[..., None], PHOTO, NOISE), ALPHA))
    assert np.array_equal(fill(fill(PHOTO, ALPHA), ALPHA), fill(PHOTO, ALPHA))
    disc = ((Y - 64) ** 2 + (X - 50) ** 2 < 1700).astype(np.uint8)
    digest = hashlib.sha256(fill(NOISE, disc).tobytes()).hexdigest()
    assert digest.startswith("e3ccdc5aae68efaf")  # on all machines


def test_gray_stays_gray_and_clear_is_flat() -> None:
    gray = np.repeat(PHOTO[..., :1], 3, axis=2)
    filled = fill(gray, ALPHA)
    assert np.array_equal(filled, np.repeat(filled[..., :1], 3, axis=2))
    assert np.unique(fill(PHOTO, 0 * ALPHA)).tolist() == [128]
    assert fill(PHOTO, None) is PHOTO
    assert fill(PHOTO, np.maximum(ALPHA, 1)) is PHOTO


def test_what_cannot_be_seen_costs_nothing(codec: Codec) -> None:
    mean = np.broadcast_to(PHOTO[SEEN].mean(0).astype(np.uint8), PHOTO.shape)
    files = {}
    for name, hidden in (("noise", NOISE), ("black", 0 * NOISE), ("photograph", PHOTO), ("mean", mean)):
        pixels = np.where(SEEN[..., None], PHOTO, hidden)
        files[name] = codec.encode(Image.fromarray(np.dstack([pixels, ALPHA])))
        assert files[name] == files["noise"]
        assert files[name] == codec.encode(ImageInput(pixels, ALPHA))
    pixels = np.where(SEEN[..., None], PHOTO, mean)
    opaque = codec.encode(pixels)
    plane = len(codec.encode(ImageInput(pixels, ALPHA))) - len(codec.encode(fill(PHOTO, ALPHA)))
    assert len(files["noise"]) < 1.02 * (len(opaque) + plane)
    seen = np.asarray(codec.decode(files["noise"]))[..., :3][SEEN].astype(int) - PHOTO[SEEN]
    flat = codec.decode(opaque, "numpy")[SEEN].astype(int) - PHOTO[SEEN]
    assert (seen**2).mean() < 1.1 * (flat**2).mean()
    clear = codec.encode(Image.fromarray(np.dstack([PHOTO, 0 * ALPHA])))
    assert len(clear) < 200


def test_a_goal_counts_what_is_coded(codec: Codec) -> None:
    """Noise that nobody sees would keep the fidelity from ever being reached."""
    image = Image.fromarray(np.dstack([np.where(SEEN[..., None], PHOTO, NOISE), ALPHA]))
    assert codec.encode_to(image, psnr=32.0, effort=0) == codec.encode_to(
        ImageInput(fill(PHOTO, ALPHA), ALPHA), psnr=32.0, effort=0
    )


def test_opaque_pictures_are_the_same_bytes(codec: Codec) -> None:
    opaque = np.full_like(ALPHA, 255)
    assert codec.encode(Image.fromarray(np.dstack([PHOTO, opaque]))) == codec.encode(PHOTO)


def test_alpha_of_another_size_is_refused(codec: Codec) -> None:
    with pytest.raises(InputError, match="alpha must be"):
        codec.encode(ImageInput(PHOTO, ALPHA[:-1]))
