"""Build the harnesses of this folder and run each for a while, on seeds made of the files of tests/.

    python -m tests.fuzz.run                        # each for SECONDS_EACH seconds, 60 by default
    python -m tests.fuzz.run rans --runs 10000000   # one of them, for so many executions

Clang brings libFuzzer, which follows coverage; with another compiler main.cpp takes its place. What is found stays in
build/fuzz-libfuzzer, or build/fuzz-alone: inputs that reach new code in corpus/, those that end with an error as
<harness>-crash-... Such a file is run again with

    DCA_WEIGHTS=<that folder>/small.safetensors <that folder>/<harness>_fuzz FILE
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dca_fast import Codec
from dca_fast.config import ModelConfig
from dca_fast.files import container
from dca_fast.files.container import Section
from dca_fast.network import weights
from dca_fast.testing import page, photograph
from tests.decoder_library import ROOT, WEIGHTS, build
from tests.drawn_weights import SMALL, drawn_weights

TESTS = ROOT / "tests"
LONGEST = 4096  # bytes of an input
SHORTER = {"rans": 512}  # what longer ones make it do is the same, and takes longer
# Large pieces of memory come and go with every input: what is noted of each takes longer than the work. An input that
# is run again without these options says where memory came from. The limit of all memory is the sanitizer's: libFuzzer
# would count what this process, its parent, once had.
ASAN = "detect_stack_use_after_return=0:malloc_context_size=1:quarantine_size_mb=1:thread_local_quarantine_size_kb=64"
ASAN += ":max_malloc_fill_size=0:hard_rss_limit_mb=4096"
HARNESSES = "parsers", "weights", "decoder", "shipped", "rans", "exact"  # `shipped`: decoder, with the shipped weights


class Outcome(NamedTuple):
    """What one run did: whether it found nothing, how many inputs it ran, and its output."""

    ok: bool
    executions: int
    seconds: float
    output: str


def libfuzzer() -> str | None:
    """A Clang that brings libFuzzer."""
    for name in ("clang++", *(f"clang++-{version}" for version in range(25, 11, -1))):
        if (path := shutil.which(name)) is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "f.cpp"
            source.write_text('extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }')
            command = [path, "-fsanitize=fuzzer,address", source, "-o", source.with_suffix("")]
            if subprocess.run(command, capture_output=True).returncode == 0:
                return path
    return None


def built() -> Path:
    """The folder of the harnesses and of the small weights."""
    clang = libfuzzer()
    compiler = clang or shutil.which("g++") or "c++"
    options = "-DDCA_FUZZ=ON", "-DDCA_EXAMPLES=OFF", f"-DCMAKE_CXX_COMPILER={compiler}"
    folder = build("fuzz-libfuzzer" if clang else "fuzz-alone", *options)
    config = ModelConfig("small", **(SMALL | {"width": 16, "latent": 16, "tokens": 2, "latent_hidden": 16}))
    weights.save(folder / "small.safetensors", drawn_weights(config), config, 6)
    return folder


def files(*folders: str) -> list[bytes]:
    paths = [path for folder in folders for path in sorted((TESTS / folder).glob("*.dca"))]
    return [data for data in map(Path.read_bytes, paths) if len(data) <= LONGEST]


def pictures(codec: Codec) -> list[bytes]:
    """One file of each kind that there is, of a codec's own weights."""
    out = []
    for i, (height, width) in enumerate([(1, 1), (17, 40), (64, 64), (70, 130)]):
        colour = photograph(height, width, seed=i)
        for image in (colour, colour[..., 0], np.dstack([colour, colour[..., 1]])):
            for quality, strength in ((5 + 30 * i, 0), (60, 15 / 16)):
                out.append(codec.encode(image, quality, effort=i % 2, aq_strength=strength, metadata={"xmp": b"<x/>"}))
    for image in (page(60, 90), page(60, 90)[..., 0].copy(), page(100, 130)):
        out += [codec.encode(image, quality, effort=1) for quality in (30, 70)]
    return out


def exact_streams() -> list[bytes]:
    """What exact_fuzz.cpp takes: the streams, alpha planes and layers of files."""
    out = []
    for data in files("golden", "conformance/vectors"):
        dca = container.parse(data)
        h = dca.header
        if max(h.width, h.height) > 80:
            continue
        parts = {0: dca.stream if h.exact else b"", 1: dca.sections.get(Section.ALPHA, b"")}
        parts[2] = dca.sections.get(Section.LAYER, b"")
        sides = [31, h.width - 1, 31, h.height - 1]
        start = bytes([0, 0, 0, *sides, h.grayscale, h.exact and h.depth == 16])
        out += [start + bytes([what]) + part for what, part in parts.items() if part]
    return out


