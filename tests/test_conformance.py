"""Every decoder returns the pixels of tests/conformance, and refuses what is to be refused, with that error."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dca_fast import Codec, errors
from dca_fast.errors import BitstreamError, WeightsError
from dca_fast.files.container import parse
from dca_fast.network import models, weights
from dca_fast.network.layout import is_of_encoder
from tests.conformance import decoder as second
from tests.conformance import make
from tests.decoder_library import Decoder, can_build, library
from tests.optional import torch

try:
    from dca_fast.ops import native
except ImportError:
    ISAS: list[str] = []
else:
    ISAS = list(native.isas())

TABLE = json.loads(make.TABLE.read_text("utf-8"))
DECODERS = ["numpy", "reference", *ISAS]
FASTEST = DECODERS[-1]


def cases(rows: list[dict[str, Any]]) -> list[Any]:
    """Each file with each decoder; large ones with the fastest and AVX2 alone, and exact ones once with C++, which has
    no instruction sets there. make.py reads large ones with the NumPy decoder."""
    out = []
    for row in rows:
        exact = row["file"].startswith(("vectors/exact_", "vectors/deep_", "refused/exact_", "refused/grid_"))
        names = dict.fromkeys(["numpy", "reference", FASTEST]) if exact else DECODERS
        names = [FASTEST, *{"avx2"}.intersection(ISAS[:-1])] if row.get("large") else names
        out += [pytest.param(row, name, id=f"{row['file'].split('/')[1][:-4]}-{name}") for name in names]
    return out


def weights_of(row: dict[str, Any]) -> Path:
    """Those of the file's model: they stay, whatever is shipped later."""
    return models.of_id(bytes.fromhex(row["model"])) if "model" in row else make.WEIGHTS


@cache
def decoder_of(name: str, path: Path) -> Any:
    if name == "numpy":
        return second.Decoder(path)
    return Codec(weights=path, backend="reference" if name == "reference" else "native", threads=1)


@pytest.fixture
def decode(name: str, row: dict[str, Any]) -> Iterator[Callable[..., Any]]:
    """`decode` of one decoder, to an array."""
    if name == "reference":
        assert torch.__version__
    if name not in ISAS:
        chosen = decoder_of(name, weights_of(row))
        yield chosen.decode if name == "numpy" else lambda data, n=1: chosen.decode(data, "numpy", reduce=n)
        return
    before = os.environ.get("DCA_ISA")
    os.environ["DCA_ISA"] = name
    try:
        codec = decoder_of(name, weights_of(row))
        native.set_isa(name)
        yield lambda data, n=1: codec.decode(data, "numpy", reduce=n)
    finally:
        native.set_isa("auto")
        del os.environ["DCA_ISA"]
        if before is not None:
            os.environ["DCA_ISA"] = before


@pytest.mark.parametrize(("row", "name"), cases(TABLE["vectors"]))
def test_every_decoder_returns_the_pixels(row: dict[str, Any], name: str, decode: Callable[..., Any]) -> None:
    data = (make.HERE / row["file"]).read_bytes()
    pixels = decode(data)
    assert pixels.shape == (row["height"], row["width"], row["channels"])
    assert 8 * pixels.itemsize == row["bits"]
    assert make.digest_of(pixels) == row["sha256"]
    for reduce, digest in row.get("previews", {}).items():
        assert make.digest_of(decode(data, int(reduce))) == digest


@pytest.mark.parametrize(("row", "name"), cases(TABLE["refused"]))
def test_every_decoder_refuses(row: dict[str, Any], name: str, decode: Callable[..., Any]) -> None:
    with pytest.raises((BitstreamError, second.BitstreamError)) as caught:
        decode((make.HERE / row["file"]).read_bytes())
    assert type(caught.value).__name__ == row["error"]


