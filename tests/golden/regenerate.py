"""Write the golden files of the shipped weights: bytes without effort, their pixels, and digests of the bytes with
effort 1 to 6, which an encoder may change. The first two are left as they are while they belong to the weights."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from dca_fast import Codec, inspect
from dca_fast.config import REDUCTIONS
from dca_fast.errors import UnsupportedVersionError
from dca_fast.testing import page, photograph

HERE = Path(__file__).parent
PHOTOGRAPHS = {"photograph_10.dca": 10, "photograph.dca": 55, "photograph_90.dca": 90}  # and their qualities


def belongs(data: bytes, codec: Codec) -> bool:
    """Whether a file was made with the codec's weights, in a format that it reads."""
    try:
        return inspect(data).model_id == codec.model_id
    except UnsupportedVersionError:
        return False


def exact_pictures() -> dict[str, np.ndarray]:
    """One for each way of the exact-colour coder, which needs no weights."""
    small = photograph(48, 64, seed=11)
    boxes = small // 64 * 64
    ramp = (np.arange(48 * 64).reshape(48, 64) * 21).astype(np.uint16)
    return {
        "colours": small,
        "graphic": np.repeat(np.repeat(boxes[:24, :32], 2, 0), 2, 1),
        "alpha": np.dstack([boxes, small[..., 1] // 32 * 32]),
        "gray16": ramp,
        "colours16": np.dstack([ramp, ramp[::-1], small[..., 0].astype(np.uint16) * 257]),
    }


def exact(codec: Codec) -> None:
    """Files without loss, and the hashes of their pixels."""
    hashes = []
    for name, picture in exact_pictures().items():
        target, data = HERE / f"exact_{name}.dca", codec.encode(picture, "lossless")
        try:
            if target.exists() and inspect(target.read_bytes()) and target.read_bytes() != data:
                raise SystemExit(f"{target.name}: a change of its bytes is a change of the format")
        except UnsupportedVersionError:
            pass
        target.write_bytes(data)
        hashes.append(f"{hashlib.sha256(codec.decode(data, 'numpy').tobytes()).hexdigest()}  {target.name}\n")
    (HERE / "exact.sha256").write_text("".join(hashes))


def large_picture() -> np.ndarray:
    """One that is coded in two tiles, and in few bytes: a slope, and discs across the cut."""
    down, across = np.mgrid[:2304, :3520]
    picture = np.stack([down // 16, across // 16, (down + across) // 32], 2).astype(np.uint8)
    for i, x in enumerate(range(200, 3520, 450)):
        picture[(down - 300 - 230 * i) ** 2 + (across - x) ** 2 < 150**2] = 250 - 30 * i, 30 * i, 128
    return picture


def large() -> None:
    """A file with tiles; that backends agree on such files, tests show on small ones."""
    codec, target = Codec(), HERE / "tiles.dca"
    data = codec.encode(large_picture(), 25, effort=0, screen="off")
    if target.exists() and belongs(target.read_bytes(), codec) and data != target.read_bytes():
        raise SystemExit(f"{target.name}: a change of its bytes is a change of the format")
    target.write_bytes(data)
    (HERE / "tiles.sha256").write_text(hashlib.sha256(codec.decode(data, "numpy").tobytes()).hexdigest() + "\n")
    previews = [hashlib.sha256(codec.decode(data, "numpy", reduce=n).tobytes()).hexdigest() for n in REDUCTIONS[1:]]
    (HERE / "previews.sha256").write_text("\n".join(previews) + "\n")


def layer(codec: Codec) -> None:
    """A file with graphic blocks beside those of the network, which belongs to the weights, too."""
    target = HERE / "layer.dca"
    if not (target.exists() and belongs(target.read_bytes(), codec)):
        target.write_bytes(codec.encode(page(60, 80, seed=11), 60, effort=0))
    assert inspect(target.read_bytes()).graphic_blocks
    digest = hashlib.sha256(codec.decode(target, "numpy").tobytes()).hexdigest()
    (HERE / "layer.sha256").write_text(digest + "\n")


def photographs(codec: Codec) -> None:
    """Files of three qualities, the hashes of their pixels, and of files of several efforts."""
    if not (HERE / "photograph.png").exists():
        Image.fromarray(photograph(120, 168, seed=11)).save(HERE / "photograph.png")
    image, hashes = np.asarray(Image.open(HERE / "photograph.png")), []
    for name, quality in PHOTOGRAPHS.items():
        target, data = HERE / name, codec.encode(image, quality, effort=0)
        if target.exists() and belongs(target.read_bytes(), codec) and data != target.read_bytes():
            raise SystemExit(f"{name} belongs to these weights: a change of its bytes is a change of the format")
        target.write_bytes(data)
        hashes.append(f"{hashlib.sha256(codec.decode(data, 'numpy').tobytes()).hexdigest()}  {name}\n")
    (HERE / "pixels.sha256").write_text("".join(hashes))
    more = [hashlib.sha256(codec.encode(image, 55, effort=effort)).hexdigest() for effort in range(1, 7)]
    (HERE / "efforts.sha256").write_text("\n".join(more) + "\n")


def main() -> None:
    """The definition works alone here: the reference backend."""
    codec = Codec(backend="reference")
    exact(codec)
    large()
    layer(codec)
    photographs(codec)


if __name__ == "__main__":
    main()
