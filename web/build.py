"""The decoder for browsers and Node: compiles it to WebAssembly, and lays out the page and the npm package.

    pip install ziglang
    python web/build.py                      # build/web
    python -m http.server -d build/web       # the page; any server of files does
    (cd build/web && npm pack)               # the package, without page and samples

`--no-samples` leaves out the pictures of the page, which take an encoder and Pillow's AVIF.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from safetensors import safe_open
from safetensors.numpy import save_file

from dca_fast import Codec
from dca_fast.cli.compare import at_most
from dca_fast.network.layout import is_of_encoder
from dca_fast.testing import landscape, page

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CSRC = ROOT / "csrc"
WEIGHTS = ROOT / "dca_fast" / "data" / "dca-s.safetensors"
MODULES = {"dca.wasm": False, "dca-threads.wasm": True}  # and whether threads share its memory
STATIC = (
    "dca.js",
    "helper.js",
    "client.js",
    "worker.js",
    "dca-image.js",
    "index.html",
    "page.js",
    "page.css",
    "package.json",
    "README.md",
)
FLAGS = [
    *("-target", "wasm32-wasi", "-mexec-model=reactor", "-std=c++17", "-O3", "-DNDEBUG", "-g0"),
    # Products and sums stay two roundings. `throw` calls csrc/wasm/exceptions.cpp.
    *("-ffp-contract=off", "-fexceptions", "-fno-sanitize=all"),
    *("-include", str(CSRC / "wasm" / "threads.h")),
]
EXPORTS = ("malloc", "free", "dca_format_version", "dca_decoder_new", "dca_decoder_free", "dca_decoder_model")
EXPORTS += ("dca_inspect", "dca_decode_preview", "dca_free")
# Of csrc/wasm/pool.cpp, and what a helper sets before it calls it.
EXPORTS_OF_THREADS = ("dca_help", "dca_end", "dca_threads", "__stack_pointer", "__wasm_init_tls", "__tls_size")
# Bytes, of the one memory that all instances have; web/dca.js makes it.
SHARED = ("--shared-memory", "--import-memory", "--export-memory", "--initial-memory=33554432")
SHARED += ("--max-memory=4294901760",)


def zig() -> list[str]:
    """The compiler: PyPI's ziglang, or one that is installed."""
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang"]
    found = shutil.which("zig")
    if found is None:
        raise SystemExit("no Zig to compile with: pip install ziglang")
    return [found]


def sources() -> list[Path]:
    """All of the decoder, and what it lacks here."""
    files = [*CSRC.glob("decoder/*.cpp"), *CSRC.glob("ops/cpu_*.cpp"), *CSRC.glob("coder/rans_*.cpp")]
    files += [CSRC / "exact" / "exact_coder.cpp", *CSRC.glob("wasm/*.cpp")]
    return [path for path in sorted(files) if not path.stem.endswith("_bind")]


def compile_decoder(target: Path, jobs: int, threads: bool) -> None:
    """The module; what has not changed since the last time is not compiled again."""
    flags = [*FLAGS, "-mcpu=generic+simd128+atomics+bulk_memory" if threads else "-msimd128"]
    objects = target.parent.parent / f"{target.stem}-objects"
    objects.mkdir(parents=True, exist_ok=True)
    newest_header = max(path.stat().st_mtime for path in [*CSRC.rglob("*.h"), Path(__file__)])

    def compiled(source: Path) -> Path:
        out = objects / f"{source.stem}.o"
        if not out.exists() or out.stat().st_mtime < max(source.stat().st_mtime, newest_header):
            subprocess.run([*zig(), "c++", *flags, "-c", source, "-o", out], check=True)
        return out

    with ThreadPoolExecutor(jobs) as pool:
        parts = list(pool.map(compiled, sources()))
    names = EXPORTS + (EXPORTS_OF_THREADS if threads else ())
    options = ["--strip-all", *(SHARED if threads else ()), *(f"--export={name}" for name in names)]
    subprocess.run([*zig(), "c++", *flags, *parts, "-o", target, f"-Wl,{','.join(options)}"], check=True)


def pack_model(folder: Path) -> str:
    """The shipped weights without the encoder's tensors, named by their model id."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.safetensors"):
        old.unlink()
    with safe_open(WEIGHTS, framework="np") as file:
        metadata = {name: file.metadata()[name] for name in ("dca_fast", "identity")}
        tensors = {name: file.get_tensor(name) for name in file.keys() if not is_of_encoder(name)}  # noqa: SIM118
    model = metadata["identity"][:8]
    save_file(tensors, folder / f"{model}.safetensors", metadata)
    return model


def chart(height: int = 480, width: int = 720) -> np.ndarray:
    """A drawn screen: a window with text, a chart and a photograph."""
    image = Image.fromarray(page(height, width))
    draw = ImageDraw.Draw(image)
    draw.rectangle((20, 20, width // 2, height // 2), fill=(250, 250, 252), outline=(60, 60, 70))
    heights = np.random.default_rng(2).integers(20, height // 2 - 60, 12)
    for i, bar in enumerate(heights.tolist()):
        left = 40 + i * (width // 2 - 60) // 12
        draw.rectangle(
            (left, height // 2 - 10 - bar, left + 14, height // 2 - 10), fill=(40 + 15 * i, 90, 200 - 12 * i)
        )
    return np.asarray(image)


def save_samples(folder: Path) -> None:
    """Pictures at some qualities, beside JPEG and AVIF of as many bytes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    codec, listed = Codec(), []
    for name, picture, qualities in (("landscape", landscape(), (10, 30, 60, 85)), ("screen", chart(), (60,))):
        image = Image.fromarray(picture)
        image.save(folder / f"{name}.png", optimize=True)
        for quality in qualities:
            data = codec.encode(picture, quality, effort=4)
            entry = {"name": name, "quality": quality, "original": f"{name}.png", "file": f"{name}-{quality}.dca"}
            (folder / entry["file"]).write_bytes(data)
            for kind, options in (("JPEG", {"optimize": True}), ("AVIF", {"speed": 6})):

                def encoded(q: int, kind: str = kind, options: dict = options) -> bytes:
                    out = io.BytesIO()
                    image.save(out, kind, quality=q, **options)  # noqa: B023
                    return out.getvalue()

                found, q = at_most(encoded, len(data))
                entry[kind.lower()] = f"{name}-{quality}.{kind.lower()}"
                entry[f"{kind.lower()}_bytes"], entry[f"{kind.lower()}_quality"] = len(found), q
                (folder / entry[kind.lower()]).write_bytes(found)
            listed.append(entry)
    (folder / "samples.json").write_text(json.dumps(listed, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "web")
    parser.add_argument("--jobs", type=int, default=2, help="compilers side by side (default: %(default)s)")
    parser.add_argument("--no-samples", action="store_true", help="without the pictures of the page")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, threads in MODULES.items():
        compile_decoder(args.out / name, args.jobs, threads)
    for name in STATIC:
        shutil.copy(HERE / name, args.out)
    for name in ("LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, args.out)
    model = pack_model(args.out / "models")
    if not args.no_samples:
        save_samples(args.out / "samples")
    sizes = [(args.out / "dca.wasm").stat().st_size, (args.out / "models" / f"{model}.safetensors").stat().st_size]
    sizes.append(sum((HERE / name).stat().st_size for name in STATIC))
    print(f"{args.out}: decoder {sizes[0]:,} bytes, weights {sizes[1]:,}, scripts and page {sizes[2]:,}")


if __name__ == "__main__":
    main()
