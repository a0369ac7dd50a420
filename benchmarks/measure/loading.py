"""How fast a PyTorch DataLoader gets pictures from .dca files, beside JPEG files of the same likeness.

    python benchmarks/measure/loading.py [PICTURES] [--workers 0,1,2,4,8] [--score 70] [--json FILE]

Files lie in memory, and every picture is decoded to a uint8 tensor. Both codecs take for each picture the lowest
quality that reaches a score of SSIMULACRA2, so that bytes can be compared: .dca files by `encode_to`, JPEG (4:2:0,
optimised; baseline and progressive of one quality) by halving. Decoders take turns in every round; a figure is the
median of the rounds, and the ratio that of the ratios round by round. With a GPU, batches are also decoded there:
`decode_batch` of files, and nvJPEG through torchvision.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from dca_fast import Codec
from dca_fast.evaluation.measure import ImageFolder
from dca_fast.evaluation.report import environment
from dca_fast.files.atomic import write_atomic
from dca_fast.loading import Handler, decoded
from dca_fast.ssimulacra2 import ssimulacra2
from dca_fast.testing import photograph

BATCH = 4  # pictures
PREVIEW = 8  # of the decoder of small pictures


class Files(Dataset):  # type: ignore[type-arg]
    """So many files, over and over, and what makes a tensor of one."""

    def __init__(self, files: Sequence[bytes], count: int, decode: Callable[[bytes], Any]) -> None:
        self.files, self.count, self.decode = files, count, decode

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.decode(self.files[index % len(self.files)])


def jpeg(pixels: np.ndarray, quality: int, progressive: bool = False) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, optimize=True, progressive=progressive)
    return buffer.getvalue()


def as_good(pixels: np.ndarray, score: float) -> int:
    """The lowest quality of JPEG with a score; 100 if none has it."""
    low, high = 0, 100
    while high - low > 1:
        middle = (low + high) // 2
        with Image.open(io.BytesIO(jpeg(pixels, middle))) as image:
            enough = ssimulacra2(pixels, np.asarray(image)) >= score
        low, high = (low, middle) if enough else (middle, high)
    return high


def by_pillow(data: bytes) -> torch.Tensor:
    with Image.open(io.BytesIO(data)) as image:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def by_torchvision(data: bytes) -> torch.Tensor:
    from torchvision.io import ImageReadMode, decode_jpeg

    picture: torch.Tensor = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    return picture


class Dca:
    """`Handler` for a file without a name."""

    def __init__(self, **options: Any) -> None:
        self.handler = Handler("torch", **options)

    def __call__(self, data: bytes) -> Any:
        return self.handler(".dca", data)


def rate(files: Sequence[bytes], count: int, decode: Callable[[bytes], Any], workers: int) -> float:
    """Pictures per second of workers that are there already and have nothing ready: of their second epoch."""
    pictures = Files(files, BATCH * max(1, workers), decode)
    loader = DataLoader(pictures, BATCH, num_workers=workers, collate_fn=list, persistent_workers=workers > 0)
    for _ in loader:
        pass
    pictures.count = count
    start = time.perf_counter()
    done = sum(map(len, loader))
    return done / (time.perf_counter() - start)


def pictures_in(seconds: float, files: Sequence[bytes], decode: Callable[[bytes], Any]) -> int:
    """So many, in whole batches, are decoded in so many seconds by one process."""
    start = time.perf_counter()
    for data in files:
        decode(data)
    return BATCH * math.ceil(seconds * len(files) / (time.perf_counter() - start) / BATCH)


def on_gpu(dca: Sequence[bytes], jpegs: Sequence[bytes], count: int) -> dict[str, Callable[[], float]]:
    """The same in batches on a device, from bytes in memory."""
    from torchvision.io import ImageReadMode, decode_jpeg

    codec = Codec(device="cuda")

    def batches(files: Sequence[bytes]) -> list[list[bytes]]:
        return [[files[(i + j) % len(files)] for j in range(BATCH)] for i in range(0, count, BATCH)]

    def timed(work: Callable[[], object]) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return count / (time.perf_counter() - start)

    def ours() -> None:
        for _ in decoded(({"dca": batch} for batch in batches(dca)), codec):
            pass

    def nvjpeg() -> None:
        for batch in batches(jpegs):
            tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in batch]
            decode_jpeg(tensors, ImageReadMode.RGB, device="cuda")

    ours()  # compiles
    nvjpeg()
    return {"dca, GPU": lambda: timed(ours), "JPEG, nvJPEG": lambda: timed(nvjpeg)}


def measured(works: dict[str, Callable[[], float]], rounds: int, anchor: str) -> dict[str, dict[str, float]]:
    """Medians of rates, and of their ratios to the anchor's in the same round."""
    rates: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            rates[name].append(work())
    pairs = {name: zip(rates[name], rates[anchor], strict=True) for name in works}
    return {
        name: {
            "pictures_per_second": statistics.median(rates[name]),
            "ratio": statistics.median(a / b for a, b in pairs[name]),
        }
        for name in works
    }


