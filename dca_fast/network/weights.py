"""Integer weights: a safetensors file, checked before use, named by the hash of what it holds.

Tensors are flat: `<layer>.w` int8 or int16, `.b` int32, `.m` float32 and, where a layer depends on the quality,
`.slope` int32 (`dca_fast.network.program`). The metadata is one JSON string: configuration, skip row, format.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save as save_bytes

from dca_fast.config import ModelConfig
from dca_fast.entropy.tables import Tables
from dca_fast.errors import ConfigError, WeightsError
from dca_fast.files.atomic import write_atomic
from dca_fast.network.layout import ENCODER_ONLY, LOG2_ONE, Layout, Spec, is_of_encoder, layout, previews
from dca_fast.ops.limits import MAX_ROW

FORMAT = 3
IDENTITY_FORMAT = 3  # stays, so that a model keeps its id in other files
ACCUMULATOR = 2**31 - 1
RESULT = 2**31 - 1024  # so that its float is below 2^31
SCORE_LIMIT = 2**20
OPERAND_BOUND = {"int8": 127, "int16": 32767}
MULTIPLIER = 65504.0  # of 16-bit values, so that no result leaves 32 bits
LOG2_LIMIT = 1 << 18  # of gains and scales in 1/4096 octaves
MAX_HEADER = 1 << 24  # bytes of JSON
MAX_JSON_LEVELS, MAX_DIGITS = 8, 18
DTYPES = {"I8": "int8", "U8": "uint8", "I16": "int16", "I32": "int32", "F32": "float32"}  # names of safetensors

Tensors = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Weights:
    """Checked integer weights.

    Args:
        tensors: by name.
        config: the model they belong to.
        skip: first row of the scale table that is coded; symbols of lower rows are zero and cost nothing.
        identity: SHA-256 of what a decoder reads; its first four bytes are the model id of a file.
        problem: why the encoder of the file cannot be used, which no decoder minds, or "".
    """

    tensors: Tensors
    config: ModelConfig
    skip: int
    identity: bytes
    problem: str = ""

    @property
    def model_id(self) -> bytes:
        """The four bytes that name the model in a file. Weights with another encoder alone have the same."""
        return self.identity[:4]

    @property
    def encodes(self) -> bool:
        """Whether the tensors of an encoder are there; a file may lack them, or have those of a later version."""
        return "latent.quantise" in self.tensors

    @property
    def tables(self) -> Tables:
        """Those of the entropy coder, validated."""
        freq, shift = self.tensors["tables.freq"], self.tensors["tables.shift"]
        return Tables(freq.astype(np.uint16), shift).validate()


def _digest(tensors: Tensors, metadata: str) -> bytes:
    h = hashlib.sha256(metadata.encode())
    for name in sorted(tensors):
        t = np.ascontiguousarray(tensors[name])
        h.update(f"\n{name} torch.{t.dtype.name} {t.shape}\n".encode())
        h.update(t.data)
    return h.digest()


def _identity(tensors: Tensors, config: Mapping[str, Any], skip: int) -> bytes:
    """SHA-256 of what a decoder reads (docs/spec/weights.md)."""
    seen = {name: value for name, value in config.items() if not name.startswith(ENCODER_ONLY)}
    metadata = json.dumps({"config": seen, "format": IDENTITY_FORMAT, "skip": skip}, sort_keys=True)
    return _digest({name: tensor for name, tensor in tensors.items() if not is_of_encoder(name)}, metadata)


def check(tensors: Tensors) -> None:
    """Refuse values with which accumulators, results or multipliers could overflow.

    Raises:
        WeightsError: names the layer.
    """
    _check_gains(tensors)
    for name, t in tensors.items():
        if t.dtype == np.float32:
            if not (np.abs(t) < MULTIPLIER).all():
                raise WeightsError(f"{name} is not finite, or larger than any multiplier")
        elif name.endswith(".w"):
            base = name[:-2]
            b = tensors[f"{base}.b"]
            # Depthwise weights are [3, 3, C]; the sum runs over everything but the output channel.
            axes = (0, 1) if t.ndim == 3 and t.shape[0] == 3 else -1
            total = np.abs(t, dtype=np.int32).sum(axes, dtype=np.int64)
            worst = OPERAND_BOUND[t.dtype.name] * total + np.abs(b.astype(np.int64))
            if f"{base}.slope" in tensors:
                worst = worst + np.abs(tensors[f"{base}.slope"].astype(np.int64))
            if int(worst.max()) > ACCUMULATOR:
                raise WeightsError(f"{base} can overflow a 32-bit accumulator")
            # Heads clamp before they round, and their multipliers depend on the quality.
            results = worst.astype(np.float64) * np.abs(tensors[f"{base}.m"].astype(np.float64))
            if not base.endswith(".heads") and not (results < RESULT).all():
                raise WeightsError(f"{base} can overflow a 32-bit result")
        elif name.endswith(".bias") and int(np.abs(t.astype(np.int64)).max()) > SCORE_LIMIT:
            raise WeightsError(f"{name} exceeds the range of attention scores")
        elif name == "tables.softmax" and (int(t[0]) != 127 or int(t.max()) > 127):
            raise WeightsError(f"{name} must start with its largest value, 127")


def _check_gains(tensors: Tensors) -> None:
    """Those of every quality: they are linear between knots in octaves."""
    if not ((tensors["tables.exp2"] >= 1) & (tensors["tables.exp2"] < 2)).all():
        raise WeightsError("tables.exp2 must be within 1 and 2")
    for name, t in tensors.items():
        if ".log2_" in name and int(np.abs(t.astype(np.int64)).max(initial=0)) > LOG2_LIMIT:
            raise WeightsError(f"{name} is beyond {LOG2_LIMIT // LOG2_ONE} octaves")
        if name.endswith(".log2_gain"):
            octaves = t.astype(np.float64) / LOG2_ONE
            gains = [np.exp2(octaves), np.exp2(-octaves)]
            if name.startswith("latent."):
                gains[1] *= np.abs(tensors["latent.dequantise"].astype(np.float64))
                if "latent.quantise" in tensors:
                    gains.append(gains[0] * np.abs(tensors["latent.quantise"].astype(np.float64)))
            if not all((gain < MULTIPLIER).all() for gain in gains):
                raise WeightsError(f"{name} makes gains beyond {MULTIPLIER:g}")


def _check_layout(path: Path, given: Layout, config: ModelConfig, *, of_encoder: bool) -> None:
    """Refuse tensors of the encoder, or of the decoder, that are not exactly those of the configuration."""
    if config.blocks > len(given):
        raise WeightsError(f"{path} lacks most of {config.blocks} blocks")
    wanted = layout(config)
    for preview in previews(config):
        if given.keys() & preview.keys():
            wanted |= preview
    for name in sorted(wanted.keys() | given.keys()):
        if is_of_encoder(name) != of_encoder:
            continue
        if name not in wanted:
            raise WeightsError(f"{path} holds {name}, which {config.name} does not have")
        if name not in given:
            raise WeightsError(f"{path} lacks {name}")
        if given[name] != wanted[name]:
            (dtype, shape), (has, having) = wanted[name], given[name]
            raise WeightsError(f"{path}: {name} must be {dtype} {list(shape)}, is {has} {list(having)}")


def save(path: Path, tensors: Tensors, config: ModelConfig, skip: int) -> Weights:
    """Write and return checked weights.

    Raises:
        WeightsError: tensors that are not those of the configuration, or as `check`.
    """
    given = {name: Spec(tensor.dtype.name, tensor.shape) for name, tensor in tensors.items()}
    for of_encoder in (False, True):
        _check_layout(path, given, config, of_encoder=of_encoder)
    check(tensors)
    metadata = json.dumps({"format": FORMAT, "config": config.to_dict(), "skip": skip}, sort_keys=True)
    digest = _digest(tensors, metadata).hex()
    arrays = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    identity = _identity(tensors, config.to_dict(), skip).hex()
    content = save_bytes(arrays, {"dca_fast": metadata, "sha256": digest, "identity": identity})
    write_atomic(path, content)
    return load(path)


class _Stored(NamedTuple):
    """A tensor of a file: what it is, and where it begins and ends."""

    spec: Spec
    begin: int
    end: int


def load(path: Path) -> Weights:
    """Read and check. An encoder that this version does not know, or that is damaged, is left out (`Weights.encodes`).

    Raises:
        WeightsError: missing, not such a file, other format, or failing `check`.
    """
    try:
        with open(path, "rb") as file:
            stored, parts = _header(file)
            config, skip, metadata, known = _facts(path, stored)
            given = {name: part.spec for name, part in parts.items()}
            _check_layout(path, given, config, of_encoder=False)
            tensors = {name: _tensor(file, part) for name, part in parts.items() if not is_of_encoder(name)}
            encoder, problem = {}, ""
            if known and any(map(is_of_encoder, given)) and "sha256" in stored:
                try:
                    _check_layout(path, given, config, of_encoder=True)
                    encoder = {name: _tensor(file, part) for name, part in parts.items() if is_of_encoder(name)}
                    check(tensors | encoder)
                    if _digest(tensors | encoder, metadata).hex() != stored["sha256"]:
                        raise WeightsError(f"{path} is damaged: its tensors do not have the digest it was written with")
                except (WeightsError, ValueError) as error:  # of the encoder, if the decoder passes what follows
                    encoder, problem = {}, str(error)
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read weights {path}: {error}") from error
    if not encoder:
        check(tensors)
    identity = _identity(tensors, config.to_dict(), skip)
    if identity.hex() != stored.get("identity"):
        raise WeightsError(f"{path} is damaged: its tensors do not have the identity in its metadata")
    weights = Weights(tensors | encoder, config, skip, identity, problem)
    weights.tables  # noqa: B018 (validates)
    return weights


def identity_of(path: Path) -> bytes:
    """The identity that a weights file claims, 32 bytes, from its metadata alone; `load` compares it with the tensors.

    Raises:
        WeightsError: missing, not such a file, or of another format.
    """
    try:
        with open(path, "rb") as file:
            stored, _ = _header(file)
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read weights {path}: {error}") from error
    _facts(path, stored)
    try:
        identity = bytes.fromhex(stored["identity"])
    except (KeyError, ValueError):
        identity = b""
    if len(identity) != 32:
        raise WeightsError(f"{path}: bad metadata: no identity")
    return identity


def _header(file: BinaryIO) -> tuple[dict[str, str], dict[str, _Stored]]:
    """The strings and the tensors of a file (docs/spec/weights.md).

    Raises:
        ValueError: it breaks a rule of the container.
    """
    start, end = file.read(8), file.seek(0, os.SEEK_END)
    size = int.from_bytes(start, "little")
    if len(start) < 8 or not 0 < size <= min(MAX_HEADER, end - 8):
        raise ValueError("no header of safetensors")
    file.seek(8)
    header = _json(file.read(size).decode())
    stored = header.pop("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(stored, dict) or not all(isinstance(text, str) for text in stored.values()):
        raise ValueError("a header of safetensors is an object, and its metadata strings")
    parts, at = {}, 8 + size
    for name, entry in header.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{name} is not described")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not (isinstance(dtype, str) and isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2):
            raise ValueError(f"{name} is not described")
        if any(type(number) is not int for number in (*shape, *offsets)):
            raise ValueError(f"{name} is not described")
        spec = Spec(DTYPES.get(dtype, dtype), tuple(shape))
        parts[name] = _Stored(spec, 8 + size + offsets[0], 8 + size + offsets[1])
    for part in sorted(parts.values(), key=lambda part: (part.begin, part.end)):
        if part.begin != at or part.end < at:
            raise ValueError("its tensors overlap, or leave holes")
        at = part.end
    if at != end:
        raise ValueError("it does not end with its tensors")
    return stored, parts


def _tensor(file: BinaryIO, part: _Stored) -> npt.NDArray[Any]:
    """A tensor whose layout has been checked.

    Raises:
        ValueError: it has another size.
    """
    dtype = np.dtype(part.spec.dtype).newbyteorder("<")
    if math.prod(part.spec.shape) * dtype.itemsize != part.end - part.begin:
        raise ValueError("a tensor has another size than its shape")
    values = np.empty(part.spec.shape, dtype)
    file.seek(part.begin)
    file.readinto(values.data.cast("B"))  # type: ignore[attr-defined]
    return values.astype(part.spec.dtype, copy=False)


def _json(text: str) -> Any:
    """JSON as weights have it: no name twice, no fractions, no lone surrogates, nothing of many levels or digits.

    Raises:
        ValueError: it is none.
    """

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("two keys of an object are equal")
        return found

    def whole(number: str) -> int:
        if len(number.lstrip("-")) > MAX_DIGITS:
            raise ValueError("a number is too long")
        return int(number)

    def refused(number: str) -> None:
        raise ValueError(f"{number[:40]} is no whole number")

    def check_level(value: Any, level: int = 0) -> None:
        if level == MAX_JSON_LEVELS:
            raise ValueError("objects and lists lie too deep within each other")
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check_level(inner, level + 1)

    try:
        value = json.loads(
            text, object_pairs_hook=members, parse_int=whole, parse_float=refused, parse_constant=refused
        )
    except RecursionError as error:
        raise ValueError("objects and lists lie too deep within each other") from error
    check_level(value)
    json.dumps(value, ensure_ascii=False).encode()  # which surrogates fail
    return value


def _facts(path: Path, stored: Mapping[str, str]) -> tuple[ModelConfig, int, str, bool]:
    """Configuration, skip row, the metadata that a digest is of, and whether this version knows the encoder."""
    if "dca_fast" not in stored:
        raise WeightsError(f"{path} holds no dca-fast weights")
    metadata = stored["dca_fast"]
    try:
        facts = _json(metadata)
        if facts["format"] != FORMAT:
            raise WeightsError(f"{path} has weights format {facts['format']}, this version reads {FORMAT}")
        given, skip = facts["config"], facts["skip"]
        if not isinstance(given, dict):
            raise ConfigError("the configuration is no object")
        own = {field.name for field in fields(ModelConfig)}
        config = ModelConfig.from_dict({key: v for key, v in given.items() if not key.startswith(ENCODER_ONLY)})
        known = not any(key.startswith(ENCODER_ONLY) for key in own ^ given.keys())
        if known:
            try:
                config = ModelConfig.from_dict(given)
            except ConfigError:
                known = False
        if lacking := {key for key in own - given.keys() if not key.startswith(ENCODER_ONLY)}:
            raise WeightsError(f"{path}: bad metadata: the configuration lacks {', '.join(sorted(lacking))}")
    except (ValueError, KeyError, TypeError, ConfigError) as error:
        raise WeightsError(f"{path}: bad metadata: {error}") from error
    if type(skip) is not int or not 0 <= skip <= MAX_ROW + 1:
        raise WeightsError(f"{path}: bad metadata: rows are coded from {skip!r} on")
    return config, skip, metadata, known
