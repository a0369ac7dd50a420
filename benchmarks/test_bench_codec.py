"""Whole images, encode and decode, beside other codecs: same pictures, about the same rate, two threads.

    python benchmarks/test_bench_codec.py --out benchmarks/results/codec.json
    pytest benchmarks/test_bench_codec.py --benchmark-only

Times are from pixels in memory to a file in memory and back, colour conversion and entropy coding included (but for
our float model, which has no coder: `rivals.FloatModel`). The script takes them in turns, so that a change in the
machine's speed meets all alike. Every codec is checked before it is timed. DCA_IMAGES names a folder of photographs;
without it they are synthetic. Pictures larger than a photograph are mosaics of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # before torch: its idle threads must not take the others' cores
os.environ["GOMP_SPINCOUNT"] = "20000"  # for long: asleep at once, they made CompressAI thrice as slow at times

import numpy as np
import pytest
import torch
from pictures import SIZES, pictures, source
from rivals import COMPRESSAI, CompressAi, FloatModel

from dca_fast import Codec
from dca_fast.cli.commands import At
from dca_fast.config import DEFAULT_AQ
from dca_fast.errors import BackendUnavailableError
from dca_fast.evaluation.measure import Pixels, psnr
from dca_fast.evaluation.peers import FAMILIES, make_peers
from dca_fast.evaluation.report import environment
from dca_fast.files.atomic import write_atomic

THREADS = 2
QUALITY = 60.0
SANE_PSNR = 22.0  # dB; far below what any of them gives, far above a wrong picture
SMALL = 128  # side of the crop that checks what takes seconds
SLOW = 2.0  # seconds: what takes longer is timed once, and not warmed up
OURS = "dca-s"
ONLY_SMALLEST = (
    "dca-s, effort 6",
    "AVIF speed 4 4:4:4 PSNR",
    "dca-s float, torch.compile",
    "cheng2020-anchor",
    "ELIC",
)
EFFORTS = {"dca-s, effort 0": 0, "dca-s, effort 6": 6}
NAMES = (
    "dca-s",
    *EFFORTS,
    "JPEG 4:2:0",
    "JPEG 4:4:4",
    "WebP method 4",
    "AVIF speed 6",
    "AVIF speed 4 4:4:4 PSNR",
    "JPEG XL effort 7",
    "dca-s float",
    "dca-s float, torch.compile",
    *COMPRESSAI,
)


@dataclass
class Contestant:
    """A codec at one quality.

    Args:
        what: version, and what else must be known; settings of peers are in their names.
        trained: its pictures can be looked at.
        coded: it writes a file, whose bytes count.
    """

    name: str
    what: str
    codec: Any
    quality: float
    trained: bool = True
    coded: bool = True

    def check(self, image: Pixels) -> float:
        """Refuse to time what does not work; returns the seconds of a round trip, in which it warms up."""
        if not self.trained:
            image = np.ascontiguousarray(image[:SMALL, :SMALL])
        start = time.perf_counter()
        data = self.codec.encode(image, self.quality)
        decoded = self.codec.decode(data, "numpy")
        seconds = time.perf_counter() - start
        assert decoded.shape == image.shape, self.name
        assert decoded.dtype == np.uint8, self.name
        assert np.array_equal(self.codec.decode(data, "numpy"), decoded), f"{self.name} decodes to two pictures"
        assert not self.trained or psnr(image, decoded) > SANE_PSNR, f"{self.name} decodes to a wrong picture"
        return seconds


@cache
def contestant(name: str) -> Contestant:
    """Build a codec; peers at our rate on a crop of the smallest picture. Skips what is missing, with the reason."""
    torch.set_num_threads(THREADS)
    if name == "dca-s" or name in EFFORTS:
        codec = Codec("dca-s", threads=THREADS)
        what = f"{codec.model_id}, {codec.backend}"
        return Contestant(name, what, At(codec, EFFORTS[name], DEFAULT_AQ) if name in EFFORTS else codec, QUALITY)
    if name.startswith("dca-s float"):
        what = f"torch {torch.__version__}, fp32, {'compiled' if 'compile' in name else 'eager'}, no entropy coder"
        return Contestant(name, what, FloatModel("compile" in name), QUALITY, coded=False)
    if name in COMPRESSAI:
        rival = CompressAi(name)
        what = f"compressai {metadata.version('compressai')}, random weights"
        return Contestant(name, what, rival, COMPRESSAI[name][1] or 0, trained=False, coded=False)
    peers = {}
    for family in FAMILIES:
        try:
            peers |= {peer.name: peer for peer in make_peers([family], THREADS)}
        except BackendUnavailableError as error:
            reason = str(error)
    if name not in peers:
        pytest.skip(f"{name}: {reason}")
    peer, image = peers[name], np.ascontiguousarray(pictures(*SIZES["768x512"])[0][:256, :384])
    size = len(contestant("dca-s").codec.encode(image, QUALITY))
    return Contestant(name, peer.version, peer, same_rate(peer, image, size))


def same_rate(peer: Any, image: Pixels, size: int) -> int:
    """The highest quality of the peer whose file is not above `size` bytes, found by bisection."""
    low, high = 0, 100
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if len(peer.encode(image, middle)) <= size else (low, middle)
    return low


def cases() -> list[tuple[str, str]]:
    """Sizes and codecs; those that take many seconds at the smallest size only."""
    smallest = next(iter(SIZES))
    return [(size, name) for size in SIZES for name in NAMES if size == smallest or name not in ONLY_SMALLEST]


FILES: dict[tuple[str, str], Any] = {}  # by size and name, so that what takes seconds is encoded once


@cache
def checked(size: str, name: str) -> int:
    """Check a codec at this size; returns how many rounds to time."""
    codec = contestant(name)
    seconds = codec.check(pictures(*SIZES[size])[0])
    return 5 if codec.trained and seconds < SLOW else 1


@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize(("size", "name"), cases())
def test_codec(size: str, name: str, direction: str, benchmark: Any) -> None:
    (image,), codec, rounds = pictures(*SIZES[size]), contestant(name), checked(size, name)
    benchmark.group = f"codec {size}: {direction}"
    benchmark.extra_info.update(codec=name, what=codec.what, quality=codec.quality, threads=THREADS, source=source())
    if direction == "encode":
        FILES[size, name] = benchmark.pedantic(codec.codec.encode, (image, codec.quality), rounds=rounds)
        return
    data = FILES.pop((size, name), None) or codec.codec.encode(image, codec.quality)
    decoded = benchmark.pedantic(codec.codec.decode, (data, "numpy"), rounds=rounds)
    assert decoded.shape == image.shape
    assert not codec.trained or psnr(image, decoded) > SANE_PSNR


@dataclass
class Times:
    """Of one codec at one size, in milliseconds by (round, image); cold: with another codec's data in the caches."""

    encode_ms: dict[tuple[int, int], float] = field(default_factory=dict)
    decode_ms: dict[tuple[int, int], float] = field(default_factory=dict)
    encode_cold_ms: dict[tuple[int, int], float] = field(default_factory=dict)
    decode_cold_ms: dict[tuple[int, int], float] = field(default_factory=dict)
    bpp: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)

    def measure(self, codec: Contestant, turn: tuple[int, int], image: Pixels, twice: bool) -> None:
        """One round trip; of two the second counts, as when one picture after another is coded."""
        if twice:
            data, self.encode_cold_ms[turn] = timed(codec.codec.encode, image, codec.quality)
            _, self.decode_cold_ms[turn] = timed(codec.codec.decode, data, "numpy")
        data, self.encode_ms[turn] = timed(codec.codec.encode, image, codec.quality)
        decoded, self.decode_ms[turn] = timed(codec.codec.decode, data, "numpy")
        assert decoded.shape == image.shape
        if codec.coded:
            self.bpp.append(8 * len(data) / (image.shape[0] * image.shape[1]))
        if codec.trained:
            self.psnr.append(psnr(image, decoded))

    @property
    def first_seconds(self) -> float:
        """Of the first round trip."""
        return (self.encode_ms[0, 0] + self.decode_ms[0, 0]) / 1e3

    def medians(self) -> dict[str, Any]:
        """Median times, mean rate and quality where they mean anything."""
        facts: dict[str, Any] = {"turns": len(self.encode_ms)}
        facts |= {key: statistics.mean(getattr(self, key)) for key in ("bpp", "psnr") if getattr(self, key)}
        keys = ("encode_ms", "decode_ms", "encode_cold_ms", "decode_cold_ms")
        return facts | {key: statistics.median(getattr(self, key).values()) for key in keys if getattr(self, key)}

    def ratios(self, ours: Times) -> dict[str, float]:
        """Median of the times divided by ours turn by turn; by our median where there is a single turn."""
        pairs = {"encode": (self.encode_ms, ours.encode_ms), "decode": (self.decode_ms, ours.decode_ms)}
        ratios = {}
        for key, (mine, theirs) in pairs.items():
            usual = statistics.median(theirs.values())
            ratios[f"{key}_ratio"] = statistics.median(
                time / (theirs[turn] if len(mine) > 1 else usual) for turn, time in mine.items()
            )
        return ratios


