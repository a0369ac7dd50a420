"""A program that codes in worker processes; run by test_processes.py.

    python process_work.py pool|loader fork|spawn|forkserver used|made|child

`used`: the parent has coded with the codec that the workers get; `made`: it has only made it; `child`: each worker
makes its own. Prints "same" if every worker gives the bytes and pixels of the parent.
"""

import hashlib
import io
import multiprocessing
import sys
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image

from dca_fast import Codec
from dca_fast.testing import photograph

WORKERS, TASKS = 2, 4
OUTPUTS = ("pil", "numpy", "torch") if find_spec("torch") else ("pil", "numpy")


def work(codec: Codec | None, task: int) -> str:
    """A digest of files and pixels of every kind of image, effort and output."""
    codec = codec or Codec()
    colour = photograph(150, 130, seed=1)
    alpha = np.arange(150 * 130, dtype=np.uint8).reshape(150, 130)
    digest = hashlib.sha256()
    for image in (colour, colour[..., 0], np.dstack([colour, alpha])):
        for effort in (0, 1, 3):
            data = codec.encode(image, 60, effort=effort)
            digest.update(data)
            for output in OUTPUTS:
                digest.update(np.ascontiguousarray(codec.decode(data, output)).tobytes())
    digest.update(codec.encode_to(colour, psnr=30))
    png = io.BytesIO()
    Image.fromarray(colour).save(png, "PNG")
    digest.update(codec.encode(io.BytesIO(png.getvalue())))
    return digest.hexdigest()


class Tasks:
    """A dataset of digests, as PyTorch's `DataLoader` takes it."""

    def __init__(self, codec: Codec | None) -> None:
        self.codec = codec

    def __len__(self) -> int:
        return TASKS

    def __getitem__(self, index: int) -> str:
        return work(self.codec, index)


def results(kind: str, method: str, codec: Codec | None) -> list[str]:
    if kind == "pool":
        with multiprocessing.get_context(method).Pool(WORKERS) as pool:
            return pool.map(partial(work, codec), range(TASKS))
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(
        Tasks(codec),  # type: ignore[arg-type]
        batch_size=None,
        num_workers=WORKERS,
        multiprocessing_context=method,
    )
    return list(loader)


def main(kind: str, method: str, made: str) -> None:
    codec = None if made == "child" else Codec(threads=2)
    before = work(codec, 0) if made == "used" else None
    found = results(kind, method, codec)
    expected = before or work(codec, 0)
    print("same" if found == [expected] * TASKS else f"different: {expected} {found}")


if __name__ == "__main__":
    main(*sys.argv[1:])