def headers(path: Path) -> list[bytes]:
    """Of a weights file: its configuration, and its header with few tensors, alone and before their bytes."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    few = {name: header[name] for name in ("__metadata__", *sorted(header)[:3])}
    text = json.dumps(few).encode()
    config = json.loads(header["__metadata__"]["dca_fast"])["config"]
    return [json.dumps(config).encode(), text, len(text).to_bytes(8, "little") + text + data[start : start + 1000]]


def seeds(harness: str, small: Path) -> list[bytes]:
    """Inputs to start from: whole files, and bytes that were drawn for those that take none."""
    draw = np.random.default_rng(0)
    drawn = [draw.bytes(int(size)) for size in draw.integers(4, 200, 60)]
    if harness in ("decoder", "shipped"):
        codec = Codec(weights=small if harness == "decoder" else WEIGHTS, threads=1)
        return pictures(codec) + files("golden", "conformance/vectors")
    if harness == "parsers":
        tiles = b"T\x01digs\x05digs\x80\x01digs" + bytes(150)  # three, of 5 bytes, 128 bytes and the rest
        return [*files("golden", "conformance/vectors", "conformance/refused"), *headers(small), tiles]
    return drawn + (exact_streams() if harness == "exact" else [])


def run(harness: str, folder: Path, corpus: Path, *, seconds: int = 0, runs: int = -1, seed: int = 0) -> Outcome:
    """One harness, until it finds something, the time is over, or so many inputs have run.

    Args:
        corpus: a folder of inputs, to which those are added that reach new code.
    """
    small = folder / "small.safetensors"
    program = folder / f"{'decoder' if harness == 'shipped' else harness}_fuzz"
    options = [f"-max_total_time={seconds}", f"-runs={runs}", f"-artifact_prefix={folder}/{harness}-"]
    options += [f"-seed={seed}"] if seed else []
    options += ["-entropic_scale_per_exec_time=1"]  # of two inputs that teach as much, the faster one
    options += ["-print_final_stats=1", "-timeout=60", "-rss_limit_mb=0"]
    options += [f"-max_len={SHORTER.get(harness, LONGEST)}"]
    environment = os.environ | {"ASAN_OPTIONS": ASAN, "DCA_WEIGHTS": str(WEIGHTS if harness == "shipped" else small)}
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as start:
        for i, data in enumerate(seeds(harness, small)):
            (Path(start) / f"{i:03}").write_bytes(data)
        command = [program, *options, corpus, start]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = done.stdout.decode(errors="replace")
    executed = re.search(r"number_of_executed_units: (\d+)", output)
    return Outcome(done.returncode == 0, int(executed[1]) if executed else 0, time.monotonic() - begin, output)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("harnesses", nargs="*", metavar="HARNESS", help=f"of {', '.join(HARNESSES)} (default: all)")
    parser.add_argument("--seconds", type=int, help="of each (default: SECONDS_EACH, or 60; none with --runs)")
    parser.add_argument("--runs", type=int, default=-1, help="executions of each")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations (default: another one every time)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="side by side (default: %(default)s)")
    args = parser.parse_args()
    if unknown := set(args.harnesses) - set(HARNESSES):
        parser.error(f"no harness {', '.join(sorted(unknown))}")
    seconds = args.seconds
    if seconds is None:
        seconds = 0 if args.runs >= 0 else int(os.environ.get("SECONDS_EACH", "60"))
    folder = built()

    def work(harness: str) -> bool:
        corpus = folder / "corpus" / harness
        corpus.mkdir(parents=True, exist_ok=True)
        done = run(harness, folder, corpus, seconds=seconds, runs=args.runs, seed=args.seed)
        covered = re.findall(r"cov: (\d+)", done.output)
        said = f"{harness}: {done.executions:,} executions in {done.seconds:.0f} s, "
        said += f"{covered[-1] + ' edges, ' if covered else ''}{'nothing found' if done.ok else 'FAILED'}\n"
        sys.stdout.write(said + ("" if done.ok else done.output[-6000:]))
        sys.stdout.flush()
        return done.ok

    with ThreadPoolExecutor(args.jobs) as pool:
        return 0 if all(list(pool.map(work, args.harnesses or HARNESSES))) else 1


if __name__ == "__main__":
    sys.exit(main())
