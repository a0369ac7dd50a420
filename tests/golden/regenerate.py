"""Write the golden files of the shipped weights: bytes without effort, their pixels, and digests of the bytes with
effort 1 to 6, which an encoder may change. The first two are left as they are while they belong to the weights."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from dca_fast import Codec, inspect
from dca_fast.errors import UnsupportedVersionError
from dca_fast.testing import photograph

HERE = Path(__file__).parent


def belongs(data: bytes, codec: Codec) -> bool:
    """Whether a file was made with the codec's weights, in a format that it reads."""
    try:
        return inspect(data).model_id == codec.model_id
    except UnsupportedVersionError:
        return False


def main() -> None:
    """The definition works alone here: the reference backend."""
    codec, target = Codec(backend="reference"), HERE / "photograph.dca"
    kept = target.exists() and belongs(target.read_bytes(), codec)
    if not kept:
        Image.fromarray(photograph(120, 168, seed=11)).save(HERE / "photograph.png")
    image = np.asarray(Image.open(HERE / "photograph.png"))
    data = codec.encode(image, 55, effort=0)
    if kept and data != target.read_bytes():
        raise SystemExit("the golden file belongs to these weights: a change of its bytes is a change of the format")
    target.write_bytes(data)
    more = [hashlib.sha256(codec.encode(image, 55, effort=effort)).hexdigest() for effort in range(1, 7)]
    (HERE / "efforts.sha256").write_text("\n".join(more) + "\n")
    (HERE / "pixels.sha256").write_text(hashlib.sha256(codec.decode(data, "numpy").tobytes()).hexdigest() + "\n")


if __name__ == "__main__":
    main()
