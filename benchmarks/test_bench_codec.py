"""Whole images, encode and decode, beside other codecs: same picture, about the same rate, two threads.

    python benchmarks/test_bench_codec.py --out benchmarks/results/codec.json
    pytest benchmarks/test_bench_codec.py --benchmark-only

Times are from pixels in memory to a file in memory and back, colour conversion and entropy coding included,
and are taken in turns, so that a change in the machine's speed meets all alike. Every codec is checked before
it is timed. DCA_IMAGES names a folder of images; without it they are synthetic ones of 768x512.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import struct
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # before torch: its idle threads must not take the others' cores

import numpy as np
import pytest
import torch

from dca_fast import Codec
from dca_fast.config import ALIGN
from dca_fast.evaluate import ImageFolder, Pixels, psnr
from dca_fast.image_io import write_atomic
from dca_fast.peers import Peer, make_peers
from dca_fast.report import environment
from dca_fast.testing import photograph

THREADS = 2
QUALITY = 60.0
SANE_PSNR = 22.0  # dB; far below what any of them gives, far above a wrong picture
TIMED_PEERS = ("AVIF speed 6", "JPEG XL effort 7", "WebP method 4")


class CompressAi:
    """CompressAI's mbt2018-mean at its quality 4, a hyperprior without autoregression: 128 and 192 channels.

    The weights are random, so its pictures mean nothing; the arithmetic and the number of coded symbols are
    those of the trained model, and the time is about its time.
    """

    def __init__(self) -> None:
        with warnings.catch_warnings():  # on import, about its own dependencies
            warnings.simplefilter("ignore")
            zoo = pytest.importorskip("compressai.zoo", reason="needs dca-fast[bench]")
        torch.manual_seed(0)
        self.network = zoo.mbt2018_mean(4, pretrained=False).eval()
        self.network.update(force=True)

    @torch.inference_mode()
    def encode(self, image: Pixels, quality: float) -> bytes:
        """`[H, W, 3]` uint8 to size and both strings."""
        height, width = image.shape[:2]
        padded = np.pad(image, ((0, -height % ALIGN), (0, -width % ALIGN), (0, 0)), mode="edge")
        x = torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 255
        (y,), (z,) = self.network.compress(x)["strings"]
        return struct.pack("<HHI", height, width, len(y)) + y + z

    @torch.inference_mode()
    def decode(self, data: bytes, output: str) -> Pixels:
        """The inverse of `encode`."""
        height, width, size = struct.unpack_from("<HHI", data)
        strings = [[data[8 : 8 + size]], [data[8 + size :]]]
        shape = (-(-height // ALIGN), -(-width // ALIGN))
        x = self.network.decompress(strings, shape)["x_hat"][0, :, :height, :width]
        return (x * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


@dataclass
class Contestant:
    """A codec at one quality, and its times in milliseconds by (round, image)."""

    name: str
    version: str
    codec: Any
    quality: float
    trained: bool = True
    bpp: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    encode_ms: dict[tuple[int, int], float] = field(default_factory=dict)
    decode_ms: dict[tuple[int, int], float] = field(default_factory=dict)

    def check(self, image: Pixels) -> None:
        """Warm up, and refuse to time what does not work."""
        data = self.codec.encode(image, self.quality)
        decoded = self.codec.decode(data, "numpy")
        assert decoded.shape == image.shape, self.name
        assert np.array_equal(self.codec.decode(data, "numpy"), decoded), f"{self.name} decodes to two pictures"
        assert not self.trained or psnr(image, decoded) > SANE_PSNR, f"{self.name} decodes to a wrong picture"

    def measure(self, turn: tuple[int, int], image: Pixels) -> None:
        """One round trip; `turn` is (round, image)."""
        data, self.encode_ms[turn] = timed(self.codec.encode, image, self.quality)
        decoded, self.decode_ms[turn] = timed(self.codec.decode, data, "numpy")
        self.bpp.append(8 * len(data) / (image.shape[0] * image.shape[1]))
        self.psnr.append(psnr(image, decoded))

    def facts(self, ours: Contestant) -> dict[str, Any]:
        """Medians, and the median of the ratios to ours turn by turn."""
        facts: dict[str, Any] = {"version": self.version, "quality": self.quality, "turns": len(self.bpp)}
        if self.trained:
            facts |= {"bpp": statistics.mean(self.bpp), "psnr": statistics.mean(self.psnr)}
        for key in ("encode_ms", "decode_ms"):
            mine, theirs = getattr(self, key), getattr(ours, key)
            facts[key] = statistics.median(mine.values())
            facts[f"{key.removesuffix('_ms')}_ratio"] = statistics.median(mine[t] / theirs[t] for t in mine)
        return facts


def timed(work: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Result and milliseconds."""
    start = time.perf_counter()
    result = work(*arguments)
    return result, 1e3 * (time.perf_counter() - start)


