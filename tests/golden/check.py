"""An installed dca-fast makes and decodes the golden files, here or in an emulation of another system.

    python tests/golden/check.py

Nothing else of the repository is imported: this tests what `pip` installed.
"""

import hashlib
import platform
from pathlib import Path

import numpy as np
from PIL import Image

import dca_fast
from dca_fast import Codec

HERE = Path(__file__).parent
EFFORTS = 4  # 5 and 6 take minutes in an emulation


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read(name: str) -> str:
    return (HERE / name).read_text()


def check(codec: Codec, efforts: int) -> int:
    """The number of files that were made or decoded; tiles.dca, which is large, is left out.

    Raises:
        AssertionError: which of them differs.
    """
    image, done = Image.open(HERE / "photograph.png"), 0
    hashes = [line.split() for name in ("pixels", "exact") for line in read(f"{name}.sha256").splitlines()]
    hashes.append([read("layer.sha256").strip(), "layer.dca"])
    for expected, name in hashes:
        assert digest(np.ascontiguousarray(codec.decode(HERE / name, "numpy")).tobytes()) == expected, name
        done += 1
    for path in sorted(HERE.glob("photograph*.dca")):
        data = path.read_bytes()
        assert codec.encode(image, dca_fast.inspect(data).quality, effort=0) == data, path.name
        done += 1
    for effort, expected in enumerate(read("efforts.sha256").split()[:efforts], 1):
        assert digest(codec.encode(image, 55, effort=effort)) == expected, f"effort {effort}"
        done += 1
    assert done == 9 + 3 + efforts
    return done


if __name__ == "__main__":
    codec = Codec(threads=1)
    where = f"Python {platform.python_version()}, {platform.machine()}, {codec.backend}"
    if codec.backend == "native":
        from dca_fast.ops import native

        where += f" ({native.isa()})"
    print(f"{check(codec, EFFORTS)} golden files: the same bytes and pixels")
    print(f"{where}, {Path(dca_fast.__file__).parent}")