def timed(work: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Result and milliseconds."""
    start = time.perf_counter()
    result = work(*arguments)
    return result, 1e3 * (time.perf_counter() - start)


def interleaved(size: str, images: tuple[Pixels, ...], rounds: int, left_out: dict[str, str]) -> dict[str, Any]:
    """Every codec on every image in turns; what takes seconds is timed once."""
    ready: dict[str, tuple[Contestant, float]] = {}
    for name in (name for where, name in cases() if where == size):
        try:
            codec = contestant(name)
        except pytest.skip.Exception as reason:
            left_out[name] = str(reason)
            continue
        ready[name] = codec, codec.check(images[0])
    times = {name: Times() for name in ready}
    for turn in ((r, i) for r in range(rounds) for i in range(len(images))):
        for name, (codec, seconds) in ready.items():
            first = turn == (0, 0)
            if not codec.trained:  # its check sees a small crop: the first turn tells how long it takes
                seconds = SLOW if first else times[name].first_seconds
            if first or seconds < SLOW or name == OURS:  # which all are compared with, turn by turn
                times[name].measure(codec, turn, images[turn[1]], twice=seconds < SLOW)
    ours = times[OURS]
    return {
        name: {"what": codec.what, "quality": codec.quality, **times[name].medians(), **times[name].ratios(ours)}
        for name, (codec, _) in ready.items()
    }


def as_text(facts: dict[str, Any]) -> str:
    """The results as tables; a ratio is the time divided by ours."""
    lines = []
    for size, codecs in facts["sizes"].items():
        lines.append(f"{size:28}{'bpp':>7}{'PSNR':>7}{'encode ms':>11}{'ratio':>8}{'decode ms':>11}{'ratio':>8}")
        for name, c in codecs.items():
            quality = "".join(f"{c[key]:7.{digits}f}" if key in c else f"{'-':>7}" for key, digits in RATES)
            times = f"{c['encode_ms']:11.1f}{c['encode_ratio']:8.2f}{c['decode_ms']:11.1f}{c['decode_ratio']:8.2f}"
            lines.append(f"{name:28}{quality}{times}")
    lines += [f"left out: {name}: {reason}" for name, reason in facts["left_out"].items()]
    return "\n".join(lines)


RATES = (("bpp", 3), ("psnr", 2))


def main() -> None:
    """Run the comparison as a script."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", metavar="FILE", help="write the result as JSON")
    parser.add_argument("--images", type=int, default=6, help="of the smallest size (default: %(default)d)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)d")
    parser.add_argument("--sizes", default=",".join(SIZES), help="default: %(default)s")
    arguments = parser.parse_args()
    left_out: dict[str, str] = {}
    sizes = {}
    for size in arguments.sizes.split(","):
        number = arguments.images if size == next(iter(SIZES)) else 1
        sizes[size] = interleaved(size, pictures(*SIZES[size], number), arguments.rounds, left_out)
    facts = {**environment(), "threads": THREADS, "images": arguments.images, "source": source()}
    facts |= {"model_id": contestant("dca-s").codec.model_id, "sizes": sizes, "left_out": left_out}
    sys.stdout.write(as_text(facts) + "\n")
    if arguments.out:
        Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(arguments.out, (json.dumps(facts, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