def load_images(count: int) -> list[Pixels]:
    """The first `count` images of DCA_IMAGES, else synthetic ones."""
    folder = os.environ.get("DCA_IMAGES")
    if folder is None:
        return [photograph(512, 768, seed) for seed in range(count)]
    return [pixels for (_, pixels), _ in zip(ImageFolder(Path(folder)), range(count), strict=False)]


def same_rate(peer: Peer, image: Pixels, size: int) -> int:
    """The highest quality of the peer whose file is not above `size` bytes, found by bisection."""
    low, high = 0, 100
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if len(peer.encode(image, middle)) <= size else (low, middle)
    return low


def make_contestants(image: Pixels) -> list[Contestant]:
    """Ours first; the peers at our rate on `image`."""
    torch.set_num_threads(THREADS)
    codec = Codec("dca-s", threads=THREADS)
    ours = Contestant("dca-s", f"{codec.model_id}, {codec.backend}", codec, QUALITY)
    size = len(codec.encode(image, QUALITY))
    peers = [peer for peer in make_peers(("avif", "jxl", "webp"), THREADS) if peer.name in TIMED_PEERS]
    rivals = [Contestant(peer.name, peer.version, peer, same_rate(peer, image, size)) for peer in peers]
    rival = Contestant("mbt2018-mean", f"compressai {metadata.version('compressai')}", CompressAi(), 4, trained=False)
    return [ours, *rivals, rival]


def interleaved(contestants: list[Contestant], images: list[Pixels], rounds: int) -> dict[str, Any]:
    """Every contestant on every image in turns; the untrained one takes seconds: in the first round only."""
    for contestant in contestants:
        contestant.check(images[0])
    for turn in ((r, i) for r in range(rounds) for i in range(len(images))):
        for contestant in contestants:
            if contestant.trained or turn[0] == 0:
                contestant.measure(turn, images[turn[1]])
    return {
        **environment(),
        "threads": THREADS,
        "images": [f"{image.shape[1]}x{image.shape[0]}" for image in images],
        "source": "photographs" if os.environ.get("DCA_IMAGES") else "synthetic",
        "codecs": {c.name: c.facts(contestants[0]) for c in contestants},
    }


def as_text(facts: dict[str, Any]) -> str:
    """The result as a table; a ratio is the time divided by ours."""
    lines = [f"{'':18}{'bpp':>7}{'PSNR':>7}{'encode ms':>11}{'ratio':>8}{'decode ms':>11}{'ratio':>8}"]
    for name, c in facts["codecs"].items():
        quality = f"{c['bpp']:7.3f}{c['psnr']:7.2f}" if "bpp" in c else f"{'-':>7}{'-':>7}"
        times = f"{c['encode_ms']:11.1f}{c['encode_ratio']:8.2f}{c['decode_ms']:11.1f}{c['decode_ratio']:8.2f}"
        lines.append(f"{name:18}{quality}{times}")
    return "\n".join(lines)


@pytest.fixture(scope="module")
def image() -> Pixels:
    return load_images(1)[0]


@pytest.fixture(scope="module")
def contestants(image: Pixels) -> dict[str, Contestant]:
    found = {contestant.name: contestant for contestant in make_contestants(image)}
    for contestant in found.values():
        contestant.check(image)
    return found


@pytest.mark.parametrize("name", ["dca-s", *TIMED_PEERS, "mbt2018-mean"])
@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_codec(name: str, direction: str, contestants: dict[str, Contestant], image: Pixels, benchmark: Any) -> None:
    contestant = contestants[name]
    benchmark.group = f"codec: {direction} {image.shape[1]}x{image.shape[0]}"
    data = contestant.codec.encode(image, contestant.quality)
    benchmark.extra_info.update(quality=contestant.quality, version=contestant.version, threads=THREADS)
    rounds = 5 if contestant.trained else 1
    if direction == "encode":
        arguments = (image, contestant.quality)
        again = benchmark.pedantic(contestant.codec.encode, arguments, rounds=rounds, warmup_rounds=1)
        assert again == data
    else:
        decoded = benchmark.pedantic(contestant.codec.decode, (data, "numpy"), rounds=rounds, warmup_rounds=1)
        assert np.array_equal(decoded, contestant.codec.decode(data, "numpy"))


def main() -> None:
    """Run the comparison as a script."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", metavar="FILE", help="write the result as JSON")
    parser.add_argument("--images", type=int, default=6, help="how many (default: %(default)d)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)d")
    arguments = parser.parse_args()
    images = load_images(arguments.images)
    facts = interleaved(make_contestants(images[0]), images, arguments.rounds)
    sys.stdout.write(as_text(facts) + "\n")
    if arguments.out:
        Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(arguments.out, (json.dumps(facts, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