def table(facts: dict[str, Any]) -> str:
    kinds = list(next(iter(facts["workers"].values())))
    lines = ["| workers | " + " | ".join(kinds) + " |", "|---:" * (len(kinds) + 1) + "|"]
    for workers, row in facts["workers"].items():
        cells = (f"{row[kind]['pictures_per_second']:.0f} ({row[kind]['ratio']:.2f})" for kind in kinds)
        lines.append(f"| {workers} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="?", type=Path, help="default: drawn ones")
    parser.add_argument("--most", type=int, default=16, help="pictures that are taken")
    parser.add_argument("--workers", default="0,1,2,4,8")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a measurement, were there one process")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--score", type=float, default=70.0, help="of SSIMULACRA2")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than processors: as asked
    if args.pictures:
        pictures = [pixels for _, pixels in ImageFolder(args.pictures)][: args.most]
    else:
        pictures = [photograph(256, 384, seed=seed) for seed in range(args.most)]
    codec = Codec()
    dca = [codec.encode_to(pixels, ssimulacra2=args.score) for pixels in pictures]
    chosen = [as_good(pixels, args.score) for pixels in pictures]
    baseline, progressive = (
        [jpeg(pixels, quality, kind) for pixels, quality in zip(pictures, chosen, strict=True)]
        for kind in (False, True)
    )
    for pixels, data, file in zip(pictures, dca, baseline, strict=True):
        for decode in (Dca(), by_pillow):
            picture = decode(data if isinstance(decode, Dca) else file).permute(1, 2, 0).numpy()
            if ssimulacra2(pixels, picture) < args.score:
                sys.exit(f"{decode} has less than {args.score:g}: take a lower score")
    kinds: dict[str, tuple[Sequence[bytes], Callable[[bytes], Any]]] = {
        "JPEG, torchvision": (baseline, by_torchvision),
        "JPEG, Pillow": (baseline, by_pillow),
        "progressive JPEG, Pillow": (progressive, by_pillow),
        "dca": (dca, Dca()),
        f"dca, 1/{PREVIEW}": (dca, Dca(reduce=PREVIEW)),
    }
    try:
        by_torchvision(baseline[0])
    except (ImportError, RuntimeError) as error:
        print(f"without torchvision: {error}", file=sys.stderr)
        del kinds["JPEG, torchvision"]
    anchor = next(iter(kinds))
    facts: dict[str, Any] = {
        **environment(),
        "pictures": len(pictures),
        "megapixels": sum(p.shape[0] * p.shape[1] for p in pictures) / len(pictures) / 1e6,
        "score": args.score,
        "model_id": codec.model_id,
        "bytes": {
            "dca": sum(map(len, dca)),
            "JPEG": sum(map(len, baseline)),
            "progressive": sum(map(len, progressive)),
        },
        "workers": {},
    }
    facts["versions"]["torchvision"] = metadata.version("torchvision") if "JPEG, torchvision" in kinds else None
    counts = {name: pictures_in(args.seconds, files, decode) for name, (files, decode) in kinds.items()}
    for workers in map(int, args.workers.split(",")):
        works = {n: partial(rate, files, counts[n], decode, workers) for n, (files, decode) in kinds.items()}
        facts["workers"][workers] = measured(works, args.rounds, anchor)
        print(table(facts).splitlines()[-1], file=sys.stderr, flush=True)
    if torch.cuda.is_available():
        rates = measured(on_gpu(dca, baseline, 64 * BATCH), args.rounds, "JPEG, nvJPEG")
        facts["gpu"] = {"device": torch.cuda.get_device_name(), **rates}
    print(table(facts))
    print(json.dumps({key: value for key, value in facts.items() if key != "workers"}))
    if args.json:
        write_atomic(args.json, (json.dumps(facts, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
