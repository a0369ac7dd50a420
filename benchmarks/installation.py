"""What an installation takes, and what a command and a first codec take in it.

    python benchmarks/installation.py [CHECKOUT] [--extras torch] [--json FILE --label NAME]

Makes a fresh virtual environment, installs a checkout of dca-fast there and measures megabytes, seconds and peak memory
of `dca-fast decode` of a small file, seconds of `import dca_fast; dca_fast.Codec()`. Medians of `--repeat` runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dca_fast.files import write_atomic
from dca_fast.report import environment

ROOT = Path(__file__).resolve().parents[1]
PICTURE = "from dca_fast.testing import photograph; from PIL import Image; import sys; "
FIRST = "import time; t = time.perf_counter(); import dca_fast; dca_fast.Codec(); print(time.perf_counter() - t)"


def megabytes(folder: Path) -> float:
    """Of all files below, each once."""
    files = {(s.st_dev, s.st_ino): s.st_size for p in folder.rglob("*") if not p.is_dir() for s in [p.lstat()]}
    return sum(files.values()) / 1e6


def run(command: list[str]) -> tuple[float, float]:
    """Seconds and peak memory in megabytes of a command that must succeed."""
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{command} failed")
    return seconds, usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, nargs="?", default=ROOT)
    parser.add_argument("--extras", default="", help="as torch,eval (default: none)")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--json", type=Path, help="results are added there under --label")
    parser.add_argument("--label", default="as it is")
    args = parser.parse_args()
    os.environ.pop("PYTHONPATH", None)  # only what is installed there
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        venv = folder / "venv"
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        before = megabytes(venv)
        python, command = venv / "bin" / "python", venv / "bin" / "dca-fast"
        what = f"{args.checkout.resolve()}[{args.extras}]" if args.extras else str(args.checkout.resolve())
        start = time.perf_counter()
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", what], check=True)
        facts: dict[str, Any] = {
            "extras": args.extras,
            "install_s": round(time.perf_counter() - start, 1),
            "installed_mb": round(megabytes(venv)),
            "of_which_pip_mb": round(before),
        }
        picture, file, back = folder / "small.png", folder / "small.dca", folder / "back.png"
        code = PICTURE + "Image.fromarray(photograph(48, 72)).save(sys.argv[1])"
        subprocess.run([str(python), "-c", code, str(picture)], check=True, cwd=folder)
        subprocess.run([str(command), "encode", str(picture), str(file)], check=True)
        decodes = []
        for _ in range(args.repeat):
            back.unlink(missing_ok=True)
            decodes.append(run([str(command), "decode", str(file), str(back)]))
        facts["decode_s"] = round(statistics.median(seconds for seconds, _ in decodes), 3)
        facts["decode_peak_mb"] = round(statistics.median(peak for _, peak in decodes), 1)
        firsts = [
            float(subprocess.run([str(python), "-c", FIRST], check=True, cwd=folder, capture_output=True).stdout)
            for _ in range(args.repeat)
        ]
        facts["first_codec_s"] = round(statistics.median(firsts), 3)
    print(json.dumps(facts, indent=1))
    if args.json:
        results = json.loads(args.json.read_text()) if args.json.exists() else {"runs": {}}
        results["runs"][args.label] = facts
        write_atomic(args.json, (json.dumps(results | environment(), indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
