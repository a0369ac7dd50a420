"""Write the golden file of the shipped weights. Refuses while the committed one still belongs to them."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from dca_fast import Codec, inspect
from dca_fast.testing import photograph

HERE = Path(__file__).parent


def main() -> None:
    """The definition works alone here: the reference backend."""
    codec, target = Codec(backend="reference"), HERE / "photograph.dca"
    if target.exists() and inspect(target.read_bytes()).model_id == codec.model_id:
        raise SystemExit("the golden file belongs to these weights: a change of its bytes is a change of the format")
    pixels = photograph(120, 168, seed=11)
    Image.fromarray(pixels).save(HERE / "photograph.png")
    data = codec.encode(np.asarray(Image.open(HERE / "photograph.png")), 55)
    target.write_bytes(data)
    (HERE / "pixels.sha256").write_text(hashlib.sha256(codec.decode(data, "numpy").tobytes()).hexdigest() + "\n")


if __name__ == "__main__":
    main()
