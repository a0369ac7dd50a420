"""Hostile files: whatever is changed in a file, it decodes to the identical picture or raises a `BitstreamError`.

    python benchmarks/measure/hostile.py SEEDS ... --executions 20000 --out benchmarks/results/dca-s/hostile.json

SEEDS are .dca files, or folders of them: tests/golden and tests/conformance have one of each kind. Mutations know the
layout of a file. They mend the checksum, so that their bytes reach the decoders, and in one kind the digests, too, so
that whatever a stream decodes to goes through the network. A crash or a hang ends the run. The peak of memory is
reported, and the slowest file as a ratio to its intact seed.
"""

from __future__ import annotations

import argparse
import json
import resource
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from rich.progress import track

from dca_fast import Codec
from dca_fast.engines import tiles
from dca_fast.errors import BitstreamError
from dca_fast.evaluation.report import environment
from dca_fast.exact import coder as exact_coder
from dca_fast.files import container
from dca_fast.files.container import Dca, Section
from dca_fast.leb128 import leb128

MAX_PIXELS = 1 << 23  # what a careful server would set
LARGEST_SEED = 1 << 18  # pixels, so that thousands are decoded in a minute


@dataclass(frozen=True)
class Seed:
    """A file, what it decodes to, and how long that takes."""

    name: str
    data: bytes
    dca: Dca
    pixels: np.ndarray
    seconds: float


def mutate(data: bytes, draw: np.random.Generator) -> bytes:
    """One to eight changes: bits, bytes, a part that is removed, repeated or new, or the end cut off."""
    body = bytearray(data)
    for _ in range(draw.integers(1, 9)):
        at, size = int(draw.integers(len(body) + 1)), int(draw.integers(1, 9))
        kind = draw.integers(6) if body else 4
        if kind == 0:
            body[at % len(body)] ^= 1 << int(draw.integers(8))
        elif kind == 1:
            body[at % len(body)] = int(draw.choice([0, 127, 128, 255, draw.integers(256)]))
        elif kind == 2:
            del body[at : at + size]
        elif kind == 3:
            body[at:at] = body[at : at + size]
        elif kind == 4:
            body[at:at] = draw.bytes(size)
        elif draw.integers(8) == 0:
            del body[at:]
    return bytes(body)


