"""A decoder of .dca files in NumPy and the standard library: docs/spec/ as a program.

It shares no line with the package. Its sections are the pages: bitstream.md, weights.md, numerics.md with adaptive.md
and restoration.md, exact.md, layer.md. It is there to be read beside them, and to compare other decoders with; it is
slow.

    python decoder.py FILE.dca [WEIGHTS.safetensors]    # prints size and SHA-256 of the pixels, or the error
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from operator import mul
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# ---------------------------------------------------------------------------------------------------------------------
# Errors: bitstream.md, "Limits and errors"; weights.md.


class DcaError(Exception):
    """Root of all errors."""


class WeightsError(DcaError):
    """A weights file that must be refused."""


class BitstreamError(DcaError, ValueError):
    """A .dca file that must be refused."""


class NotADcaFileError(BitstreamError):
    """It does not start like one."""


class UnsupportedVersionError(BitstreamError):
    """Another version, unknown flags or tags."""


class UnknownModelError(BitstreamError):
    """No weights with the model id."""


class TruncatedStreamError(BitstreamError):
    """The data ends too early."""


class CorruptStreamError(BitstreamError):
    """A value that the specification excludes."""


class LimitExceededError(BitstreamError):
    """More pixels or bytes than allowed."""


# ---------------------------------------------------------------------------------------------------------------------
# The container: bitstream.md.

VERSION = 10
MAX_PIXELS, MAX_SECTION = 1 << 28, 1 << 24
ICC, EXIF, XMP, ALPHA, LAYER = range(1, 6)
TAGS = {ICC: "icc", EXIF: "exif", XMP: "xmp", ALPHA: "alpha", LAYER: "layer"}
ANCILLARY = 128  # the first tag of sections that a reader passes over


class Reader:
    """A position in some bytes; reading beyond their end is `cut`."""

    def __init__(self, data: bytes, at: int = 0, cut: type[BitstreamError] = TruncatedStreamError) -> None:
        self.data, self.at, self.cut = data, at, cut

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise self.cut(f"{size} bytes are wanted at {self.at}")
        self.at += size
        return self.data[self.at - size : self.at]

    def byte(self) -> int:
        return self.take(1)[0]

    def rest(self) -> bytes:
        return self.take(len(self.data) - self.at)

    def leb128(self) -> int:
        value = 0
        for i in range(5):
            byte = self.byte()
            value |= (byte & 127) << 7 * i
            if byte < 128:
                if i and not byte:
                    break
                return value
        raise CorruptStreamError(f"a malformed number before {self.at}")


@dataclass
class File:
    """What a .dca file says."""

    width: int
    height: int
    quality: int
    gray: bool
    strength: int
    exact: bool
    depth: int
    model: bytes
    digest: int
    coefficients: list[int]
    sections: dict[int, bytes] = field(default_factory=dict)
    stream: bytes = b""

    @property
    def channels(self) -> int:
        return 1 if self.gray else 3


def parse(data: bytes, max_pixels: int = MAX_PIXELS) -> File:
    """Take a file apart, in the order of "Limits and errors"."""
    magic = b"\x89DCA\r\n"
    if not data or data[:6] != magic[: len(data)]:
        raise NotADcaFileError("it does not begin as a .dca file")
    if len(data) < 7:
        raise TruncatedStreamError("it ends inside the header")
    if data[6] != VERSION:
        raise UnsupportedVersionError(f"version {data[6]}")
    if len(data) < 11:
        raise TruncatedStreamError("it ends inside the header")
    intact = zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "little")
    try:
        file = read_fields(Reader(data[:-4], 7), max_pixels)
    except (CorruptStreamError, LimitExceededError, UnsupportedVersionError):
        if intact:
            raise
    if not intact:
        raise CorruptStreamError("the checksum is another one")
    return file


def read_fields(reader: Reader, max_pixels: int) -> File:
    flags = reader.byte()
    exact, high = bool(flags & 8), flags >> 4
    if exact and (flags & 4 or high > 1):
        raise UnsupportedVersionError(f"flags {flags:#x}")
    model = reader.take(4)
    width, height = reader.leb128(), reader.leb128()
    (quality,) = struct.unpack("<H", reader.take(2))
    if quality >> 14:
        raise UnsupportedVersionError(f"quality {quality}")
    if max(width, height) > 65535:
        raise LimitExceededError(f"{width} x {height} pixels")
    if not (width and height and quality <= 10000):
        raise CorruptStreamError("size or quality out of range")
    if exact and model != bytes(4):
        raise CorruptStreamError("an exact file with a model")
    if width * height > max_pixels:
        raise LimitExceededError(f"{width} x {height} pixels")
    before = reader.data[: reader.at]
    (digest,) = struct.unpack("<I", reader.take(4))
    start, coefficients = reader.at, read_filter(reader) if flags & 4 else []
    digest ^= zlib.crc32(before + reader.data[start : reader.at])
    strength, depth = 0 if exact else high, 16 if exact and high else 8
    file = File(width, height, quality, bool(flags & 1), strength, exact, depth, model, digest, coefficients)
    if flags & 2:
        file.sections = read_sections(reader)
    if exact and LAYER in file.sections:
        raise CorruptStreamError("an exact file with a layer")
    file.stream = reader.rest()
    return file


def read_filter(reader: Reader) -> list[int]:
    """Coefficients of the restoration filter."""
    first = reader.byte()
    rings, k, s = first & 3, first >> 2 & 7, first >> 5
    if not rings:
        raise CorruptStreamError("a filter without rings")
    numbers: list[int] = []
    byte = bits = 0

    def bit() -> int:
        nonlocal byte, bits
        if not bits:
            byte, bits = reader.byte(), 8
        byte, bits, out = byte >> 1, bits - 1, byte & 1
        return out

    for _ in range(18 * rings):
        high = 0
        while bit():
            high += 1
            if high << k > 254:
                raise CorruptStreamError("a coefficient is too large")
        numbers.append(high << k | sum(bit() << i for i in range(k)))
    coefficients = [(-(u + 1) // 2 if u & 1 else u // 2) << s for u in numbers]
    sizes = [sum(u >> k for u in numbers) + k * len(numbers) for k in range(8)]
    larger = s < 7 and all(c % (2 << s) == 0 for c in coefficients)
    if max(map(abs, coefficients)) > 127 or byte or larger or sizes.index(min(sizes)) != k:
        raise CorruptStreamError("a malformed filter")
    return coefficients


def read_sections(reader: Reader) -> dict[int, bytes]:
    sections: dict[int, bytes] = {}
    last = 0
    while tag := reader.byte():
        if tag <= last:
            raise CorruptStreamError(f"section {tag} after {last}")
        if tag not in TAGS and tag < ANCILLARY:
            raise UnsupportedVersionError(f"section {tag}")
        size = reader.leb128()
        if not size:
            raise CorruptStreamError(f"section {tag} is empty")
        if size > MAX_SECTION and tag not in (ALPHA, LAYER):
            raise LimitExceededError(f"section {tag} has {size} bytes")
        payload, last = reader.take(size), tag
        if tag in TAGS:
            sections[tag] = payload
    if not last:
        raise CorruptStreamError("no sections")
    return sections


# ---------------------------------------------------------------------------------------------------------------------
# The weights file: weights.md.

TYPES = {"I8": "<i1", "U8": "<u1", "I16": "<i2", "I32": "<i4", "F32": "<f4"}
LARGEST = 65504.0  # below which multipliers and gains lie
WEIGHTS_FORMAT = 3
MOST_JSON = 1 << 24  # bytes
NUMBERS = (
    "width", "latent", "latent_hidden", "context_width", "context_blocks", "heads", "window", "local_blocks", "local",
    "regional", "regional_levels", "tokens",
)  # fmt: skip
OF_ENCODER = "analysis_"  # how its keys of the configuration begin


def is_of_encoder(name: str) -> bool:
    parts = name.split(".")
    if parts[0] == "hyper" and len(parts) > 2:
        return parts[2].startswith(("analysis_", "queries"))
    return name.startswith("analysis.") or name in ("latent.operand8", "latent.quantise")


def read_json(text: str) -> Any:
    """JSON as weights.md has it."""

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) < len(pairs):
            raise WeightsError("two keys of an object are equal")
        return dict(pairs)

    def number(digits: str) -> int:
        if not digits.lstrip("-").isdigit() or len(digits.lstrip("-")) > 18:
            raise WeightsError("no whole number of at most 18 digits")
        return int(digits)

    def levels(value: Any) -> int:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return max((1 + levels(one) for one in inner), default=0)

    value = json.loads(text, object_pairs_hook=members, parse_int=number, parse_float=number, parse_constant=number)
    if levels(value) > 7:
        raise WeightsError("too many objects and lists within each other")
    json.dumps(value, ensure_ascii=False).encode()  # fails for half of a pair of surrogates
    return value


class Weights:
    """A weights file, checked."""

    def __init__(self, data: bytes) -> None:
        try:
            (size,) = struct.unpack_from("<Q", data)
            if size > min(MOST_JSON, len(data) - 8):
                raise WeightsError("no weights file: its JSON does not end")
            head: dict[str, Any] = read_json(data[8 : 8 + size].decode())
            facts: dict[str, str] = head.pop("__metadata__")
            told = read_json(facts["dca_fast"])
            self.config, self.skip, form = told["config"], told["skip"], told["format"]
            for entry in head.values():
                numbers = [*entry["shape"], *entry["data_offsets"]]
                kinds = type(entry["dtype"]), type(entry["shape"]), type(entry["data_offsets"]), *map(type, numbers)
                if len(entry) != 3 or kinds[:3] != (str, list, list) or {*kinds[3:]} != {int}:
                    raise WeightsError("a tensor is not described as it should be")
            self.check_cover([entry["data_offsets"] for entry in head.values()], len(data) - 8 - size)
            tensors = memoryview(data)[8 + size :]
            self.t = {name: self.tensor(tensors, entry) for name, entry in head.items() if not is_of_encoder(name)}
            strings = all(isinstance(fact, str) for fact in facts.values())
        except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise WeightsError(f"no weights file: {error}") from error
        first = type(self.skip) is int and 0 <= self.skip <= 128
        if not (strings and first and type(form) is int and form == WEIGHTS_FORMAT):
            raise WeightsError("another format, or another first row")
        self.check_layout()
        self.check_ranges()
        if self.identity().hex() != facts.get("identity"):
            raise WeightsError("the tensors have another identity")
        self.model = self.identity()[:4]

    def identity(self) -> bytes:
        """SHA-256 of what a decoder reads."""
        seen = {key: value for key, value in self.config.items() if not key.startswith(OF_ENCODER)}
        line = json.dumps({"config": seen, "format": 3, "skip": self.skip}, sort_keys=True)
        digest = hashlib.sha256(line.encode())
        for name in sorted(self.t):
            t = self.t[name]
            digest.update(f"\n{name} torch.{t.dtype.name} {t.shape}\n".encode() + t.tobytes())
        return digest.digest()

    @staticmethod
    def check_cover(places: list[list[int]], size: int) -> None:
        """Tensors follow each other to the end of the file."""
        at = 0
        for begin, end in sorted(places):
            if begin != at or end < begin:
                raise WeightsError("tensors overlap, or leave holes")
            at = end
        if at != size:
            raise WeightsError("bytes behind the tensors")

    @staticmethod
    def tensor(data: memoryview, entry: dict[str, Any]) -> Array:
        begin, end = entry["data_offsets"]
        return np.frombuffer(data[begin:end], TYPES[entry["dtype"]]).reshape(entry["shape"])

    @property
    def latents(self) -> list[str]:
        """The hyper latents that exist, in the order of the stream."""
        return [n for n in ("global", "local", "regional") if n in (*self.config["contexts"], "regional")]

    def layout(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """Names, types and shapes of the tensors that a decoder reads."""
        c = self.config
        width, latent, hidden, d = c["width"], c["latent"], c["latent_hidden"], c["context_width"]

        def linear(name: str, k: int, o: int, wide: bool = False, slope: bool = False) -> Iterator[Any]:
            yield f"{name}.w", "int16" if wide else "int8", (o, k)
            yield f"{name}.b", "int32", (o,)
            yield f"{name}.m", "float32", (o,)
            if slope:
                yield f"{name}.slope", "int32", (o,)

        def ffn(name: str, k: int, h: int) -> Iterator[Any]:
            yield f"{name}.m_in", "float32", (k,)
            yield from linear(f"{name}.expand", k, 2 * h)
            yield from linear(f"{name}.project", h, k)

        def block(name: str, k: int, h: int) -> Iterator[Any]:
            yield f"{name}.depth.m_in", "float32", (k,)
            yield from linear(f"{name}.depth.expand", k, h, slope=True)
            yield f"{name}.depth.depthwise.w", "int8", (3, 3, h)
            yield f"{name}.depth.depthwise.b", "int32", (h,)
            yield f"{name}.depth.depthwise.m", "float32", (h,)
            yield from linear(f"{name}.depth.project", h, k)
            yield from ffn(f"{name}.ffn", k, h)

        for i in range(c["synthesis_blocks"][0]):
            yield from block(f"synthesis.blocks8.{i}", width, width)
        for i in range(c["synthesis_blocks"][1]):
            yield from block(f"synthesis.blocks16.{i}", latent, hidden)
        yield from linear("synthesis.split", latent, 4 * width, wide=True)
        yield from linear("synthesis.pixels", width, 192, wide=True)
        yield "latent.operand16", "float32", (latent,)
        yield "latent.dequantise", "float32", (latent,)
        yield "latent.log2_gain", "int32", (9, latent)
        channels = {"global": latent, "local": c["local"], "regional": c["regional"]}
        for name in self.latents:
            yield f"factorised.{name}.log2_scale", "int32", (9, channels[name])
            yield f"factorised.{name}.log2_gain", "int32", (9, channels[name])
        if c["regional_levels"]:
            yield "factorised.regional.log2_wider", "int32", (2 * c["regional_levels"], c["regional"])
            yield "factorised.regional.weight", "float32", (2 * c["regional_levels"], c["regional"])
        r = c["regional"]
        yield from linear("hyper.regional.synthesis_in", r, 4 * r, wide=True)
        yield from block("hyper.regional.synthesis_block", r, r)
        yield from linear("hyper.regional.synthesis_up", r, 4 * d)
        if "global" in self.latents:
            yield from linear("hyper.global.synthesis_in", latent // c["tokens"], d, wide=True)
            yield from linear("hyper.global.synthesis_kv", d, 2 * d)
        if "local" in self.latents:
            yield from linear("hyper.local.synthesis_in", c["local"], d, wide=True)
            for i in range(c["local_blocks"]):
                name = f"hyper.local.synthesis_blocks.attention.{i}"
                yield from linear(f"{name}.qkv", d, 3 * d)
                yield from linear(f"{name}.out", d, d)
                yield f"{name}.bias", "int32", (c["heads"], c["window"] ** 2, c["window"] ** 2)
                yield from ffn(f"hyper.local.synthesis_blocks.ffn.{i}", d, d)
            yield from linear("context.local", d, d)
        for i in range(3):
            yield from linear(f"context.decoded.{i}", latent, d, wide=True)
        for i in range(4):
            yield from linear(f"context.feature.{i}", d, d, slope=True)
        for i in range(1 if c["shared"] else 4):
            core = f"context.cores.{i}"
            for j in range(c["context_blocks"]):
                yield from block(f"{core}.regional_blocks.{j}", d, d)
            if "global" in self.latents:
                yield from linear(f"{core}.global_attention.query", d, d)
                yield from linear(f"{core}.global_attention.out", d, d)
                yield from ffn(f"{core}.global_ffn", d, d)
            if "local" in self.latents:
                yield from ffn(f"{core}.local_ffn", d, d)
            yield f"{core}.heads.w", "int8", (4, latent // 2, d)
            yield f"{core}.heads.b", "int32", (4, latent // 2)
            yield f"{core}.heads.m", "float32", (4, latent // 2)
        for n in (8, 16):
            if f"preview.{n}.w" in self.t:
                yield from linear(f"preview.{n}", latent, 768 // n**2, wide=True)
        yield "tables.exp2", "float32", (4096,)
        yield "tables.softmax", "uint8", (256,)
        yield "tables.freq", "int16", (384, 256)
        yield "tables.shift", "uint8", (384,)

    def check_layout(self) -> None:
        self.check_configuration()
        c = self.config
        blocks = c["context_blocks"] * (1 if c["shared"] else 4) + (
            c["local_blocks"] if "local" in c["contexts"] else 0
        )
        if blocks > len(self.t):
            raise WeightsError("fewer tensors than blocks")
        wanted = {name: (dtype, shape) for name, dtype, shape in self.layout()}
        given = {name: (t.dtype.name, t.shape) for name, t in self.t.items()}
        if wanted != given:
            raise WeightsError(f"other tensors: {sorted(dict(wanted.items() ^ given.items()))[:3]}")

    def listed(self, name: str) -> list[Any]:
        value = self.config.get(name)
        if not isinstance(value, list):
            raise WeightsError(f"{name} is no list")
        return value

    def check_configuration(self) -> None:
        c = self.config
        if not isinstance(c, dict) or not isinstance(c.get("name"), str):
            raise WeightsError("no configuration")
        lists = [*self.listed("contexts"), *self.listed("synthesis_blocks")]
        if not all(isinstance(entry, str | int) for entry in lists):
            raise WeightsError("no such configuration")
        numbers = {name: c.get(name) for name in NUMBERS} | dict(enumerate(c.get("synthesis_blocks", ())))
        for name, value in numbers.items():
            least, most = {"regional_levels": (0, 6), 0: (0, 64), 1: (0, 64)}.get(name, (1, 4096))
            if type(value) is not int or not least <= value <= most:
                raise WeightsError(f"{name} is {value}")
        others = {"name", "transforms", "synthesis_blocks", "contexts", "merge_once", "shared"}
        seen = {key for key in c if not key.startswith(OF_ENCODER)}
        if seen != {*NUMBERS, *others} or len(c["synthesis_blocks"]) != 2 or c["transforms"] != "patch":
            raise WeightsError("another configuration")
        if type(c["merge_once"]) is not bool or type(c["shared"]) is not bool or 4 % c["window"]:
            raise WeightsError("no such configuration")
        if c["latent"] % 16 or c["latent"] % (4 * c["tokens"]) or c["context_width"] % c["heads"]:
            raise WeightsError("channels that do not fit")
        if len(set(c["contexts"])) != len(c["contexts"]) or not {*c["contexts"]} <= {"regional", "global", "local"}:
            raise WeightsError("other contexts")

    def check_ranges(self) -> None:
        for name, t in self.t.items():
            if t.dtype == np.float32 and not (np.abs(t) < LARGEST).all():
                raise WeightsError(f"{name} is too large")
            if name.endswith(".w"):
                self.check_layer(name[:-2], t)
            if name.endswith(".bias") and np.abs(t.astype(np.int64)).max() > 1 << 20:
                raise WeightsError(f"{name} is too large")
            if ".log2_" in name and np.abs(t.astype(np.int64)).max() > 1 << 18:
                raise WeightsError(f"{name} is too large")
            if name.endswith(".log2_gain"):
                size = np.abs(self.t["latent.dequantise"].astype(np.float64)) if name.startswith("latent.") else 1
                if not (np.exp2(t / 4096) < LARGEST).all() or not (np.exp2(-t / 4096) * size < LARGEST).all():
                    raise WeightsError(f"{name} is too large")
        exp2, softmax = self.t["tables.exp2"], self.t["tables.softmax"]
        frequencies, shift = self.t["tables.freq"].astype(np.int64), self.t["tables.shift"]
        if not ((exp2 >= 1) & (exp2 < 2)).all() or softmax[0] != 127 or softmax.max() > 127:
            raise WeightsError("tables.exp2 or tables.softmax")
        if not (frequencies.sum(1) == 4096).all() or shift.max() > 8 or not frequencies[:, 255].all():
            raise WeightsError("tables.freq or tables.shift")
        if frequencies.min() < 0 or frequencies.max() > 4095:
            raise WeightsError("tables.freq")

    def check_layer(self, name: str, w: Array) -> None:
        limit = 127 if w.dtype == np.int8 else 32767
        over = (0, 1) if name.endswith(".depthwise") else -1
        most = limit * np.abs(w.astype(np.int64)).sum(over) + np.abs(self.t[f"{name}.b"].astype(np.int64))
        if f"{name}.slope" in self.t:
            most = most + np.abs(self.t[f"{name}.slope"].astype(np.int64))
        if most.max() > 2**31 - 1:
            raise WeightsError(f"sums of {name} can be too large")
        results = most * np.abs(self.t[f"{name}.m"].astype(np.float64))
        if not name.endswith(".heads") and not (results < 2**31 - 1024).all():
            raise WeightsError(f"results of {name} can be too large")


# ---------------------------------------------------------------------------------------------------------------------
# The entropy coded stream: bitstream.md, "Stream".

SKIPPED = 255  # the row of a value that is not coded


class Stream:
    """The parts of a stream, one after the other."""

    def __init__(self, frequencies: Array, shifts: Array, data: bytes) -> None:
        self.frequencies, self.shifts = frequencies.tolist(), shifts.tolist()
        sums = np.cumsum(frequencies.astype(np.int64), 1)
        self.starts = np.concatenate([np.zeros_like(sums[:, :1]), sums], 1).tolist()
        reader = Reader(data)
        lanes, groups = reader.take(2)
        if lanes > 5 or not 1 <= groups <= 64:
            raise CorruptStreamError("a number of lanes or groups that there is not")
        self.lanes = 1 << lanes
        sizes = [reader.leb128() for _ in range(groups - 1)]
        sizes.append(max(0, len(data) - reader.at - sum(sizes)))
        self.states: list[list[int]] = []
        self.words: list[Iterator[int]] = []
        for size in sizes:
            group = reader.take(size)
            if size < 4 * self.lanes:
                raise TruncatedStreamError("a group ends inside its states")
            if size % 2:
                raise CorruptStreamError("a group ends inside a word")
            self.states.append(np.frombuffer(group, "<u4", self.lanes).tolist())
            self.words.append(iter(np.frombuffer(group, "<u2", offset=4 * self.lanes).tolist()))
            if min(self.states[-1]) < 1 << 16:
                raise CorruptStreamError("a state is too small")
        self.unused = [False] * groups  # whether the tail may leave words of lanes
        self.wrong = False  # a state before the tail

    def part(self, rows: Array, trellis: bool, last: bool) -> Array:
        """Values int16 [n] of the next part, or the last one, whose rows are uint8 [n]."""
        values, coded, groups = np.zeros(len(rows), np.int16), np.flatnonzero(rows != SKIPPED), len(self.states)
        n, chains = len(coded), 32
        while trellis and 1024 * groups * chains > n and chains > 1:
            chains //= 2
        for g in range(groups):
            own = coded[n * g // groups : n * (g + 1) // groups]
            integers = self.integers(g, rows[own].tolist(), chains, trellis, last)
            values[own] = np.array(integers, np.int64).astype(np.int16)
        return values

    def integers(self, g: int, rows: list[int], chains: int, trellis: bool, last: bool) -> list[int]:
        """Of a part in a group."""
        n, few, states, out = len(rows), max(1, self.lanes // 4), [0] * chains, list[int]()
        tail = 31 * n // 1024 * 32 if last else n
        while len(out) < n:
            if len(out) == tail:
                self.begin_tail(g, few)
            count = min(few if len(out) >= tail else self.lanes, chains)
            some = rows[len(out) : len(out) + count]
            out += self.indices(g, some, states, len(out)) if trellis else self.round(g, some)
        return out

    def begin_tail(self, g: int, few: int) -> None:
        words, states = list(self.words[g]), self.states[g]
        given = [state - (1 << 16) for state in states[few:]]
        self.unused[g] = not words
        self.wrong |= any(not 0 <= word < 1 << 16 for word in given)
        self.words[g] = iter([word & 0xFFFF for word in given] + words)
        states[few:] = [1 << 16] * len(given)

    def indices(self, g: int, some: list[int], chains: list[int], first: int) -> list[int]:
        """A round of the trellis, from value `first` on: its values."""
        own = [(first + i) % len(chains) for i in range(len(some))]
        sets, out = [chains[j] & 1 for j in own], list[int]()
        indices = self.round(g, [row + 128 * (1 + e) for row, e in zip(some, sets, strict=True)])
        for j, e, i in zip(own, sets, indices, strict=True):
            out.append(2 * i - e * ((i > 0) - (i < 0)))
            chains[j] = chains[j] >> 1 ^ 173 * e ^ 69 * (i & 1)
        return out

    def round(self, g: int, rows: list[int]) -> list[int]:
        """Integers of one round, one for each of the first lanes."""
        states, words = self.states[g], self.words[g]

        def word() -> int:
            if (following := next(words, None)) is None:
                raise TruncatedStreamError("a group ends before its values")
            return following

        values = []
        for lane, row in enumerate(rows):
            slot, starts = states[lane] % 4096, self.starts[row]
            symbol = bisect_right(starts, slot) - 1
            states[lane] = self.frequencies[row][symbol] * (states[lane] // 4096) + slot - starts[symbol]
            if states[lane] < 1 << 16:
                states[lane] = states[lane] << 16 | word()
            values.append(symbol - 127)
        for lane, row in enumerate(rows):
            if (k := self.shifts[row]) and values[lane] != 128:
                values[lane] = values[lane] << k | states[lane] & (1 << k) - 1
                states[lane] >>= k
                if states[lane] < 1 << 16:
                    states[lane] = states[lane] << 16 | word()
            elif values[lane] == 128:
                values[lane] = 1 << 16  # an escape, whose word comes after the other lanes
        return [(word() ^ 0x8000) - 0x8000 if value == 1 << 16 else value for value in values]

    def finish(self) -> None:
        left = map(list, self.words)
        over = any(any(words) if unused else words for words, unused in zip(left, self.unused, strict=True))
        if self.wrong or over or any(state != 1 << 16 for states in self.states for state in states):
            raise CorruptStreamError("words are left over, or states are not as in the beginning")


# ---------------------------------------------------------------------------------------------------------------------
# Operations: numerics.md. Arrays are [H, W, C], integers of 32 bits; sums of products are exact in float64.


def requantise(sums: Array, m: Array | float, limit: int, leaky: bool = False) -> Array:
    r = sums.astype(np.float32) * np.asarray(m, np.float32)
    if leaky:
        r = np.where(r < 0, r * np.float32(1 / 8), r)
    return np.clip(np.rint(r), -limit, limit).astype(np.int32)


def q8(sums: Array, m: Array | float, leaky: bool = False) -> Array:
    return requantise(sums, m, 127, leaky)


def q16(sums: Array, m: Array | float) -> Array:
    return requantise(sums, m, 32767)


def q20(sums: Array, m: Array | float) -> Array:
    return requantise(sums, m, 1 << 20)


def clamp16(x: Array) -> Array:
    return np.clip(x, -32767, 32767)


def dot(x: Array, w: Array) -> Array:
    """[..., K] times [O, K]: [..., O]."""
    return x.astype(np.float64) @ w.T.astype(np.float64)


def depth_to_space(x: Array, s: int) -> Array:
    h, w, c = x.shape
    return x.reshape(h, w, s, s, c // s**2).transpose(0, 2, 1, 3, 4).reshape(h * s, w * s, c // s**2)


def attention(
    q: Array, k: Array, v: Array, m: float, bias: Array | int, visible: Array | bool, table: Array, n: int
) -> Array:
    """q [..., Q, D] over k and v [..., K, D] with bias and visible [..., Q, K]."""
    scores = q20(q.astype(np.float64) @ np.swapaxes(k, -1, -2).astype(np.float64), m) + bias
    scores = np.where(visible, scores, -(1 << 30))
    d = np.minimum(scores.max(-1, keepdims=True) - scores, 255)
    e = np.where(visible, table[d].astype(np.int64), 0)
    r = (1 << n) // e.sum(-1, keepdims=True)
    return (e @ v.astype(np.int64) * r + (1 << n - 1)) >> n


def window_attention(
    q: Array, k: Array, v: Array, heads: int, side: int, shift: int, m: float, bias: Array, table: Array
) -> Array:
    h, w, c = q.shape

    def windows(x: Array) -> Array:  # [rows, columns, heads, side^2, channels of a head]
        x = np.roll(x, (-shift, -shift), (0, 1)).reshape(h // side, side, w // side, side, -1, x.shape[2] // heads)
        return x.transpose(0, 2, 4, 1, 3, 5).reshape(h // side, w // side, heads, side**2, -1)

    wrapped = 2 * (np.arange(h) >= h - shift)[:, None] + (np.arange(w) >= w - shift)
    wrapped = wrapped.reshape(h // side, side, w // side, side).transpose(0, 2, 1, 3)
    wrapped = wrapped.reshape(h // side, w // side, 1, side**2)
    visible = wrapped[..., :, None] == wrapped[..., None, :]
    out = attention(windows(q), windows(k), windows(v), m, bias, visible, table, 23)
    out = out.reshape(h // side, w // side, heads, side, side, c // heads).transpose(0, 3, 1, 4, 2, 5)
    return np.roll(out.reshape(h, w, c), (shift, shift), (0, 1))


def token_attention(q: Array, k: Array, v: Array, heads: int, m: float, table: Array) -> Array:
    def split(x: Array) -> Array:  # [heads, sites or tokens, channels of a head]
        return x.reshape(-1, heads, x.shape[-1] // heads).transpose(1, 0, 2)

    out = attention(split(q), split(k), split(v), m, 0, True, table, 40)
    return out.transpose(1, 0, 2).reshape(q.shape)


def groups(step: int) -> Iterator[tuple[slice, slice, int]]:
    """Rows and columns of the sites of each parity, and their channel group in a step."""
    for p in range(4):
        yield slice(p >> 1, None, 2), slice(p & 1, None, 2), p ^ (0, 3, 2, 1)[step]


def interpolated(knots: Array, quality: int) -> Array:
    """L of nine knots, int64."""
    p = 8 * quality
    i = min(p // 10000, 7)
    f = p - 10000 * i
    low, high = knots[i].astype(np.int64), knots[i + 1].astype(np.int64)
    return (low * (10000 - f) + high * f + 5000) // 10000


RINGS = (
    [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)],
    [(-1, 0), (0, -1), (0, 1), (1, 0)],
    [(-2, 0), (2, 0), (0, -2), (0, 2)],
)


def restore(picture: Array, coefficients: list[int]) -> Array:
    """restoration.md."""
    w = np.array(coefficients).reshape(3, -1)
    (height, width, _), picture = picture.shape, picture.astype(np.int64)
    padded, features = np.pad(picture, ((2, 2), (2, 2), (0, 0)), mode="edge"), []
    for ring in RINGS[: w.shape[1] // 6]:
        differences = [padded[2 + y :, 2 + x :][:height, :width] - picture for y, x in ring]
        features += [sum(differences), sum(np.clip(d, -8, 8) for d in differences)]
    return np.clip(picture + ((np.concatenate(features, 2) @ w.T + 128) >> 8), 0, 255)


def luma(picture: Array) -> Array:
    red, green, blue = np.moveaxis(picture.astype(np.int64), 2, 0)
    return np.repeat(((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16)[:, :, None], 3, 2)


def box_mean(picture: Array, n: int) -> Array:
    """Previews that are means of the picture's samples."""
    down, across = (np.arange(0, side, n) for side in picture.shape[:2])
    sums = np.add.reduceat(np.add.reduceat(picture.astype(np.int64), down, 0), across, 1)
    sides = [np.diff([*starts, side]) for starts, side in zip((down, across), picture.shape, strict=False)]
    k = np.multiply.outer(*sides)[:, :, None]
    return (2 * sums + k) // (2 * k)