@can_build
def test_the_c_library_returns_the_pixels_and_refuses() -> None:
    """It gives one plane of a gray picture, where the table has three."""
    decoders = {path: Decoder(library(), path.read_bytes(), threads=2) for path in map(weights_of, TABLE["vectors"])}
    for row in TABLE["vectors"]:
        decoder = decoders[weights_of(row)]
        pixels = decoder.decode((make.HERE / row["file"]).read_bytes())
        if pixels.shape[2] < 3:
            pixels = np.dstack([pixels[..., :1]] * 3 + [pixels[..., 1:]])
        assert make.digest_of(pixels) == row["sha256"], row["file"]
    decoder = decoders[make.WEIGHTS]
    for row in TABLE["refused"]:
        with pytest.raises(BitstreamError) as caught:
            decoder.decode((make.HERE / row["file"]).read_bytes())
        assert type(caught.value).__name__ == row["error"], row["file"]


@pytest.mark.gpu
def test_a_gpu_returns_the_pixels_and_refuses() -> None:
    codec = Codec(device="cuda")
    for row in TABLE["vectors"]:
        pixels = codec.decode((make.HERE / row["file"]).read_bytes(), "numpy")
        assert make.digest_of(pixels) == row["sha256"], row["file"]
    for row in TABLE["refused"]:
        with pytest.raises(BitstreamError) as caught:
            codec.decode((make.HERE / row["file"]).read_bytes())
        assert type(caught.value).__name__ == row["error"], row["file"]


@pytest.mark.parametrize("row", [row for row in TABLE["vectors"] if "metadata" in row], ids=lambda row: row["file"])
def test_metadata_comes_back(row: dict[str, Any]) -> None:
    data = (make.HERE / row["file"]).read_bytes()
    tags = {second.TAGS[tag]: block for tag, block in second.parse(data).sections.items() if tag <= second.XMP}
    assert tags == parse(data).metadata
    assert {name: hashlib.sha256(block).hexdigest() for name, block in tags.items()} == row["metadata"]


@pytest.mark.parametrize("file", ["vectors/alpha.dca", "vectors/deep_gray.dca", "refused/checksum.dca"])
def test_the_second_decoder_is_a_program(file: str) -> None:
    (row,) = (row for key in ("vectors", "refused") for row in TABLE[key] if row["file"] == file)
    command = [sys.executable, second.__file__, make.HERE / file, make.WEIGHTS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=make.HERE)
    if "error" in row:
        assert done.returncode == 1
        assert done.stderr.startswith(row["error"])
    else:
        kind = f"uint{row['bits']}"
        said = f"{row['width']} x {row['height']} x {row['channels']} {kind} {row['sha256']}\n"
        assert (done.stdout, done.returncode) == (said, 0)


def test_the_table_is_that_of_this_format_and_lists_every_file() -> None:
    assert TABLE["format"] == second.VERSION
    assert {row["model"] for row in TABLE["vectors"] if "model" in row} >= {Codec().model_id}
    listed = [row["file"] for key in ("vectors", "refused") for row in TABLE[key]]
    there = [path.relative_to(make.HERE).as_posix() for path in make.HERE.rglob("*.dca")]
    assert sorted(listed) == sorted(there)
    assert len(TABLE["vectors"]) >= 40
    assert len(TABLE["refused"]) >= 25
    assert sum((make.HERE / name).stat().st_size for name in listed) < 1_000_000


def test_the_errors_have_the_names_of_the_packages() -> None:
    own = [value for value in vars(second).values() if isinstance(value, type) and issubclass(value, second.DcaError)]
    for kind in own:
        assert [base.__name__ for base in kind.__mro__] == [
            base.__name__ for base in getattr(errors, kind.__name__).__mro__
        ]


@pytest.mark.parametrize("some", [make.filters, make.streams, make.channels], ids=lambda some: some.__name__)
def test_the_script_makes_these_files(some: Callable[[], Iterator[make.Vector]]) -> None:
    for vector in some():
        assert vector.data == (make.HERE / "vectors" / f"{vector.name}.dca").read_bytes(), vector.name


