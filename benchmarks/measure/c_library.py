"""The C library beside `Codec.decode`, and WebAssembly beside the C library: the same files, in turns.

    python benchmarks/measure/c_library.py --out benchmarks/results/dca-s/c_library.json

Builds the library with CMake, and with --web uses build/web of `python web/build.py` in Node. Every turn decodes a file
once in each way and compares the pixels. Ratios are medians over turns, so that a machine with other work to do says
something; the milliseconds are those of this machine in those turns.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from dca_fast import Codec  # noqa: E402
from dca_fast.evaluation.report import environment  # noqa: E402
from dca_fast.testing import landscape  # noqa: E402
from tests.decoder_library import WEIGHTS, Decoder, library  # noqa: E402

NODE = """
import {readFile} from 'node:fs/promises';
import {createInterface} from 'node:readline';
const [folder, weights, file] = process.argv.slice(1);
const {compile, Decoder} = await import(`${folder}/dca.js`);
const module = await compile(await readFile(`${folder}/dca.wasm`));
const decoder = new Decoder(module, new Uint8Array(await readFile(weights)));
const bytes = new Uint8Array(await readFile(file));
decoder.decode(bytes);
console.log('ready');
for await (const line of createInterface({input: process.stdin})) {
  const start = performance.now();
  decoder.decode(bytes);
  console.log(performance.now() - start);
}
"""


def timed(work: Any) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = work()
    return (time.perf_counter() - begin) * 1e3, result


def node(file: Path) -> subprocess.Popen[str]:
    """What decodes the file for each line that it is given, and answers with milliseconds."""
    folder = ROOT / "build" / "web"
    weights = next((folder / "models").iterdir())
    command = ["node", "--input-type=module", "-e", NODE, str(folder), str(weights), str(file)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def compare(
    lib: Any, size: tuple[int, int], quality: int, threads: int, turns: int, web: Path | None
) -> dict[str, Any]:
    codec, decoder = Codec(threads=threads), Decoder(lib, WEIGHTS.read_bytes(), threads=threads)
    picture = np.tile(landscape(), (-(-size[1] // 512), -(-size[0] // 768), 1))[: size[1], : size[0]]
    data = codec.encode(picture, quality, screen="off")
    process = None
    if web is not None and threads == 1:
        web.write_bytes(data)
        process = node(web)
    rows: list[list[float]] = []
    for _ in range(turns + 2):  # the first two warm up
        python, wanted = timed(lambda: codec.decode(data, "numpy"))
        native, found = timed(lambda: decoder.decode(data))
        assert np.array_equal(found, wanted)
        rows.append([python, native])
        if process is not None and process.stdin is not None and process.stdout is not None:
            process.stdin.write("\n")
            process.stdin.flush()
            rows[-1].append(float(process.stdout.readline()))
    if process is not None:
        process.communicate()
    times = np.array(rows[2:])
    result = {"size": f"{size[0]}x{size[1]}", "quality": quality, "threads": threads, "bytes": len(data)}
    result |= {"python_ms": np.median(times[:, 0]), "c_ms": np.median(times[:, 1])}
    result["c_to_python"] = np.median(times[:, 1] / times[:, 0])
    if times.shape[1] > 2:
        result |= {"node_ms": np.median(times[:, 2]), "node_to_c": np.median(times[:, 2] / times[:, 1])}
    return {key: round(float(value), 3) if isinstance(value, float) else value for key, value in result.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--web", type=Path, metavar="FILE", help="also in Node; FILE is written for it")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lib, results = library(), []
    for size in ((256, 256), (768, 512), (3840, 2160)):
        for quality in (30, 60, 90) if size[0] == 768 else (60,):
            for threads in (1, 2):
                turns = args.turns if size[0] < 1000 else max(3, args.turns // 3)
                results.append(compare(lib, size, quality, threads, turns, args.web))
                print(results[-1])
    if args.out:
        text = json.dumps({"environment": environment(), "results": results}, indent=1)
        args.out.write_text(f"{text}\n")


if __name__ == "__main__":
    main()