def sealed(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


def restructured(stream: bytes, draw: np.random.Generator) -> bytes:
    """Other lanes and groups, whose sizes and states are those of a stream, over what the stream held."""
    log2_lanes, groups = int(draw.integers(6)), int(draw.choice([1, 1, 2, 3, 8, 64]))
    lanes = 1 << log2_lanes
    body = bytearray(stream[2:]) + draw.bytes(int(draw.choice([0, 64, 512])))
    each = max(4 * lanes, len(body) // groups & ~1)
    body += draw.bytes(max(0, each * groups - len(body)))
    body += bytes(len(body) & 1)
    for start in range(0, each * groups, each):
        for at in range(start, start + 4 * lanes, 4):
            if struct.unpack_from("<I", body, at)[0] < 1 << 16:
                body[at + 2] |= 1
    return bytes([log2_lanes, groups]) + leb128(each) * (groups - 1) + bytes(body)


def with_header(dca: Dca, draw: np.random.Generator) -> Dca:
    """Another size, quality, strength, flag or filter over the same stream."""
    header = dca.header
    changes: list[dict[str, Any]] = [
        {"width": int(draw.integers(1, 1200)), "height": int(draw.integers(1, 1200))},
        {"width": header.height, "height": header.width},
        {"quality": int(draw.integers(container.MAX_QUALITY + 1))},
        {"grayscale": not header.grayscale},
        {"digest": int(draw.integers(1 << 32))},
        {"model_id": draw.bytes(4)},
    ]
    if header.exact:
        changes += [{"depth": 24 - header.depth}]
    else:
        weights = tuple(draw.integers(-127, 128, 18 * int(draw.integers(4))).tolist())
        changes += [{"aq": int(draw.integers(16))}, {"restoration": weights}]
    change = {} if header.exact else changes[int(draw.integers(len(changes)))]
    change = change or changes[int(draw.integers(5))]
    return replace(dca, header=replace(header, **change))


def with_sections(dca: Dca, seeds: list[Seed], draw: np.random.Generator) -> Dca:
    """Sections that are new, gone, changed, or those of another file."""
    sections, kind = dict(dca.sections), draw.integers(4)
    tag = Section(int(draw.integers(1, max(Section) + 1)))
    if kind == 0 or not sections:
        sections[tag] = draw.bytes(int(draw.integers(1, 200)))
    elif kind == 1:
        sections.update(seeds[int(draw.integers(len(seeds)))].dca.sections)
    else:
        tag = list(sections)[int(draw.integers(len(sections)))]
        sections[tag] = mutate(sections[tag], draw) if kind == 2 else b""
    if dca.header.exact:
        sections.pop(Section.LAYER, None)
    return replace(dca, sections=sections)


def cases(seeds: list[Seed], draw: np.random.Generator) -> Iterator[tuple[str, Seed, bytes]]:
    """Kind, seed and file, without end."""

    def packed(dca: Dca) -> bytes:
        return container.pack(dca.header, dca.stream, dca.sections)

    kinds: dict[str, Callable[[Seed], bytes]] = {
        "bytes": lambda seed: mutate(seed.data, draw),
        "bytes, checksum mended": lambda seed: sealed(mutate(seed.data[:-4], draw)),
        "stream": lambda seed: packed(replace(seed.dca, stream=mutate(seed.dca.stream, draw))),
        "stream, digests not compared": lambda seed: packed(replace(seed.dca, stream=mutate(seed.dca.stream, draw))),
        "lanes and groups": lambda seed: packed(replace(seed.dca, stream=restructured(seed.dca.stream, draw))),
        "another file's stream": lambda seed: packed(
            replace(seed.dca, stream=seeds[int(draw.integers(len(seeds)))].dca.stream)
        ),
        "header": lambda seed: packed(with_header(seed.dca, draw)),
        "sections": lambda seed: packed(with_sections(seed.dca, seeds, draw)),
    }
    while True:
        kind, seed = list(kinds)[int(draw.integers(len(kinds)))], seeds[int(draw.integers(len(seeds)))]
        yield kind, seed, kinds[kind](seed)


@contextmanager
def without_digests() -> Iterator[None]:
    """Decoders that return what a stream holds, whatever its digest."""
    exact = exact_coder.decode

    def decode(stream: bytes, shape: tuple[int, int, int], depth: int, _: int | None, *args: Any, **more: Any) -> Any:
        return exact(stream, shape, depth, None, *args, **more)

    with (
        mock.patch.object(Codec, "_check_digest", staticmethod(lambda header, digest: None)),
        mock.patch.object(tiles, "checked", return_value=0),
        mock.patch.object(exact_coder, "decode", decode),
    ):
        yield


def seeds_of(paths: list[Path], codec: Codec) -> list[Seed]:
    files = [file for path in paths for file in (sorted(path.rglob("*.dca")) if path.is_dir() else [path])]
    seeds = []
    for file in files:
        data = file.read_bytes()
        try:
            dca = container.parse(data)
            if dca.header.width * dca.header.height > LARGEST_SEED:
                continue
            codec.decode(data, "numpy")
            begin = time.thread_time()
            pixels = codec.decode(data, "numpy")
        except BitstreamError:  # one that is to be refused
            continue
        seeds.append(Seed(file.name, data, dca, pixels, time.thread_time() - begin))
    return seeds


def same_fields(a: Dca, b: Dca) -> bool:
    """Whether the same picture is asked for: metadata may differ, and of exact files the quality."""
    shown = [{tag: block for tag, block in dca.sections.items() if tag > Section.XMP} for dca in (a, b)]
    return a.header == b.header and shown[0] == shown[1]


def is_another_file(kind: str, case: Dca, seed: Dca) -> bool:
    """Whether a file that decodes asks for another picture than its seed, as a mutation of this kind may.

    One byte of a tag makes a section one of those that readers pass over.
    """
    if kind == "bytes, checksum mended":
        return case.header == seed.header and case.sections.keys() != seed.sections.keys()
    return kind in ("header", "sections", "another file's stream") and not same_fields(case, seed)


def run(
    seeds: list[Seed], codec: Codec, executions: int, number: int, minutes: float = np.inf, show: bool = False
) -> dict[str, Any]:
    """What became of so many hostile files, or as many as the time sufficed for; those that decode to another picture
    count as `wrong_pictures`."""
    outcomes: Counter[str] = Counter()
    slowest, wrong, end = 0.0, 0, time.monotonic() + 60 * minutes
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    endless = cases(seeds, np.random.default_rng(number))
    for _ in track(range(executions), "decoding", disable=not show):
        if time.monotonic() > end:
            break
        kind, seed, case = next(endless)
        begin = time.thread_time()  # of this thread alone, whatever else the machine does
        try:
            if "not compared" in kind:
                with without_digests():
                    codec.decode(case, "numpy")
                outcome = "decoded"
            else:
                back = codec.decode(case, "numpy")
                identical = back.shape == seed.pixels.shape and np.array_equal(back, seed.pixels)
                valid = not identical and is_another_file(kind, container.parse(case), seed.dca)
                wrong += not identical and not valid
                outcome = "identical" if identical else "another valid file" if valid else "WRONG"
        except BitstreamError as error:
            outcome = type(error).__name__
        outcomes[f"{kind}: {outcome}"] += 1
        slowest = max(slowest, (time.thread_time() - begin) / seed.seconds)
    return {
        "seeds": len(seeds),
        "executions": outcomes.total(),
        "outcomes": dict(sorted(outcomes.items())),
        "wrong_pictures": wrong,
        "slowest_to_intact": round(slowest, 1),
        "memory_growth_mib": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", type=Path, nargs="+")
    parser.add_argument("--executions", type=int, default=20000)
    parser.add_argument("--minutes", type=float, default=np.inf, help="end then, with what was done (default: never)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    codec = Codec(threads=1, max_pixels=MAX_PIXELS)
    result = run(seeds_of(args.seeds, codec), codec, args.executions, args.seed, args.minutes, show=True)
    result |= {"model_id": codec.model_id} | environment()
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    return 1 if result["wrong_pictures"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