# Weights: docs/spec/weights.md.


def changed(name: str, value: float, at: tuple[int, ...] = (0,)) -> Callable[[dict[str, Any]], None]:
    """A value of a tensor becomes another one."""

    def change(tensors: dict[str, Any]) -> None:
        tensors[name] = tensors[name].copy()
        tensors[name][at] = value

    return change


BAD_WEIGHTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a multiplier that is not finite": changed("synthesis.split.m", np.nan),
    "a multiplier that is too large": changed("latent.operand16", 65504.0),
    "sums that leave 32 bits": changed("synthesis.split.b", 2**31 - 1),
    "results that leave 32 bits": changed("synthesis.split.m", 60000.0),
    "a score beyond its range": changed("hyper.local.synthesis_blocks.attention.0.bias", 2**20 + 1, (0, 0, 0)),
    "a gain beyond its range": changed("latent.log2_gain", 1 << 17, (0, 0)),
    "a logarithm beyond its range": changed("factorised.local.log2_scale", (1 << 18) + 1, (0, 0)),
    "a power of two outside of 1 to 2": changed("tables.exp2", 2.0),
    "a softmax that starts with another value": changed("tables.softmax", 126),
    "a row of frequencies with another sum": changed("tables.freq", 5, (0, 0)),
    "a shift above 8": changed("tables.shift", 9),
    "a tensor that is missing": lambda tensors: tensors.pop("context.local.b"),
    "a tensor that is not known": lambda tensors: tensors.update(more=tensors["tables.shift"]),
    "a tensor of another type": lambda tensors: tensors.update({"tables.shift": tensors["tables.shift"].view(np.int8)}),
    "a tensor of another shape": lambda tensors: tensors.update({"tables.shift": tensors["tables.shift"][None]}),
}


def facts_of(told: dict[str, Any], tensors: dict[str, Any]) -> dict[str, str]:
    """Metadata with the digests that belong to it."""
    metadata = json.dumps(told, sort_keys=True)
    config = told["config"] if isinstance(told["config"], dict) else {}
    identity = weights._identity(tensors, config, told["skip"])
    return {
        "dca_fast": metadata,
        "sha256": weights._digest(tensors, metadata).hex(),
        "identity": identity.hex(),
    }


def refused_weights(path: Path) -> None:
    with pytest.raises(WeightsError):
        weights.load(path)
    with pytest.raises(second.WeightsError):
        second.Weights(path.read_bytes())


@pytest.fixture(scope="module")
def shipped() -> tuple[dict[str, Any], dict[str, str]]:
    facts = json.loads(make.WEIGHTS.read_bytes()[8 : 8 + int.from_bytes(make.WEIGHTS.read_bytes()[:8], "little")])
    return load_file(make.WEIGHTS), facts["__metadata__"]


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_bad_weights_are_refused(shipped: Any, case: str, tmp_path: Path) -> None:
    tensors, facts = dict(shipped[0]), shipped[1]
    BAD_WEIGHTS[case](tensors)
    save_file(tensors, tmp_path / "bad.safetensors", facts_of(json.loads(facts["dca_fast"]), tensors))
    refused_weights(tmp_path / "bad.safetensors")


@pytest.mark.parametrize(
    "case", ["digest", "identity", "format", "skip", "configuration", "key", "list", "no metadata", "none"]
)
def test_weights_with_bad_facts_are_refused(shipped: Any, case: str, tmp_path: Path) -> None:
    tensors, facts = shipped[0], dict(shipped[1])
    told = json.loads(facts["dca_fast"])
    if case in ("digest", "identity"):
        facts["sha256" if case == "digest" else case] = "0" * 64
    elif case == "no metadata":
        facts = {"other": "facts"}
    elif case != "none":
        if case in ("format", "skip"):
            told[case] = {"format": 1, "skip": 129}[case]
        config = {"configuration": {**told["config"], "tokens": 7}, "list": ["name"]}
        config["key"] = {key: value for key, value in told["config"].items() if key != "window"}
        told["config"] = config.get(case, told["config"])
        facts = facts_of(told, tensors)
    path = tmp_path / "bad.safetensors"
    save_file(tensors, path, facts)
    if case == "none":
        path.write_bytes(b"\xff" * 100)
    if case == "digest":  # which is for those who encode
        loaded = weights.load(path)
        assert not loaded.encodes
        assert "damaged" in loaded.problem
        return
    refused_weights(path)