# ---------------------------------------------------------------------------------------------------------------------
# The network: numerics.md, from "Dependence on the quality" on; adaptive.md.


class Network:
    """The weights at one quality."""

    def __init__(self, weights: Weights, quality: int) -> None:
        self.t, self.config, self.skip, self.quality = weights.t, weights.config, weights.skip, quality
        self.latents = weights.latents
        self.log2 = self.at_quality("latent.log2_gain")
        self.offset = (((self.log2 + 13607) * 192 + 2048) // 4096).reshape(4, -1)
        self.heads = self.config["heads"]
        self.score = float(np.float32(16 / (256 * np.sqrt(self.config["context_width"] // self.heads))))

    def at_quality(self, name: str) -> Array:
        return interpolated(self.t[name], self.quality)

    def gain(self, log2: Array) -> Array:
        return np.ldexp(self.t["tables.exp2"][log2 % 4096], log2 // 4096).astype(np.float32)

    # Layers, by name.

    def sums(self, x: Array, name: str) -> Array:
        b = self.t[f"{name}.b"].astype(np.int64)
        if f"{name}.slope" in self.t:
            b = b + (self.t[f"{name}.slope"].astype(np.int64) * (self.quality - 5000) + 2500) // 5000
        return dot(x, self.t[f"{name}.w"]) + b

    def linear_act(self, x: Array, name: str, leaky: bool = False) -> Array:
        return q8(self.sums(x, name), self.t[f"{name}.m"], leaky)

    def linear_add(self, x: Array, name: str, residual: Array | int = 0) -> Array:
        return clamp16(q16(self.sums(x, name), self.t[f"{name}.m"]) + residual)

    wide_linear = linear_add

    def wide_pixels(self, x: Array, name: str) -> Array:
        return np.clip(q16(self.sums(x, name), self.t[f"{name}.m"]) + 128, 0, 255)

    def operand8(self, x: Array, name: str = "") -> Array:
        return q8(x, self.t[f"{name}.m_in"] if name else 1 / 16)

    def ffn(self, x: Array, name: str) -> Array:
        u, v = np.split(self.linear_act(self.operand8(x, name), f"{name}.expand"), 2, -1)
        return self.linear_add(q8(u * v, 1 / 16), f"{name}.project", x)

    def block(self, x: Array, name: str) -> Array:
        p = f"{name}.depth"
        hidden = self.linear_act(self.operand8(x, p), f"{p}.expand", leaky=True)
        (h, w, _), padded = x.shape, np.pad(hidden, ((1, 1), (1, 1), (0, 0)))
        sums = self.t[f"{p}.depthwise.b"] + np.zeros_like(hidden)
        for dy in range(3):
            for dx in range(3):
                sums += padded[dy : dy + h, dx : dx + w] * self.t[f"{p}.depthwise.w"][dy, dx].astype(np.int32)
        x = self.linear_add(q8(sums, self.t[f"{p}.depthwise.m"]), f"{p}.project", x)
        return self.ffn(x, f"{name}.ffn")

    def blocks(self, x: Array, name: str, count: int) -> Array:
        for i in range(count):
            x = self.block(x, f"{name}.{i}")
        return x

    # "Hyper latents".

    def hyper_rows(self, name: str, kind: int | None = None) -> Array:
        log2 = self.at_quality(f"factorised.{name}.log2_scale")
        if kind is not None:
            log2 = log2 + self.t["factorised.regional.log2_wider"][kind]
        rows = ((log2 + 13607) * 12 + 2048) // 4096
        return np.where(rows < self.skip, SKIPPED, np.clip(rows, 0, 127)).astype(np.uint8)

    def hyper(self, take: Callable[..., Array], h: int, w: int, valid: tuple[int, int]) -> dict[str, Array]:
        """z_hat of each hyper latent of h x w sites; `take` decodes values of rows."""
        z, c = {}, self.config
        if "global" in self.latents:
            rows = self.hyper_rows("global").reshape(1, c["tokens"], -1)
            z["global"] = clamp16(256 * take(rows, False))
        if "local" in self.latents:
            rows = np.full((h, w, c["local"]), SKIPPED, np.uint8)
            rows[: valid[0], : valid[1]] = self.hyper_rows("local")
            z["local"] = clamp16(256 * take(rows, False))
        z["regional"] = np.zeros((h // 4, w // 4, c["regional"]), np.int32)
        for kind, top, left, stride in regional_parts(c["regional_levels"]):
            sites = slice(top, None, stride), slice(left, None, stride)
            shape = z["regional"][sites].shape
            if 0 not in shape:
                mean = 0 if kind is None else self.neighbour_mean(z["regional"], kind, top, left, stride)
                values = take(np.broadcast_to(self.hyper_rows("regional", kind), shape), False)
                z["regional"][sites] = clamp16(mean + 256 * values)
        return z

    def neighbour_mean(self, z: Array, kind: int, top: int, left: int, stride: int) -> Array:
        (h, w, _), s = z.shape, stride // 2
        around = [(-s, -s), (-s, s), (s, -s), (s, s)] if top == left else [(-s, 0), (s, 0), (0, -s), (0, s)]
        border = ((s, s), (s, s), (0, 0))
        padded, there = np.pad(z, border), np.pad(np.ones((h, w, 1), np.int64), border)
        places = [(slice(s + top + y, s + y + h, stride), slice(s + left + x, s + x + w, stride)) for y, x in around]
        total, k = sum(padded[place] for place in places), sum(there[place] for place in places)
        m = self.t["factorised.regional.weight"][kind] / np.arange(1, 5, dtype=np.float32)[:, None]
        return q16(total, m[k[:, :, 0] - 1])

    # "The decoder, layer by layer".

    def features(self, z: dict[str, Array]) -> dict[str, Any]:
        phi: dict[str, Any] = {}
        operands = {}
        for name, value in z.items():
            gain = self.gain(-self.at_quality(f"factorised.{name}.log2_gain"))
            operands[name] = q16(value, gain.reshape(value.shape[1:] if name == "global" else -1))
        x = depth_to_space(self.wide_linear(operands["regional"], "hyper.regional.synthesis_in"), 2)
        x = self.operand8(self.block(x, "hyper.regional.synthesis_block"))
        x = self.operand8(depth_to_space(self.linear_add(x, "hyper.regional.synthesis_up"), 2))
        phi["regional"] = [self.linear_add(x, f"context.feature.{i}") for i in range(4)]
        if "global" in operands:
            x = self.operand8(self.wide_linear(operands["global"][0], "hyper.global.synthesis_in"))
            phi["global"] = np.split(self.linear_act(x, "hyper.global.synthesis_kv"), 2, -1)
        if "local" in operands:
            x = self.wide_linear(operands["local"], "hyper.local.synthesis_in")
            for i in range(self.config["local_blocks"]):
                x = self.window_block(
                    x, f"hyper.local.synthesis_blocks.attention.{i}", i % 2 * self.config["window"] // 2
                )
                x = self.ffn(x, f"hyper.local.synthesis_blocks.ffn.{i}")
            phi["local"] = self.linear_add(self.operand8(x), "context.local")
        return phi

    def window_block(self, x: Array, name: str, shift: int) -> Array:
        q, k, v = np.split(self.linear_act(self.operand8(x), f"{name}.qkv"), 3, -1)
        tables = self.t[f"{name}.bias"], self.t["tables.softmax"]
        y = window_attention(q, k, v, self.heads, self.config["window"], shift, self.score, *tables)
        return self.linear_add(y, f"{name}.out", x)

    def token_block(self, x: Array, name: str, keys: Array, values: Array) -> Array:
        q = self.linear_act(self.operand8(x), f"{name}.query")
        y = token_attention(q, keys, values, self.heads, self.score, self.t["tables.softmax"])
        return self.linear_add(y, f"{name}.out", x)

    def parameters(self, i: int, y_hat: Array, phi: dict[str, Any], valid: tuple[int, int]) -> tuple[Array, Array]:
        """Means and rows of step i."""
        c, x = self.config, phi["regional"][i]
        if i:
            known = np.zeros_like(y_hat)
            for earlier in range(i):
                for rows, columns, g in groups(earlier):
                    channels = slice(g * c["latent"] // 4, (g + 1) * c["latent"] // 4)
                    known[rows, columns, channels] = y_hat[rows, columns, channels]
            x = self.wide_linear(q16(known, self.t["latent.operand16"]), f"context.decoded.{i - 1}", x)
        core = f"context.cores.{0 if c['shared'] else i}"
        if c["merge_once"] and "local" in phi:
            x = clamp16(x + phi["local"])
        for context in c["contexts"] if "regional" in c["contexts"] else ("regional", *c["contexts"]):
            if context == "regional":
                x = self.blocks(x, f"{core}.regional_blocks", c["context_blocks"])
            elif context == "global":
                x = self.token_block(x, f"{core}.global_attention", *phi["global"])
                x = self.ffn(x, f"{core}.global_ffn")
            else:
                x = x if c["merge_once"] else clamp16(x + phi["local"])
                x = self.ffn(x, f"{core}.local_ffn")
        return self.head_params(self.operand8(x), f"{core}.heads", i, valid)

    def head_params(self, x: Array, name: str, step: int, valid: tuple[int, int]) -> tuple[Array, Array]:
        h, w, size = *x.shape[:2], self.config["latent"] // 4
        means, rows = np.zeros((h, w, size), np.int32), np.zeros((h, w, size), np.int32)
        gains = self.gain(self.log2).reshape(4, size)
        for down, across, g in groups(step):
            sums = dot(x[down, across], self.t[f"{name}.w"][g]) + self.t[f"{name}.b"][g]
            m = self.t[f"{name}.m"][g]
            means[down, across] = q20(sums[..., :size], m[:size] * gains[g])
            rows[down, across] = (q20(sums[..., size:], m[size:]) + self.offset[g] + 8) >> 4
        rows = np.clip(rows, 0, 127)
        rows[rows < self.skip] = SKIPPED
        rows[valid[0] :] = SKIPPED
        rows[:, valid[1] :] = SKIPPED
        return means, rows.astype(np.uint8)

    def coarseness(self, rows: Array, strength: int) -> Array:
        """c of each site: adaptive.md."""
        first = min(16, rows.shape[2])
        whole = np.where(rows == SKIPPED, self.skip - 1, rows.astype(np.int64))[..., :first]
        a = 16 * whole.sum(2)
        for down, across, g in groups(0):
            a[down, across] -= self.offset[g, :first].sum()
        return np.clip((strength * a + 2048) >> 12, -15, 15)

    def coarser_rows(self, rows: Array, c: Array) -> Array:
        changed = np.clip(rows.astype(np.int64) - c[:, :, None], 0, 127)
        return np.where((rows == SKIPPED) | (changed < self.skip), SKIPPED, changed).astype(np.uint8)

    def steps(
        self,
        take: Callable[..., Array],
        phi: dict[str, Any],
        h: int,
        w: int,
        valid: tuple[int, int],
        strength: int,
    ) -> Array:
        """y_hat, [h, w, channels]."""
        y_hat, size = np.zeros((h, w, self.config["latent"]), np.int32), self.config["latent"] // 4
        inverse = self.t["latent.dequantise"] * self.gain(-self.log2)
        c = coarser = None
        for i in range(4):
            means, rows = self.parameters(i, y_hat, phi, valid)
            if strength and c is None:
                c = self.coarseness(rows, strength)
                coarser = self.gain((8192 * c + 12) // 24)[:, :, None]
            values = 160 * take(rows if c is None else self.coarser_rows(rows, c), True, i == 3)
            values = means + (values if coarser is None else requantise(values, coarser, 1 << 22))
            for down, across, g in groups(i):
                channels = slice(g * size, (g + 1) * size)
                y_hat[down, across, channels] = q16(values[down, across], inverse[channels])
        return y_hat

    def synthesis(self, y_hat: Array) -> Array:
        fine, coarse = self.config["synthesis_blocks"]
        x = self.blocks(y_hat, "synthesis.blocks16", coarse)
        x = depth_to_space(self.wide_linear(x, "synthesis.split"), 2)
        x = self.blocks(x, "synthesis.blocks8", fine)
        return depth_to_space(self.wide_pixels(x, "synthesis.pixels"), 8)

    def preview(self, y_hat: Array, n: int) -> Array:
        return depth_to_space(self.wide_pixels(y_hat, f"preview.{n}"), 16 // n)


def regional_parts(levels: int) -> Iterator[tuple[int | None, int, int, int]]:
    """Kind, first row and column, and distance of the sites of each part."""
    yield None, 0, 0, 1 << levels
    for level in reversed(range(levels)):
        s = 1 << level
        for a, b in ((s, s), (0, s), (s, 0)):
            yield 2 * level + (a != b), a, b, 2 * s


# ---------------------------------------------------------------------------------------------------------------------
# Tiles: bitstream.md. Sites of y_hat of a file with a model.


def cuts(sites: int, count: int) -> list[tuple[int, int]]:
    return list(pairwise(4 * (sites // 4 * i // count) for i in range(count + 1)))


def tiles(h: int, w: int, side: int) -> list[tuple[int, int, int, int]]:
    """Top, bottom, left and right of each tile of h x w sites."""
    a = max(1, (2 * min(h, w) + side) // (2 * side))
    b = max(1, (2 * h * w + side**2 * a) // (2 * side**2 * a))
    down, across = (a, b) if h <= w else (b, a)
    return [(*rows, *columns) for rows in cuts(h, down) for columns in cuts(w, across)]


def tile_streams(stream: bytes, count: int) -> tuple[list[bytes], list[int]]:
    """Streams and digests of the tiles."""
    reader, sizes, digests = Reader(stream), [], []
    for i in range(count):
        digests.append(int.from_bytes(reader.take(4), "little"))
        if i < count - 1:
            sizes.append(reader.leb128())
    streams = [reader.take(size) for size in sizes]
    return [*streams, reader.rest()], digests


def latent(network: Network, file: File, side: int) -> Array:
    """y_hat of the whole picture, verified."""
    h, w = (-(-pixels // 64) * 4 for pixels in (file.height, file.width))
    touched = -(-file.height // 16), -(-file.width // 16)

    def decoded(stream: bytes, h: int, w: int, valid: tuple[int, int]) -> tuple[Array, int]:
        values = Stream(network.t["tables.freq"], network.t["tables.shift"], stream)
        digest = 0

        def take(rows: Array, trellis: bool, last: bool = False) -> Array:
            nonlocal digest
            part = values.part(rows.ravel(), trellis, last)
            digest = zlib.crc32(part.astype("<i2").tobytes(), digest)
            return part.reshape(rows.shape).astype(np.int32)

        phi = network.features(network.hyper(take, h, w, valid))
        y_hat = network.steps(take, phi, h, w, valid, file.strength)
        values.finish()
        return y_hat, digest

    places = tiles(h, w, side)
    if len(places) == 1:
        y_hat, digest = decoded(file.stream, h, w, touched)
    else:
        streams, digests = tile_streams(file.stream, len(places))
        y_hat = np.zeros((h, w, network.config["latent"]), np.int32)
        for (top, bottom, left, right), stream, expected in zip(places, streams, digests, strict=True):
            valid = min(bottom, touched[0]) - top, min(right, touched[1]) - left
            y_hat[top:bottom, left:right], digest = decoded(stream, bottom - top, right - left, valid)
            if digest != expected:
                raise CorruptStreamError("a tile has another digest")
        digest = zlib.crc32(struct.pack(f"<{len(digests)}I", *digests))
    if digest != file.digest:
        raise CorruptStreamError("the values have another digest")
    return y_hat


# ---------------------------------------------------------------------------------------------------------------------
# Binary decisions: exact.md, "Decisions".

KNOTS = (
    22, 28, 36, 47, 60, 77, 98, 126, 162, 208, 267, 342, 439, 562, 720, 922, 1179, 1506, 1921, 2446, 3108, 3938, 4971,
    6249, 7812, 9702, 11955, 14595, 17625, 21025, 24743, 28693, 32768, 36843, 40793, 44511, 47911, 50941, 53581, 55834,
    57724, 59287, 60565, 61598, 62428, 63090, 63615, 64030, 64357, 64614, 64816, 64974, 65097, 65194, 65269, 65328,
    65374, 65410, 65438, 65459, 65476, 65489, 65500, 65508, 65514,
)  # fmt: skip
DIVISORS = (
    2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20, 24, 28, 32, 36, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224,
    256, 320, 384,
)  # fmt: skip
RATES = [65536 // divisor for divisor in DIVISORS]
# Of logits from -2048 on.
S = [left + ((right - left) * i + 32) // 64 for left, right in pairwise(KNOTS) for i in range(64)]
T = [min(bisect_right(S, 16 * q + 7), 4095) - 2048 for q in range(4096)]
Limits = tuple[int, int]
Coin = list[int]  # a, b and n of a probability
Places = dict[tuple[Any, ...], list[int]]  # probabilities, or weights of mixtures, by what they belong to


class Decisions:
    """The range decoder."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.range = data, 4, 0xFFFFFFFF
        self.code = int.from_bytes(data[:4].ljust(4, b"\0"), "big")
        if self.code == self.range:
            raise CorruptStreamError("the first number is too large")

    def bit(self, p: int) -> int:
        bound = self.range * p >> 16
        if self.code < bound:
            self.range, bit = bound, 1
        else:
            self.code, self.range, bit = self.code - bound, self.range - bound, 0
        while self.range < 1 << 24:
            self.code = self.code << 8 | (self.data[self.at] if self.at < len(self.data) else 0)
            self.range, self.at = self.range << 8, self.at + 1
        return bit

    def finish(self) -> None:
        if self.at < len(self.data) or self.data.endswith(b"\0"):
            raise CorruptStreamError("bytes are left over")

    def single(self, coin: Coin, limits: Limits) -> int:
        bit = self.bit(min(65519, max(16, coin[0] + coin[1] >> 1)))
        follow(coin, bit, limits)
        return bit

    def mixed(self, coins: list[Coin], weights: list[int], limits: Limits) -> int:
        logits = [T[a + b >> 5] >> (n < 3) for a, b, n in coins]
        p = S[min(2047, max(-2047, sum(map(mul, weights, logits)) >> 16)) + 2048]
        bit = self.bit(p)
        e = 5 * ((bit << 16) - p)
        for i, coin in enumerate(coins):
            weights[i] += logits[i] * e + 131072 >> 18
            follow(coin, bit, limits)
        return bit


def follow(coin: Coin, bit: int, limits: Limits) -> None:
    a, b, n = coin
    t, (slow, last) = 65535 if bit else 0, limits
    coin[0] = a + ((t - a) * RATES[min(n, slow)] >> 16)
    coin[1] = b + ((t - b) * RATES[n] >> 16)
    coin[2] = min(n + 1, last)


def coin_of(coins: Places, place: tuple[Any, ...]) -> Coin:
    coin = coins.get(place)
    if coin is None:
        coin = coins[place] = [32768, 32768, 0]
    return coin


def weights_of(mixers: Places, place: tuple[Any, ...], n: int) -> list[int]:
    weights = mixers.get(place)
    if weights is None:
        weights = mixers[place] = [{2: 36000, 3: 26000, 4: 22000}[n]] * n
    return weights


def half_octaves(x: int) -> int:
    """half_octaves(x)."""
    n = (x + 1).bit_length()
    return 2 * n - 3 + (x + 1 >> n - 2 & 1) if n > 1 else 0


def clamp(x: int, low: int, high: int) -> int:
    return low if x < low else high if x > high else x


def sign(x: int) -> int:
    return (x > 0) - (x < 0)


def quotient(a: int, b: int) -> int:
    return a // b if a >= 0 else -(-a // b)


# ---------------------------------------------------------------------------------------------------------------------
# Residuals: exact.md.

NO_MISSES = (0,) * 8


class Line:
    """A row of one plane, three columns more on both sides: values, residuals and misses."""

    def __init__(self, width: int, value: int = 0) -> None:
        self.v, self.r = [value] * (width + 6), [0] * (width + 6)
        self.miss: list[Any] = [NO_MISSES] * (width + 6)

    def copy(self, to: int, other: Line, at: int) -> None:
        self.v[to], self.r[to], self.miss[to] = other.v[at], other.r[at], other.miss[at]


class Residuals:
    """The planes of a band."""

    def __init__(self, decisions: Decisions, width: int, channels: int, depth: int, step: int) -> None:
        self.decisions, self.width, self.channels, self.step = decisions, width, channels, step
        self.deep, self.most = depth == 16, (1 << depth) - 1
        self.buckets = 33 if self.deep else 17
        first = [1 << depth - 1, 0, 0]
        self.lines = [[Line(width, first[k]) for _ in range(3)] for k in range(channels)]  # here, up, two rows up
        self.filters = [[0] * 24 for _ in range(channels)]
        self.biases: dict[tuple[Any, ...], int] = {}
        self.coins: Places = {}
        self.mixers: Places = {}
        self.started = False

    def start_row(self) -> None:
        for lines in self.lines:
            above = lines[0]
            here = Line(self.width)
            for i in range(3):
                if self.started:
                    above.copy(self.width + 3 + i, above, self.width + 2)
                here.copy(i, above, 3)
            lines[:] = [here, above, lines[1]]
        self.started = True

    def put(self, x: int, samples: tuple[int, ...]) -> None:
        """A pixel that is coded otherwise."""
        values = samples if self.channels == 1 else (samples[1], samples[0] - samples[1], samples[2] - samples[1])
        for lines, value in zip(self.lines, values, strict=True):
            lines[0].v[x + 3] = value

    def leave_out(self, x: int) -> None:
        """A pixel that is not coded."""
        for lines in self.lines:
            lines[0].v[x + 3] = lines[0].v[x + 2]

    def pixel(self, x: int, noise: int) -> tuple[int, ...]:
        """The samples of the next pixel."""
        values: list[int] = []
        before = (0, 0)  # residuals of the plane before, and of the one before that
        for k in range(self.channels):
            before = self.sample(k, x, before, values, noise), before[0]
        if self.channels == 3:
            values = [values[0] + values[1], values[0], values[0] + values[2]]
        if self.step > 1:
            values = [clamp(value, 0, self.most) for value in values]
        if min(values) < 0 or max(values) > self.most:
            raise CorruptStreamError("a sample is out of range")
        return tuple(values)

    def sample(self, k: int, x: int, before: tuple[int, int], values: list[int], noise: int) -> int:
        """Decode the value of plane k, and return its residual."""
        at = x + 3
        here, up, up2 = self.lines[k]
        v, u, uu = here.v, up.v, up2.v
        w, n, nw, ne, ww, nn, nne = v[at - 1], u[at], u[at - 1], u[at + 1], v[at - 2], uu[at], uu[at + 1]
        predictors = (
            8 * sorted((w, n, w + n - nw))[1],
            8 * (w + n - nw),
            4 * w + 4 * n + 2 * ne - 2 * nw,
            8 * (w + ne - n),
            12 * n - 4 * nn + 4 * w - 4 * nw,
            12 * w - 4 * ww + 2 * ne - 2 * n,
            8 * (n + ne - nne),
            2 * w + 2 * n + nw + ne + ww + nn,
        )
        missed = here.miss[at - 1], up.miss[at], up.miss[at - 1], up.miss[at + 1], here.miss[at - 2], up2.miss[at]
        total = [2 * a + 2 * b + c + d + e + f for a, b, c, d, e, f in zip(*missed, strict=True)]
        h = max(0, min(total).bit_length() - 5)
        shares = [65536 // (min(255, m >> h) ** 2 + 8) for m in total]
        blend = quotient(sum(map(mul, shares, predictors)), sum(shares))

        b = blend + 4 >> 3
        taps = [t - b for t in (w, n, nw, ne, ww, nn, nne, u[at + 2], v[at - 3], u[at - 3], u[at + 3], u[at - 2])]
        taps += [t - b for t in (uu[at - 1], uu[at + 2], uu[at - 2])]
        taps.append(0)
        for value, (line, above, _) in zip(values, self.lines, strict=False):
            taps += [value - t for t in (line.v[at - 1], above.v[at], above.v[at - 1], above.v[at + 1])]
        taps = [clamp(t, -16383, 16383) for t in taps] + [0] * (24 - len(taps))
        span, weights = self.most if k else 0, self.filters[k]
        filtered = clamp(blend + (sum(map(mul, taps, weights)) >> 11), -8 * span, 8 * self.most)

        rw, rn = here.r[at - 1], up.r[at]
        activity = 2 * (abs(before[0]) + abs(rw) + abs(rn)) + abs(up.r[at - 1]) + abs(up.r[at + 1])
        level = min(43, half_octaves(activity + abs(w - nw) + abs(n - nw) + abs(n - ne)))
        middle = filtered >> 3
        above_it = w > middle, n > middle, nw > middle, ne > middle, nn > middle, ww > middle
        place = (k, min(15, 5 * level // 8), *above_it, before[0] > 0)
        bias = self.biases.get(place, 0)
        sharp = filtered + (bias >> 8) + 4
        prediction, part = clamp(sharp >> 3, -span, self.most), sharp & 7

        expected = prediction + (values[0] if k else 0)
        r = self.residual(k, level, part, before, rw, rn, noise, prediction & 511, expected & 511, abs(n - ne))
        value = prediction + self.step * r
        if not -span - self.step // 2 <= value <= self.most + self.step // 2:
            raise CorruptStreamError("a value is out of range")

        values.append(value)
        shift = 4 if self.deep else 0
        v[at], here.r[at] = value, r
        here.miss[at] = [min(4095, abs(8 * value - p) >> shift) for p in predictors]
        wrong, pulls = 8 * value - filtered, 2047 if self.deep else 32767
        self.biases[place] = bias + (256 * wrong - bias >> 7)
        limit = 8 * self.most + 7
        pull = quotient(49152 * clamp(wrong, -limit, limit), 32 + sum(map(mul, taps, taps)))
        pull = clamp(pull, -pulls, pulls)
        self.filters[k] = [
            clamp(weight, -24000, 24000) + (t * pull + 2048 >> 12) for weight, t in zip(weights, taps, strict=True)
        ]
        return r

    def residual(
        self,
        k: int,
        level: int,
        part: int,
        before: tuple[int, int],
        rw: int,
        rn: int,
        noise: int,
        d: int,
        e: int,
        edge: int,
    ) -> int:
        """The residual of the page, with its words expected (d) and sum (e), and edge = abs(n - ne)."""
        other = noise if k == 0 else min(7, half_octaves(abs(before[0])))
        if k == 2:
            other = min(7, half_octaves(2 * abs(before[0]) + abs(before[1])))
        coarse = min(7, level // 2)
        flat = min(7, half_octaves(edge) // 2) if k == 0 else other
        around = min(15, half_octaves(abs(rw))), min(15, half_octaves(abs(rn)))
        contexts: list[tuple[Any, ...]] = [
            ("level", k, level, other),
            ("around", k, *around, flat),
            ("expected", k, coarse, d),
            ("sample", k, min(31, level), abs(part - 4)) if k == 0 else ("sample", k, coarse, e),
        ]

        def decide(node: int) -> int:
            coins = [coin_of(self.coins, (*context, node)) for context in contexts]
            weights = weights_of(self.mixers, (k, min(11, level // 2), node), 4)
            return self.decisions.mixed(coins, weights, (18, 31))

        many, c = self.buckets, max(0, 2 * coarse - 7)
        if c == 0 or decide(many + 7 + c // 2):
            bucket = c
            while bucket < many - 1 and not decide(bucket):
                bucket += 1
        else:
            bucket = c - 1
            while bucket > 0 and not decide(many + bucket):
                bucket -= 1
        m = bucket if bucket < 3 else self.digits(k, level, d, bucket) - 1
        if m == 0:
            return 0
        near = min(15, m)
        signs = sign(rw), sign(rn), sign(before[0]) if k else 0
        coins = [
            coin_of(self.coins, ("sign", k, *signs, min(15, level // 2), part)),
            coin_of(self.coins, ("sign expected", k, d, near)),
            coin_of(self.coins, ("sign sample", k, e, near)),
        ]
        weights = weights_of(self.mixers, ("sign", k, min(7, bucket)), 3)
        return m if self.decisions.mixed(coins, weights, (18, 31)) else -m

    def digits(self, k: int, level: int, d: int, bucket: int) -> int:
        """m + 1 of a bucket of 3 or more."""
        number = 2 | bucket - 1 & 1
        for i in range((bucket - 1) // 2):
            if i < 2:
                node = 0 if i == 0 else 1 + (number & 1)
                coins = [
                    coin_of(self.coins, ("digit", k, bucket, level, node)),
                    coin_of(self.coins, ("digit expected", k, d, bucket, node)),
                ]
                bit = self.decisions.mixed(coins, weights_of(self.mixers, ("digit", k), 2), (18, 31))
            else:
                bit = self.decisions.bit(32768)
            number = number << 1 | bit
        return number


# ---------------------------------------------------------------------------------------------------------------------
# Candidates and bands: exact.md.

WORD = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
NEIGHBOURS = (
    (-1, 0), (0, -1), (-1, -1), (1, -1), (-2, 0), (0, -2), (-3, 0), (-2, -1), (2, -1), (-1, -2), (1, -2), (0, -3),
    (2, -2), (-2, -2), (-4, 0), (-3, -1), (3, -1), (-5, 0), (-4, -1), (4, -1), (-6, 0), (-5, -1), (5, -1), (-7, 0),
    (-6, -1), (6, -1), (-8, 0), (-7, -1), (7, -1), (0, -4), (0, -5), (0, -6), (0, -7), (-3, -3), (3, -3), (-5, -5),
    (5, -5),
)  # fmt: skip
CONTEXTS = (1, 2, 4, 6, 14, 37)
FACTORS = [GOLDEN]
while len(FACTORS) < len(NEIGHBOURS):
    FACTORS.append((FACTORS[-1] * 0xD1342543DE82EF95 + 2) & WORD)
TRUST = (0, 0, 1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 5)
FIRST, LATER, RESIDUAL = range(3)


def scrambled(x: int) -> int:
    """scrambled(x)."""
    x = (x ^ x >> 32) * GOLDEN & WORD
    return x ^ x >> 29


def hashed(a: int, b: int, n: int) -> int:
    """hashed(a, b, n)."""
    return (scrambled(a * FACTORS[0] + b * FACTORS[1] & WORD) * GOLDEN & WORD) >> 64 - n


class Band:
    """One band of a stream."""

    def __init__(self, data: bytes, height: int, width: int, channels: int, depth: int, mode: int) -> None:
        self.decisions, self.height, self.width = Decisions(data), height, width
        self.channels, self.depth, self.candidates, self.index = channels, depth, mode & 1, mode >> 1 & 1
        self.planes = Residuals(self.decisions, width, channels, depth, 2 * (mode >> 2) + 1)
        digits = (height * width).bit_length()
        self.hash_bits, self.slot_bits = min(18, max(12, digits + 1)), min(16, max(10, digits))
        self.none = 1 << 3 * depth
        self.outside = self.none + 1
        self.colours = [[self.outside] * (width + 20) for _ in range(8)]  # of this row and seven above
        self.kinds = [[FIRST] * (width + 20) for _ in range(2)]
        self.slots: list[dict[int, list[int]]] = [{} for _ in CONTEXTS]  # first, second, check, trust
        self.coins: Places = {}
        self.mixers: Places = {}
        self.runs = [0] * width
        self.known: list[int] = []

    def decode(self, inside: Array | None) -> Array:
        """Samples [height, width, channels]; `inside` are the pixels that are coded."""
        samples = np.zeros((self.height, self.width, self.channels), np.int64)
        for y in range(self.height):
            self.planes.start_row()
            self.colours = [[self.outside] * (self.width + 20), *self.colours[:-1]]
            self.kinds = [[FIRST] * (self.width + 20), self.kinds[0]]
            for x in range(self.width):
                if inside is not None and not inside[y, x]:
                    self.planes.leave_out(x)
                elif self.candidates:
                    samples[y, x] = self.pixel(x)
                else:
                    samples[y, x] = self.planes.pixel(x, 0)
        self.decisions.finish()
        return samples

    def mixed(self, kind: str, places: list[tuple[Any, ...]], mixer: int, limits: Limits) -> int:
        coins = [coin_of(self.coins, (kind, i, *place)) for i, place in enumerate(places)]
        return self.decisions.mixed(coins, weights_of(self.mixers, (kind, mixer), len(coins)), limits)

    def pixel(self, x: int) -> tuple[int, ...]:
        at, rows, outside = x + 10, self.colours, self.outside
        w, n, nw, ne = rows[0][at - 1], rows[1][at], rows[1][at - 1], rows[1][at + 1]
        ww, nn, nee = rows[0][at - 2], rows[2][at], rows[1][at + 2]
        if w == outside:
            w = n if n != outside else nw if nw != outside else ne
        n, ww = w if n == outside else n, w if ww == outside else ww
        nw, ne, nn = (n if colour == outside else colour for colour in (nw, ne, nn))
        flat = w != outside and w == n == nw == ne == ww == nn and nee in (w, outside)
        kind, hit = FIRST, 0
        if flat:
            far = sum((rows[-dy][at + dx] == w) << i for i, (dx, dy) in enumerate(((0, -3), (3, -1), (-3, 0), (1, -2))))
            hit = self.mixed("flat", [(far, self.runs[x]), (hashed(w, far, 14),)], 0, (17, 29))
            self.runs[x] = min(63, self.runs[x] + 1) if hit else 0
        else:
            self.runs[x] = 0
        colour = w
        if not hit:
            orders = self.orders(at)
            slots = [table.get(order >> 64 - self.slot_bits) for table, order in zip(self.slots, orders, strict=True)]
            slots = [
                slot if slot and slot[2] == order & 0xFFFF else None for slot, order in zip(slots, orders, strict=True)
            ]
            colour, kind = self.unlike(x, w, n, nw, ne, ww, nn, flat, orders, slots)
            self.learn(colour, orders, slots)
        rows[0][at], self.kinds[0][at] = colour, kind
        samples = tuple(colour >> self.depth * k & (1 << self.depth) - 1 for k in reversed(range(self.channels)))
        if kind != RESIDUAL:
            self.planes.put(x, samples)
        return samples

    def orders(self, at: int) -> list[int]:
        """Hashes of the contexts."""
        out, total, done = [], 0, 0
        for i, end in enumerate(CONTEXTS):
            for j in range(done, end):
                dx, dy = NEIGHBOURS[j]
                total += self.colours[-dy][at + dx] * FACTORS[j]
            out.append(scrambled(total + i & WORD))
            done = end
        return out

    def unlike(
        self,
        x: int,
        w: int,
        n: int,
        nw: int,
        ne: int,
        ww: int,
        nn: int,
        flat: bool,
        orders: list[int],
        slots: list[Any],
    ) -> tuple[int, int]:
        """Colour and kind of a pixel that is not like all around it."""
        here, up, at = *self.kinds, x + 10
        residual = [kind == RESIDUAL for kind in (here[at - 1], up[at], up[at + 1], up[at - 1])]
        noise, history = sum(residual), residual[0] + 2 * residual[1]
        longest = max((i for i, slot in enumerate(slots) if slot), default=-1)
        proposed = [slot[0] for slot in slots[::-1] if slot] + [slot[1] for slot in slots[:0:-1] if slot]
        proposed += [w, n, ne, nw]
        candidates = list(dict.fromkeys(c for c in proposed if c < self.none and not (flat and c == w)))[:8]

        skipped = 0
        if noise == 4:
            coin = coin_of(self.coins, ("skip", min(63, len(self.known) >> 6)))
            skipped = self.decisions.single(coin, (11, 29))
        trust = TRUST[min(21, slots[longest][3])] if longest >= 0 else 0
        pattern = sum(alike << i for i, alike in enumerate((w == n, w == nw, n == ne, n == nw, w == ww, n == nn)))
        for i, candidate in enumerate([] if skipped else candidates):
            agree = sum(slot is not None and slot[0] == candidate for slot in slots)
            same = sum((candidate == colour) << j for j, colour in enumerate((w, n, ne, nw)))
            places: list[tuple[Any, ...]] = [
                (i, longest, trust, agree, history, noise == 4),
                (i, pattern, same, noise),
                (hashed(orders[2], candidate * 8 + i, self.hash_bits),),
            ]
            if self.mixed("candidate", places, 7 * i + longest + 1, (12, 26)):
                return candidate, LATER if i else FIRST
        if self.index and not skipped:
            coin = coin_of(self.coins, ("known", noise, min(7, len(self.known) >> 4)))
            if self.decisions.single(coin, (11, 29)):
                return self.by_number(w, n, nw, orders), LATER
        colour = 0
        for sample in self.planes.pixel(x, noise):
            colour = colour << self.depth | sample
        if self.index and len(self.known) < 4096 and colour not in self.known:
            self.known.append(colour)
        return colour, RESIDUAL

    def by_number(self, w: int, n: int, nw: int, orders: list[int]) -> int:
        bits, node = max(1, len(self.known) - 1).bit_length(), 1
        for i in reversed(range(bits)):
            hashes = [(hashed(c, node, self.hash_bits),) for c in (w, orders[1], 3 * n + nw)]
            node = node << 1 | self.mixed("number", [(node,), *hashes], i, (12, 26))
        number = node - (1 << bits)
        if number >= len(self.known):
            raise CorruptStreamError("a colour that there is not")
        return self.known[number]

    def learn(self, colour: int, orders: list[int], slots: list[Any]) -> None:
        for table, order, slot in zip(self.slots, orders, slots, strict=True):
            if slot is None:
                table[order >> 64 - self.slot_bits] = [colour, self.none, order & 0xFFFF, 1]
            elif slot[0] == colour:
                slot[3] = min(60, slot[3] + 1)
            elif slot[3] > 1:
                slot[1], slot[3] = colour, slot[3] >> 1
            else:
                slot[0], slot[1] = colour, slot[0]


def exact_numbers(reader: Reader, mode: int, shape: tuple[int, int, int], depth: int, inside: Array | None) -> Array:
    """Sizes and bands of a stream."""
    height, width, channels = shape
    count = max(1, min(height * width >> (23 if mode & 1 else 20), height, 64))
    ends = [height * b // count for b in range(count + 1)]
    sizes = [reader.leb128() for _ in range(count - 1)]
    bands = [*(reader.take(size) for size in sizes), reader.rest()]
    out = []
    for (top, bottom), data in zip(pairwise(ends), bands, strict=True):
        band = Band(data, bottom - top, width, channels, depth, mode)
        out.append(band.decode(None if inside is None else inside[top:bottom]))
    return np.concatenate(out)


def exact_samples(
    stream: bytes, shape: tuple[int, int, int], depth: int, digest: int, inside: Array | None = None
) -> Array:
    """exact.md, "Stream"."""
    reader = Reader(stream, cut=CorruptStreamError)
    mode = reader.byte()
    if mode & 3 == 2 or (mode & 1 and mode >> 2):
        raise CorruptStreamError("no such mode")
    factor, offset, bits = 1, 0, 8
    if depth == 16:
        factor, offset = reader.leb128(), reader.leb128()
        if not (1 <= factor <= 65535 and offset <= 65535):
            raise CorruptStreamError("no such grid")
        bits = 8 if (65535 - offset) // factor < 256 else 16
    samples = factor * exact_numbers(reader, mode, shape, bits, inside) + offset
    if samples.max() >> depth:
        raise CorruptStreamError("a sample is out of range")
    samples = samples.astype("<u2" if depth == 16 else "u1")
    if zlib.crc32(samples.tobytes()) != digest:
        raise CorruptStreamError("the samples have another digest")
    return samples


# ---------------------------------------------------------------------------------------------------------------------
# layer.md.


def read_layer(payload: bytes, height: int, width: int, channels: int) -> tuple[Array, Array]:
    """Samples of a layer, and which pixels it has, bool [H, W, 1]."""
    reader = Reader(payload, cut=CorruptStreamError)
    digest = int.from_bytes(reader.take(4), "little")
    count, size = reader.leb128(), reader.leb128()
    decisions, coins = Decisions(reader.take(size)), [[32768, 32768, 0] for _ in range(8)]
    rows, columns = -(-height // 16), -(-width // 16)
    blocks = np.zeros((rows + 1, columns + 2), np.int64)  # a row above, and a column on each side
    for y in range(1, rows + 1):
        for x in range(1, columns + 1):
            context = blocks[y, x - 1] + 2 * blocks[y - 1, x] + 4 * blocks[y - 1, x + 1]
            blocks[y, x] = decisions.single(coins[context], (11, 29))
    decisions.finish()
    if count == 0 or blocks.sum() != count:
        raise CorruptStreamError("another number of blocks")
    inside = np.kron(blocks[1:, 1:-1], np.ones((16, 16), np.int64))[:height, :width] == 1
    return exact_samples(reader.rest(), (height, width, channels), 8, digest, inside), inside[:, :, None]


# ---------------------------------------------------------------------------------------------------------------------
# Pictures.


class Decoder:
    """Decodes files.

    Args:
        weights: path of a weights file; without one, exact files alone are decoded.
        tile: side of tiles in sites. Files have 144; tests have smaller ones.
    """

    def __init__(self, weights: str | Path | None = None, tile: int = 144) -> None:
        self.path, self.tile = weights, tile

    @cached_property
    def weights(self) -> Weights | None:
        return None if self.path is None else Weights(Path(self.path).read_bytes())

    def decode(self, data: bytes, reduce: int = 1, max_pixels: int = MAX_PIXELS) -> Array:
        """The picture of a file, or a preview of it.

        Returns:
            uint8, or uint16 of 16 bits, [H, W, 3]; with alpha as a fourth channel. Planes of a gray picture are equal.
        """
        file = parse(data, max_pixels)
        picture = self.exact(file, reduce) if file.exact else self.modelled(file, reduce)
        if ALPHA in file.sections:
            reader = Reader(file.sections[ALPHA], cut=CorruptStreamError)
            digest = int.from_bytes(reader.take(4), "little")
            alpha = exact_samples(reader.rest(), (file.height, file.width, 1), file.depth, digest)
            picture = np.concatenate([picture, alpha if reduce == 1 else box_mean(alpha, reduce)], 2)
        return picture.astype(np.uint16 if file.depth == 16 else np.uint8)

    def exact(self, file: File, reduce: int) -> Array:
        samples = exact_samples(file.stream, (file.height, file.width, file.channels), file.depth, file.digest)
        samples = np.broadcast_to(samples, (file.height, file.width, 3))
        return samples if reduce == 1 else box_mean(samples, reduce)

    def modelled(self, file: File, reduce: int) -> Array:
        if self.weights is None or self.weights.model != file.model:
            raise UnknownModelError(f"model {file.model.hex()}")
        network = Network(self.weights, file.quality)
        y_hat = latent(network, file, self.tile)
        of_latent = reduce > 1 and f"preview.{reduce}.w" in network.t
        if of_latent:
            picture = network.preview(y_hat, reduce)[: -(-file.height // reduce), : -(-file.width // reduce)]
        else:
            picture = network.synthesis(y_hat)[: file.height, : file.width]
            if file.coefficients:
                picture = restore(picture, file.coefficients)
        picture = luma(picture) if file.gray else picture
        if LAYER in file.sections:
            samples, inside = read_layer(file.sections[LAYER], file.height, file.width, file.channels)
            if of_latent:
                samples, inside = box_mean(samples, reduce), inside[::reduce, ::reduce]
            picture = np.where(inside, samples, picture)
        return picture if reduce == 1 or of_latent else box_mean(picture, reduce)


def main() -> None:
    path, *weights = sys.argv[1:]
    decoder = Decoder(*weights)
    try:
        picture = decoder.decode(Path(path).read_bytes())
    except DcaError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    height, width, channels = picture.shape
    samples = picture.astype(picture.dtype.newbyteorder("<")).tobytes()
    print(f"{width} x {height} x {channels} {picture.dtype.name} {hashlib.sha256(samples).hexdigest()}")


if __name__ == "__main__":
    main()
