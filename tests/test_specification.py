"""A second decoder, written from docs/spec/ over the reference's operations, reads files of the codec.

It shares neither container, program nor walk with the package: what the pages leave out is missing here.
"""

import hashlib
import json
import re
import struct
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from dca_fast import Codec
from dca_fast.config import Part
from dca_fast.entropy.rans import Decoder
from dca_fast.entropy.tables import Tables
from dca_fast.exact import decisions
from dca_fast.exact import reference as exact
from dca_fast.ops import DepthBlockParams, Depthwise, GatedFfnParams, Head, Linear, TokenParams, WindowParams, reference
from dca_fast.testing import page, photograph

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "dca_fast" / "data" / "dca-s.safetensors"
GOLDEN = ROOT / "tests" / "golden" / "photograph.dca"


class File:
    """docs/spec/bitstream.md: the header and where the stream lies."""

    def __init__(self, data: bytes) -> None:
        assert data[:6] == b"\x89DCA\r\n"
        assert zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "little")
        self.version, flags = data[6:8]
        assert self.version == 10
        self.gray, sections, filtered, self.strength = bool(flags & 1), flags & 2, flags & 4, flags >> 4
        self.exact = bool(flags & 8)
        assert not self.exact or (data[8:12] == bytes(4) and not filtered and self.strength <= 1)
        at = 12
        self.width, at = leb128(data, at)
        self.height, at = leb128(data, at)
        self.quality, digest = struct.unpack_from("<HI", data, at)
        header, at = data[: at + 2], at + 6
        self.coefficients: list[int] = []
        if filtered:
            header, at = header + data[at : (end := self.read_filter(data, at))], end
        self.digest = digest ^ zlib.crc32(header)
        self.layer = b""
        if sections:
            while data[at]:
                size, start = leb128(data, at + 1)
                if data[at] == 5:
                    self.layer = data[start : start + size]
                at = start + size
            at += 1
        assert not (self.exact and self.layer)
        self.stream = data[at:-4]

    def read_filter(self, data: bytes, at: int) -> int:
        first = data[at]
        rings, k, s = first & 3, first >> 2 & 7, first >> 5
        bits = (byte >> i & 1 for byte in data[at + 1 :] for i in range(8))
        used = 0
        for _ in range(18 * rings):
            high = 0
            while next(bits):
                high += 1
            u = high << k | sum(next(bits) << i for i in range(k))
            used += high + 1 + k
            self.coefficients.append((-(u + 1) // 2 if u & 1 else u // 2) << s)
        return at + 1 + -(-used // 8)


def leb128(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


class Network:
    """docs/spec/numerics.md, from "Dependence on the quality" on."""

    def __init__(self, path: Path, quality: int) -> None:
        with safe_open(str(path), "np") as file:
            facts = json.loads(file.metadata()["dca_fast"])
            self.t: dict[str, np.ndarray] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.config, self.skip, self.quality = facts["config"], facts["skip"], quality
        self.tables = Tables(self.t["tables.freq"].astype(np.uint16), self.t["tables.shift"])
        self.log2 = self.at_quality(self.t["latent.log2_gain"])
        head = self.config["context_width"] // self.config["heads"]
        self.score = float(np.float32(16 / (256 * np.sqrt(head))))
        self.softmax = torch.from_numpy(self.t["tables.softmax"])

    def at_quality(self, knots: np.ndarray) -> np.ndarray:
        p = 8 * self.quality
        i = min(p // 10000, 7)
        f = p - 10000 * i
        low, high = knots[i].astype(np.int64), knots[i + 1].astype(np.int64)
        return (low * (10000 - f) + high * f + 5000) // 10000

    def gain(self, log2: np.ndarray) -> np.ndarray:
        return np.ldexp(self.t["tables.exp2"][log2 % 4096], log2 // 4096).astype(np.float32)

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.t[name])

    def linear(self, name: str) -> Linear:
        bias = self.t[f"{name}.b"].astype(np.int64)
        if f"{name}.slope" in self.t:
            bias = bias + (self.t[f"{name}.slope"].astype(np.int64) * (self.quality - 5000) + 2500) // 5000
        return Linear(self.tensor(f"{name}.w"), torch.from_numpy(bias.astype(np.int32)), self.tensor(f"{name}.m"))

    def operand(self, x: Tensor) -> Tensor:
        return reference.operand8(x, self.sixteenth(x))

    @staticmethod
    def sixteenth(x: Tensor) -> Tensor:
        return torch.full((x.shape[-1],), 1 / 16)

    def ffn(self, x: Tensor, name: str) -> Tensor:
        expand, project = self.linear(f"{name}.expand"), self.linear(f"{name}.project")
        return reference.gated_ffn(x, GatedFfnParams(self.tensor(f"{name}.m_in"), expand, 1 / 16, project))

    def block(self, x: Tensor, name: str) -> Tensor:
        p = f"{name}.depth"
        depthwise = Depthwise(*(self.tensor(f"{p}.depthwise.{key}") for key in "wbm"))
        expand, project = self.linear(f"{p}.expand"), self.linear(f"{p}.project")
        x = reference.depth_block(x, DepthBlockParams(self.tensor(f"{p}.m_in"), expand, depthwise, project))
        return self.ffn(x, f"{name}.ffn")

    def rows(self, name: str, kind: int | None) -> np.ndarray:
        log2 = self.at_quality(self.t[f"factorised.{name}.log2_scale"])
        if kind is not None:
            log2 = log2 + self.t[f"factorised.{name}.log2_wider"][kind]
        rows = ((log2 + 13607) * 12 + 2048) // 4096
        return np.where(rows < self.skip, 255, rows.clip(0, 127)).astype(np.uint8)

    def features(self, z: dict[str, Tensor]) -> dict[str, Any]:
        """The table "Features"."""
        for name in z:
            inverse = torch.from_numpy(self.gain(-self.at_quality(self.t[f"factorised.{name}.log2_gain"])))
            z[name] = reference.operand16(z[name].reshape(1, -1, len(inverse)), inverse).view(z[name].shape)
        x = reference.wide_linear(z["regional"], self.linear("hyper.regional.synthesis_in"))
        x = self.block(reference.depth_to_space2(x), "hyper.regional.synthesis_block")
        x = reference.linear_add(self.operand(x), self.linear("hyper.regional.synthesis_up"))
        x = self.operand(reference.depth_to_space2(x))
        regional = [reference.linear_add(x, self.linear(f"context.feature.{i}")) for i in range(4)]
        x = reference.wide_linear(z["global"], self.linear("hyper.global.synthesis_in"))
        tokens = reference.linear_act(self.operand(x), self.linear("hyper.global.synthesis_kv"), False).chunk(2, -1)
        x = reference.wide_linear(z["local"], self.linear("hyper.local.synthesis_in"))
        for i in range(self.config["local_blocks"]):
            p, window = f"hyper.local.synthesis_blocks.attention.{i}", self.config["window"]
            shape = self.config["heads"], window, window // 2 if i % 2 else 0
            attention = (*shape, self.score, self.tensor(f"{p}.bias"), self.softmax)
            ends = self.linear(f"{p}.qkv"), self.linear(f"{p}.out")
            x = reference.window_block(x, WindowParams(self.sixteenth(x), ends[0], *attention, ends[1]))
            x = self.ffn(x, f"hyper.local.synthesis_blocks.ffn.{i}")
        local = reference.linear_add(self.operand(x), self.linear("context.local"))
        return {"regional": regional, "global": tokens, "local": local}

    def parameters(self, i: int, y_hat: Tensor, phi: dict[str, Any], valid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Means and rows of step i."""
        x = phi["regional"][i]
        if i:
            layer = self.linear(f"context.decoded.{i - 1}")
            x = reference.decoded_linear(y_hat, self.tensor("latent.operand16"), layer, x, i)
        core = f"context.cores.{0 if self.config['shared'] else i}"
        for context in self.config["contexts"]:
            if context == "regional":
                for j in range(self.config["context_blocks"]):
                    x = self.block(x, f"{core}.regional_blocks.{j}")
            elif context == "global":
                ends = self.linear(f"{core}.global_attention.query"), self.linear(f"{core}.global_attention.out")
                heads = self.config["heads"]
                p = TokenParams(self.sixteenth(x), ends[0], heads, self.score, self.softmax, ends[1])
                x = self.ffn(reference.token_block(x, *phi["global"], p), f"{core}.global_ffn")
            else:
                x = self.ffn(reference.add(x, phi["local"]), f"{core}.local_ffn")
        return reference.head_params(self.operand(x), self.head(f"{core}.heads"), i, self.skip, valid)

    def head(self, name: str) -> Head:
        groups = self.gain(self.log2).reshape(4, -1)
        means, scales = np.split(self.t[f"{name}.m"], 2, 1)
        numbers = means * groups, np.ascontiguousarray(scales), self.offset()
        return Head(self.tensor(f"{name}.w"), self.tensor(f"{name}.b"), *map(torch.from_numpy, numbers))

    def offset(self) -> np.ndarray:
        return (((self.log2 + 13607) * 192 + 2048) // 4096).reshape(4, -1).astype(np.int32)

    def synthesis(self, x: Tensor) -> Tensor:
        fine, coarse = self.config["synthesis_blocks"]
        for i in range(coarse):
            x = self.block(x, f"synthesis.blocks16.{i}")
        x = reference.depth_to_space2(reference.wide_linear(x, self.linear("synthesis.split")))
        for i in range(fine):
            x = self.block(x, f"synthesis.blocks8.{i}")
        return reference.image_from_patches(reference.wide_pixels(x, self.linear("synthesis.pixels")))


def parts(levels: int) -> Iterator[Part]:
    """Parts of the regional latent: docs/spec/numerics.md, "Hyper latents"."""
    yield Part(None, 0, 0, 2**levels)
    for reach in (2**level for level in reversed(range(levels))):
        for a, b in ((reach, reach), (0, reach), (reach, 0)):
            kind = 2 * (reach.bit_length() - 1) + (a != b)
            yield Part(kind, a, b, 2 * reach)


def exact_colours(file: File) -> np.ndarray:
    """docs/spec/exact.md."""
    stream, factor, least = file.stream, 1, 0
    if file.strength:
        factor, at = leb128(stream, 1)
        least, at = leb128(stream, at)
        stream = stream[:1] + stream[at:]
    depth = 8 if not file.strength or (65535 - least) // factor < 256 else 16
    numbers = exact.decode(stream, file.height, file.width, 1 if file.gray else 3, depth)
    samples = (numbers.astype(np.int64) * factor + least).astype("<u2" if file.strength else "u1")
    assert zlib.crc32(samples.tobytes()) == file.digest
    return np.broadcast_to(samples, (file.height, file.width, 3))


def with_layer(file: File, picture: np.ndarray) -> np.ndarray:
    """docs/spec/layer.md."""
    count, at = leb128(file.layer, 4)
    size, at = leb128(file.layer, at)
    coder, bits = decisions.Decoder(file.layer[at : at + size]), [decisions.Coin() for _ in range(8)]
    rows, columns = -(-file.height // 16), -(-file.width // 16)
    blocks = np.zeros((rows + 1, columns + 2), bool)  # with a row above and a column on each side
    for y in range(1, rows + 1):
        for x in range(1, columns + 1):
            context = blocks[y, x - 1] + 2 * blocks[y - 1, x] + 4 * blocks[y - 1, x + 1]
            blocks[y, x] = decisions.single(coder, 0, bits[context], (11, 29))
    blocks = blocks[1:, 1:-1]
    assert coder.finished
    assert blocks.sum() == count
    channels = 1 if file.gray else 3
    samples = exact.decode(file.layer[at + size :], file.height, file.width, channels, 8, blocks)
    assert zlib.crc32(samples.tobytes()) == int.from_bytes(file.layer[:4], "little")
    here = np.kron(blocks, np.ones((16, 16), bool))[: file.height, : file.width, None]
    return np.where(here, samples, picture)


def cuts(sites: int, count: int) -> list[tuple[int, int]]:
    """Where so many tiles of a side begin and end."""
    ends = [sites // 4 * i // count * 4 for i in range(count + 1)]
    return list(pairwise(ends))


def tiles(h: int, w: int, side: int = 144) -> list[tuple[int, int, int, int]]:
    """docs/spec/bitstream.md, "Tiles": top, bottom, left and right of each, in latent sites."""
    short = max(1, (2 * min(h, w) + side) // (2 * side))
    area = short * side * side
    long = max(1, (2 * h * w + area) // (2 * area))
    down, across = (short, long) if h <= w else (long, short)
    return [(*rows, *columns) for rows in cuts(h, down) for columns in cuts(w, across)]


def streams(stream: bytes, count: int) -> tuple[list[bytes], list[int]]:
    """Those of the tiles, and their digests."""
    found, sizes, at = [], [], 0
    for i in range(count):
        found.append(int.from_bytes(stream[at : at + 4], "little"))
        at += 4
        if i < count - 1:
            size, at = leb128(stream, at)
            sizes.append(size)
    out = []
    for size in [*sizes, len(stream) - at - sum(sizes)]:
        assert size > 0
        out.append(stream[at : at + size])
        at += size
    return out, found


def walk(net: Network, file: File, stream: bytes, h: int, w: int, valid: tuple[int, int]) -> tuple[Tensor, int]:
    """A picture or a tile of one: its y_hat, and the digest of its values."""
    config, decoder, digest = net.config, Decoder(net.tables, stream), 0

    def take(rows: np.ndarray, trellis: bool) -> Tensor:
        nonlocal digest
        values = decoder.decode(np.ascontiguousarray(rows).ravel(), trellis)
        digest = zlib.crc32(values.astype("<i2").tobytes(), digest)
        return torch.from_numpy(values.reshape(rows.shape))

    z = {}
    rows = net.rows("global", None).reshape(1, config["tokens"], -1)
    z["global"] = (256 * take(rows, False).int()).clamp(-32767, 32767).short()
    rows = np.broadcast_to(net.rows("local", None), (1, h, w, config["local"])).copy()
    rows[:, valid[0] :] = rows[:, :, valid[1] :] = 255
    z["local"] = (256 * take(rows, False).int()).clamp(-32767, 32767).short()
    z["regional"] = torch.zeros(1, h // 4, w // 4, config["regional"], dtype=torch.int16)
    for part in parts(config["regional_levels"]):
        site = z["regional"][part.sites]
        if not site.numel():
            continue
        mean = torch.zeros_like(site)
        if part.kind is not None:
            factors = net.t["factorised.regional.weight"][part.kind] / np.arange(1, 5, dtype=np.float32)[:, None]
            mean = reference.neighbour_mean(z["regional"], torch.from_numpy(factors), part)
        values = take(np.broadcast_to(net.rows("regional", part.kind), site.shape), False)
        z["regional"][part.sites] = (mean.int() + 256 * values.int()).clamp(-32767, 32767).short()
    phi = net.features(z)
    y_hat = torch.zeros(1, h, w, config["latent"], dtype=torch.int16)
    inverse = torch.from_numpy(net.t["latent.dequantise"] * net.gain(-net.log2))
    coarse = coarser = None
    for i in range(4):
        mean, row = net.parameters(i, y_hat, phi, valid)
        if file.strength:
            if coarse is None:
                coarse = reference.coarseness(row, torch.from_numpy(net.offset()), net.skip, file.strength)
                coarser = torch.from_numpy(net.gain((8192 * coarse.numpy().astype(np.int64) + 12) // 24))
            row = reference.coarser_rows(row, coarse, net.skip)
        reference.reconstruct(take(row.numpy(), True), mean, inverse, i, y_hat, coarser)
    decoder.finish()
    return y_hat, digest


def decode(data: bytes, side: int = 144) -> np.ndarray:
    """A whole file to uint8 [H, W, 3], or uint16; `side` is that of tiles in latent sites."""
    file = File(data)
    if file.exact:
        return exact_colours(file)
    net = Network(WEIGHTS, file.quality)
    h, w = (-(-side // 64) * 4 for side in (file.height, file.width))
    touched = -(-file.height // 16), -(-file.width // 16)
    places = tiles(h, w, side)
    if len(places) == 1:
        y_hat, digest = walk(net, file, file.stream, h, w, touched)
    else:
        own, digests = streams(file.stream, len(places))
        y_hat = torch.zeros(1, h, w, net.config["latent"], dtype=torch.int16)
        for (top, bottom, left, right), stream, expected in zip(places, own, digests, strict=True):
            valid = min(bottom, touched[0]) - top, min(right, touched[1]) - left
            part, found = walk(net, file, stream, bottom - top, right - left, valid)
            assert found == expected
            y_hat[:, top:bottom, left:right] = part
        digest = zlib.crc32(struct.pack(f"<{len(digests)}I", *digests))
    assert digest == file.digest
    picture = net.synthesis(y_hat)[0, : file.height, : file.width].contiguous()
    if file.coefficients:
        picture = reference.restore(picture, torch.tensor(file.coefficients, dtype=torch.int8).view(3, -1))
    if file.gray:
        picture = reference.luma(picture)[..., None].expand(-1, -1, 3)
    return with_layer(file, picture.numpy()) if file.layer else picture.numpy()


def test_the_model_id() -> None:
    """docs/spec/bitstream.md, "Model id"."""
    with safe_open(WEIGHTS, "np") as weights:
        metadata = json.loads(weights.metadata()["dca_fast"])
        for key in ("analysis_blocks", "analysis_hidden"):
            del metadata["config"][key]
        digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
        for name in sorted(weights.keys()):
            if re.match(r"analysis\.|hyper\.\w+\.(analysis_|queries)|latent\.(operand8|quantise)$", name):
                continue
            tensor = weights.get_tensor(name)
            digest.update(f"\n{name} torch.{tensor.dtype} {tensor.shape}\n".encode() + tensor.tobytes())
    assert digest.hexdigest()[:8] == Codec().model_id == GOLDEN.read_bytes()[8:12].hex()


def test_it_reads_the_golden_file() -> None:
    data = GOLDEN.read_bytes()
    assert np.array_equal(decode(data), Codec().decode(data, "numpy"))


@pytest.mark.parametrize(("quality", "strength", "effort"), [(3.5, 0.5, 0), (62.37, 0.1875, 1), (99.99, 0, 1)])
@pytest.mark.parametrize("gray", [False, True])
def test_it_reads_what_the_codec_writes(quality: float, strength: float, effort: int, gray: bool) -> None:
    picture = photograph(70, 133)
    codec = Codec()
    pixels = picture[..., 0] if gray else picture
    data = codec.encode(pixels, quality, effort=effort, aq_strength=strength, metadata={"xmp": b"<x/>"})
    assert np.array_equal(decode(data), codec.decode(data, "numpy"))


@pytest.mark.parametrize("effort", [0, 1, 2])
def test_it_reads_tiles(effort: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dca_fast.network.walk.TILE", 8)
    codec, picture = Codec(), photograph(230, 400, seed=3)
    data = codec.encode(picture, 50, effort=effort)
    assert len(tiles(16, 28, 8)) == 8
    assert np.array_equal(decode(data, 8), codec.decode(data, "numpy"))


@pytest.mark.parametrize("quality", ["lossless", 100])
@pytest.mark.parametrize("shape", [(20, 33), (20, 33, 3)])
def test_it_reads_files_without_a_model(quality: float | str, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    data = Codec().encode(pixels, quality)
    assert File(data).exact
    assert np.array_equal(decode(data), Codec().decode(data, "numpy"))


@pytest.mark.parametrize("factor", [1, 100, 257])
def test_it_reads_16_bits_without_loss(factor: int) -> None:
    pixels = (np.random.default_rng(1).integers(0, 250, (20, 33, 3)) * factor + 7).astype(np.uint16)
    pixels[0, 0] = 40000 // factor * factor + 7
    data = Codec().encode(pixels, "lossless")
    assert np.array_equal(decode(data), pixels)


@pytest.mark.parametrize("gray", [False, True])
def test_it_reads_layers(gray: bool) -> None:
    codec, picture = Codec(), page(90, 130, seed=11)
    data = codec.encode(picture[..., 0].copy() if gray else picture, 70)
    assert File(data).layer
    assert np.array_equal(decode(data), codec.decode(data, "numpy"))