DEEP = "[" * 7 + "]" * 7


def with_tensor(name: str, dtype: str = "U8", shape: str = "1") -> Callable[[str, int], str]:
    """Of the last byte, which is one more."""
    entry = f'"{name}":{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[{{0}},{{1}}]}}'
    return lambda text, size: f"{text[:-1]},{entry.replace('{0}', str(size)).replace('{1}', str(size + 1))}}}"


def told_more(value: str) -> Callable[[str, int], str]:
    return lambda text, _: text.replace(r"{\"config\"", rf"{{\"more\": {value}, \"config\"")


def pairs_of(text: str) -> str:
    """An object in the text of a string, as a list of its members."""
    return json.dumps([*json.loads(text.replace('\\"', '"')).items()]).replace('"', '\\"')


# What the text of the header becomes, given the bytes of all tensors.
RULES_OF_JSON: dict[str, Callable[[str, int], str]] = {
    "more than 2^24 bytes": lambda text, _: text + " " * (1 << 24),
    "another key of an entry": lambda text, _: text.replace('{"dtype"', '{"more":1,"dtype"', 1),
    "a tensor twice": lambda text, _: text[:-1] + re.findall(r',"tables\.shift":\{.*?\}', text)[0] + "}",
    "a string twice": lambda text, _: text.replace('"__metadata__":{', '"__metadata__":{"sha256":"",'),
    "metadata that are no strings": lambda text, _: text.replace('"__metadata__":{', '"__metadata__":{"more":5,'),
    "a shape with fractions": lambda text, _: text.replace('"shape":[384]', '"shape":[384.0]', 1),
    "a format with fractions": lambda text, _: text.replace(r"\"format\": 3", r"\"format\": 3.0"),
    "upper case": lambda text, _: re.sub(r'("identity":)"(\w+)"', lambda m: m[1] + f'"{m[2].upper()}"', text),
    "a key twice": told_more(r"1, \"more\": 1"),
    "a fraction": told_more("0.5"),
    "no number": told_more("NaN"),
    "many digits": told_more("1" * 19),
    "too deep": told_more(f"[{DEEP}]"),
    "half a pair": told_more(r"\"\\ud800\""),
    "a layer without a name": with_tensor("hyper"),
    "a layer with half a name": with_tensor("hyper.x"),
    "no part of the encoder": with_tensor("analysis"),
    "no offsets": lambda text, _: re.sub(r'"data_offsets":\[[^]]*\]', '"data_offsets":null', text, count=1),
    "a shape that is no list": lambda text, _: text.replace('"shape":[384]', '"shape":""', 1),
    "a configuration of pairs": lambda text, _: re.sub(
        r'(\\"config\\": )(\{.*?\})', lambda m: m[1] + pairs_of(m[2]), text
    ),
    "a number too deep": told_more(DEEP.replace("[]", "[1]")),
    "no format": lambda text, _: text.replace(r"\"format\": 3, ", ""),
    "null": lambda text, _: "null",
    "a number": lambda text, _: "5",
    "very deep": lambda text, _: "[" * 100000 + "]" * 100000,
}
ALLOWED = {
    "a later type of the encoder": with_tensor("analysis.more", "X9", "0,4294967296"),
    "more of the encoder": with_tensor("hyper.other.queries.of.tomorrow"),
    "not too deep": told_more(DEEP),
    "an empty tensor of the encoder": lambda text, _: (
        text[:-1] + ',"analysis.empty":{"dtype":"I8","shape":[0],"data_offsets":[0,0]}}'
    ),
    "not too many digits": told_more("-" + "1" * 18),
    "a pair": told_more(r"\"\\ud83d\\ude00\""),
}


