"""Speed of the entropy coder against the coders of compressai, constriction and torchac on the same symbols.

Everybody gets the coded symbols only, in the arrays or tensors they like best, and hands back the
same kind; tables are prepared beforehand. Results are verified before anything is timed. `compare`
runs all coders in turns on any residuals, for example those of a photograph: rounded one by one, which is what all
coders can code, and as values of the trellis, which is what a file of ours holds.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pictures import source

from dca_fast.codec import _aq
from dca_fast.config import DEFAULT_AQ, DEFAULT_EFFORT, LATENT_ONE, STEPS, TRELLIS_PRICE, preset
from dca_fast.entropy.coder import Coder, available, choose_groups
from dca_fast.entropy.tables import ROWS, SKIP_ROW, Tables, build_gaussian_tables, row_sigma
from dca_fast.errors import BackendUnavailableError
from dca_fast.evaluation.measure import ImageFolder
from dca_fast.evaluation.report import environment
from dca_fast.network.walk import Quantiser

Residuals = npt.NDArray[np.int32]  # 1/256 quantiser steps
Symbols = npt.NDArray[np.int16]
Rows = npt.NDArray[np.uint8]
SIZE = 1 << 18


class Ours:
    """This package, one thread, one part; with `trellis` symbols are values of one."""

    def __init__(self, symbols: Symbols, rows: Rows, tables: Tables, isa: str, trellis: bool = False) -> None:
        self.symbols, self.rows, self.trellis = symbols, rows, trellis
        self.coder = Coder(tables, "python") if isa == "python" else Coder(tables, "native", isa)

    def encode(self) -> bytes:
        return self.coder.encode([(self.symbols, self.rows)], groups=groups_of(self.rows), plain=int(not self.trellis))

    def decode(self, stream: bytes) -> Any:
        decoder = self.coder.decoder(stream)
        symbols = decoder.decode(self.rows, self.trellis, last=True)
        decoder.finish()
        return symbols


class OnDevice(Ours):
    """This package on a CUDA device: symbols and rows stay there, the stream crosses."""

    def __init__(self, symbols: Symbols, rows: Rows, tables: Tables, trellis: bool = False) -> None:
        from dca_fast.entropy.cuda_coder import DeviceCoder

        self.coder, self.trellis = DeviceCoder(tables), trellis
        self.symbols, self.rows = (torch.from_numpy(x.copy()).to(self.coder.device) for x in (symbols, rows))


class CompressAI:
    """compressai.ans as its models call it: tensors become lists; its tables become lists once."""

    def __init__(self, symbols: Symbols, rows: Rows, tables: Tables) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside of compressai
            self.ans = pytest.importorskip("compressai.ans", reason="CompressAI: needs dca-fast[bench]")
            models = pytest.importorskip("compressai.entropy_models")
            model = models.GaussianConditional([row_sigma(row) for row in range(ROWS)])
            model.update()
        self.tables = [t.tolist() for t in (model.quantized_cdf, model.cdf_length, model.offset)]
        self.symbols = torch.from_numpy(symbols.astype(np.int32))
        self.rows = torch.from_numpy(rows.astype(np.int32))

    def encode(self) -> bytes:
        encoder = self.ans.BufferedRansEncoder()
        encoder.encode_with_indexes(self.symbols.tolist(), self.rows.tolist(), *self.tables)
        stream: bytes = encoder.flush()
        return stream

    def decode(self, stream: bytes) -> Any:
        decoder = self.ans.RansDecoder()
        decoder.set_stream(stream)
        return torch.tensor(decoder.decode_stream(self.rows.tolist(), *self.tables))


class Constriction:
    """constriction's ANS coder with its own Gaussian model of each symbol's deviation."""

    def __init__(self, symbols: Symbols, rows: Rows, tables: Tables) -> None:
        self.stream = pytest.importorskip("constriction", reason="constriction: needs dca-fast[bench]").stream
        reach = max(512, int(np.abs(symbols.astype(int)).max(initial=0)) + 1)
        self.model = self.stream.model.QuantizedGaussian(-reach, reach)
        self.symbols = symbols.astype(np.int32)
        self.means = np.zeros(len(rows))
        self.sigmas = np.array([row_sigma(row) for row in range(ROWS)])[rows]

    def encode(self) -> bytes:
        coder = self.stream.stack.AnsCoder()
        coder.encode_reverse(self.symbols, self.model, self.means, self.sigmas)
        compressed: bytes = coder.get_compressed().tobytes()
        return compressed

    def decode(self, stream: bytes) -> Any:
        coder = self.stream.stack.AnsCoder(np.frombuffer(stream, np.uint32))
        return coder.decode(self.model, self.means, self.sigmas)


class Torchac:
    """torchac, whose every symbol takes a whole distribution: gathering those is part of coding."""

    def __init__(self, symbols: Symbols, rows: Rows, tables: Tables) -> None:
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                self.torchac = import_module("torchac")  # compiles its C++ when it is imported first
        except (ImportError, OSError, RuntimeError) as error:
            pytest.skip(f"torchac: {str(error).partition(chr(10))[0]}")
        self.reach = int(np.abs(symbols.astype(int)).max(initial=0)) + 1
        edges = torch.arange(-self.reach, self.reach + 2).double() - 0.5
        sigmas = torch.tensor([row_sigma(row) for row in range(ROWS)])
        below = torch.special.ndtr(edges / sigmas[:, None].double())
        below[:, 0], below[:, -1] = 0, 1
        least = torch.arange(len(edges))  # each symbol gets at least one slot of the 2^16
        counts = (below * ((1 << 16) - len(least))).floor().long() + least
        counts[:, -1] = 1 << 16
        self.cdf = counts.to(torch.int16)  # wraps around, as torchac wants it
        self.rows, self.symbols = torch.from_numpy(rows.astype(np.int64)), torch.from_numpy(symbols.copy())

    def encode(self) -> bytes:
        stream: bytes = self.torchac.encode_int16_normalized_cdf(self.cdf[self.rows], self.symbols + self.reach)
        return stream

    def decode(self, stream: bytes) -> Any:
        return self.torchac.decode_int16_normalized_cdf(self.cdf[self.rows], stream) - self.reach


Maker = Callable[[Symbols, Rows, Tables], Any]
SETS = ("scalar", "avx2", "avx512")  # instruction sets that the coder has code of its own for
CODERS: dict[str, Maker] = {
    **{f"dca-fast {isa}": lambda s, r, t, isa=isa: Ours(s, r, t, isa) for isa in ("python", *SETS)},
    "dca-fast trellis": lambda s, r, t: Ours(s, r, t, "auto", True),
    "dca-fast cuda": OnDevice,
    "dca-fast cuda trellis": lambda s, r, t: OnDevice(s, r, t, True),
    "compressai": CompressAI,
    "constriction": Constriction,
    "torchac": Torchac,
}
FEW = {"dca-fast python": 1 << 14, "torchac": 1 << 18}  # symbols for those that are slow or take much memory


def groups_of(rows: Rows) -> int:
    """Groups that a picture with so many latents gets."""
    return choose_groups(1, len(rows) // preset("dca-s").latent)


def quantised(name: str, residuals: Residuals, rows: Rows, tables: Tables) -> tuple[Symbols, Rows]:
    """What the coder `name` codes, and its rows: residuals rounded, or searched for the trellis."""
    residuals, rows = residuals[: FEW.get(name)], rows[: FEW.get(name)]
    if "trellis" in name:
        return Coder(tables).quantise(residuals, rows, tables.charges(1 / TRELLIS_PRICE), groups_of(rows)), rows
    return np.rint(residuals / LATENT_ONE).astype(np.int16), rows


def make_residuals(size: int = SIZE) -> tuple[Residuals, Rows]:
    """Gaussian residuals with the spread of deviations seen in latents: most below 1, few above 10."""
    rng = np.random.default_rng(0)
    rows = np.clip(rng.normal(34, 16, size), 8, 110).astype(np.uint8)
    sigmas = np.array([row_sigma(row) for row in range(ROWS)])[rows]
    return np.rint(LATENT_ONE * rng.standard_normal(size) * sigmas).astype(np.int32), rows


def verified(make: Maker, symbols: Symbols, rows: Rows, tables: Tables) -> tuple[Any, bytes]:
    """Build a coder and check its round trip; returns it and its stream."""
    try:
        coder = make(symbols, rows, tables)
    except BackendUnavailableError as error:
        pytest.skip(f"dca-fast: {error}")
    stream = coder.encode()
    np.testing.assert_array_equal(torch.as_tensor(coder.decode(stream)).cpu().numpy(), symbols)
    return coder, stream


def compare(
    residuals: Residuals, rows: Rows, tables: Tables, left_out: dict[str, str], rounds: int = 7
) -> dict[str, dict[str, float]]:
    """Time all coders in turns (processor time of the one thread; on a device, time); print medians and ratios.

    Args:
        residuals: [n] int32.
        rows: [n] uint8 table rows; positions with 255 are left out for everybody.
        tables: of dca-fast; the others use their own form of the same Gaussians.
        left_out: gets the coders that are missing, and why.
        rounds: how many times each coder runs.

    Returns:
        By coder: symbols (those of `FEW` get the first ones only), bytes, nanoseconds per symbol to encode and decode.
    """
    coded = rows != SKIP_ROW
    residuals, rows = residuals[coded], rows[coded]
    ready, results = {}, {}
    for name, make in CODERS.items():
        try:
            ready[name] = verified(make, *quantised(name, residuals, rows, tables), tables)
        except pytest.skip.Exception as reason:
            print(f"{name:21} left out: {reason}")
            left_out[name] = str(reason)
    seconds: dict[str, list[Sequence[float]]] = {name: [] for name in ready}
    for _ in range(rounds):
        for name, (coder, stream) in ready.items():
            clock = time.perf_counter if "cuda" in name else time.thread_time
            times = [clock()]
            for run in (coder.encode, lambda c=coder, s=stream: c.decode(s)):
                run()
                times.append(clock())
            seconds[name].append(np.diff(times).tolist())
    for name, (_, stream) in ready.items():
        number = min(len(rows), FEW.get(name, len(rows)))
        encode, decode = (1e9 * statistics.median(t) / number for t in zip(*seconds[name], strict=True))
        results[name] = {"symbols": number, "bytes": len(stream), "encode_ns": encode, "decode_ns": decode}
    best = {key: min(result[key] for result in results.values()) for key in ("encode_ns", "decode_ns")}
    print(f"{len(rows)} symbols, one thread{'':24}encode            decode")
    for name, result in results.items():
        ratios = (f"{result[key]:9.2f} ns {result[key] / best[key]:5.1f}x" for key in best)
        print(f"{name:21} {result['bytes']:9.0f} bytes " + " ".join(ratios))
    return results


@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("name", CODERS)
def test_speed(benchmark: Any, name: str, direction: str) -> None:
    if name.startswith("dca-fast") and not available()[0]:
        pytest.skip(available()[1])
    tables = build_gaussian_tables()
    symbols, rows = quantised(name, *some_residuals(), tables)
    coder, stream = verified(CODERS[name], symbols, rows, tables)
    benchmark.group = f"entropy coder: {direction}, {len(rows)} symbols"
    benchmark.extra_info.update(symbols=len(rows), bytes=len(stream), coder=name)
    arguments = () if direction == "encode" else (stream,)
    benchmark.pedantic(getattr(coder, direction), arguments, rounds=7, warmup_rounds=1)
    if benchmark.stats:
        benchmark.extra_info["symbols_per_second"] = round(len(rows) / benchmark.stats["median"])


@pytest.mark.parametrize("isa", SETS)
def test_search(benchmark: Any, isa: str) -> None:
    """What an encoder does for the trellis before it codes."""
    tables = build_gaussian_tables()
    try:
        coder, scalar = (Coder(tables, "native", name) for name in (isa, "scalar"))
    except BackendUnavailableError as error:
        pytest.skip(f"dca-fast: {error}")
    residuals, rows = some_residuals()
    arguments = residuals, rows, tables.charges(1 / TRELLIS_PRICE), groups_of(rows)
    np.testing.assert_array_equal(coder.quantise(*arguments), scalar.quantise(*arguments))
    benchmark.group = f"search of the trellis, {len(rows)} symbols"
    benchmark.extra_info.update(symbols=len(rows))
    benchmark.pedantic(coder.quantise, arguments, rounds=7, warmup_rounds=1)
    if benchmark.stats:
        benchmark.extra_info["symbols_per_second"] = round(len(rows) / benchmark.stats["median"])


@cache
def some_residuals() -> tuple[Residuals, Rows]:
    """What is coded of photographs in DCA_IMAGES, else synthetic."""
    if source() == "synthetic":
        return make_residuals()
    paths = ImageFolder(Path(os.environ["DCA_IMAGES"])).paths[:2]
    residuals, rows = residuals_of(paths, 7000)
    coded = rows != SKIP_ROW
    return residuals[coded][:SIZE], rows[coded][:SIZE]


def residuals_of(paths: Sequence[Path], quality: int) -> tuple[Residuals, Rows]:
    """What the codec quantises of these photographs, at a quality in 1/100, and symbols of the hyper latents."""
    from dca_fast import Codec
    from dca_fast.files.image_io import load_image

    codec, parts = Codec(threads=1), []
    seen: list[tuple[Residuals, Rows]] = []
    quantiser = codec.engine.quantiser

    def keeping(groups: int) -> Quantiser:
        quantise = quantiser(groups)

        def call(residuals: Residuals, rows: Rows) -> Any:
            seen.append((np.ravel(residuals), np.ravel(rows)))
            return quantise(residuals, rows)

        return call

    engine = codec.engine
    vars(engine)["quantiser"] = keeping
    for path in paths:
        pixels = engine.image(load_image(path).pixels)
        (kept,), _ = engine.symbols(pixels, quality, DEFAULT_EFFORT, _aq(DEFAULT_AQ))
        parts += [(symbols.astype(np.int32) * LATENT_ONE, rows) for symbols, rows in kept.parts[: kept.plain]]
        parts += seen[-STEPS:]  # those of the last walk
    residuals, rows = zip(*parts, strict=True)
    return np.concatenate(residuals), np.concatenate(rows)


def main() -> None:
    """Synthetic symbols, or those of photographs: `python benchmarks/test_bench_rans.py PHOTOGRAPH ... --out FILE`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("photographs", nargs="*", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not args.photographs:
        compare(*make_residuals(), build_gaussian_tables(), {})
        return
    results, left_out = {}, {}
    for quality in (3000, 7000):
        residuals, rows = residuals_of(args.photographs, quality)
        print(f"quality {quality / 100:g}: {len(rows)} positions, {int((rows != SKIP_ROW).sum())} coded")
        results[f"quality {quality / 100:g}"] = compare(residuals, rows, build_gaussian_tables(), left_out)
    if args.out:
        facts = {**environment(), "photographs": [p.name for p in args.photographs], "left_out": left_out}
        args.out.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