@pytest.fixture(scope="module")
def decoders() -> list[Callable[[Path], Any]]:
    """What reads weights, and raises one of `refusals`."""
    ways: list[Callable[[Path], Any]] = [weights.load, lambda path: second.Weights(path.read_bytes())]
    if not can_build.args[0]:
        ways.append(lambda path: Decoder(library(), path.read_bytes(), threads=1))
    return ways


@pytest.mark.parametrize("case", [*RULES_OF_JSON, *ALLOWED])
def test_rules_of_the_header_of_weights(decoders: list[Callable[[Path], Any]], case: str, tmp_path: Path) -> None:
    data, path = make.WEIGHTS.read_bytes(), tmp_path / "w.safetensors"
    start = 8 + int.from_bytes(data[:8], "little")
    text, rest = data[8:start].decode().rstrip(), data[start:]
    changed = (RULES_OF_JSON | ALLOWED)[case](text, len(rest))
    assert changed != text
    rest += b"\1" * (f"{len(rest)},{len(rest) + 1}" in changed)
    path.write_bytes(len(changed.encode()).to_bytes(8, "little") + changed.encode() + rest)
    for decoder in decoders:
        if case in ALLOWED:
            decoder(path)
        else:
            with pytest.raises((WeightsError, second.WeightsError)):
                decoder(path)


def without_encoder(tensors: dict[str, Any], told: dict[str, Any]) -> None:
    for name in filter(is_of_encoder, list(tensors)):
        del tensors[name]
    for key in [key for key in told["config"] if key.startswith("analysis_")]:
        del told["config"][key]


def later_encoder(tensors: dict[str, Any], told: dict[str, Any]) -> None:
    tensors["analysis.gate.w"] = np.zeros((3, 5), np.float16)
    told["config"]["analysis_gates"] = {"of": 1}
    told["also"] = "ignored"


@pytest.mark.parametrize("change", [without_encoder, later_encoder])
def test_weights_decode_whatever_encoder_they_have(shipped: Any, change: Any, tmp_path: Path) -> None:
    tensors, told = dict(shipped[0]), json.loads(shipped[1]["dca_fast"])
    change(tensors, told)
    facts = facts_of(told, tensors) | {"more": "is passed over"}
    if change is without_encoder:
        del facts["sha256"]
    path = tmp_path / "other.safetensors"
    save_file(tensors, path, facts)
    codec, row = Codec(weights=path), next(row for row in TABLE["vectors"] if row["file"].endswith("size_65x63.dca"))
    data = (make.HERE / row["file"]).read_bytes()
    assert codec.model_id == row["model"]
    for decoder in (codec.decode, second.Decoder(path).decode):
        assert make.digest_of(np.asarray(decoder(data))) == row["sha256"]
    with pytest.raises(WeightsError, match="no encoder"):
        codec.encode(np.zeros((8, 8, 3), np.uint8))
    assert codec.decode(codec.encode(np.zeros((8, 8, 3), np.uint8), "lossless"), "numpy").max() == 0


@can_build
@pytest.mark.parametrize("change", [without_encoder, later_encoder])
def test_the_c_library_decodes_with_them_too(shipped: Any, change: Any, tmp_path: Path) -> None:
    tensors, told = dict(shipped[0]), json.loads(shipped[1]["dca_fast"])
    change(tensors, told)
    save_file(tensors, tmp_path / "other.safetensors", facts_of(told, tensors))
    decoder = Decoder(library(), (tmp_path / "other.safetensors").read_bytes(), threads=1)
    row = next(row for row in TABLE["vectors"] if row["file"].endswith("size_65x63.dca"))
    assert make.digest_of(decoder.decode((make.HERE / row["file"]).read_bytes())) == row["sha256"]
