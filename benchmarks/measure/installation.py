"""Size and time of installations, and of a command and a first codec in them.

    python benchmarks/measure/installation.py [LABEL=CHECKOUT ...] [--json FILE]

Makes a fresh virtual environment for each checkout of dca-fast, installs it there and measures megabytes, seconds and
peak memory of `dca-fast decode` of a small file, seconds of `import dca_fast; dca_fast.Codec()`: medians of `--repeat`
processes, in turns. Default: this checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from dca_fast.evaluation.report import environment
from dca_fast.files.atomic import write_atomic
from dca_fast.profile.recorder import timed

ROOT = Path(__file__).resolve().parents[2]
PICTURE = (
    "from dca_fast.testing import photograph; from PIL import Image; import sys; "
    "Image.fromarray(photograph(48, 72)).save(sys.argv[1])"
)
FIRST = "import time; t = time.perf_counter(); import dca_fast; dca_fast.Codec(); print(time.perf_counter() - t)"


class Installation:
    """A fresh environment with one checkout, in a folder of its own."""

    def __init__(self, checkout: Path, folder: Path) -> None:
        self._venv, self._folder = folder / "venv", folder
        folder.mkdir()
        subprocess.run([sys.executable, "-m", "venv", str(self._venv)], check=True)
        self.megabytes_of_pip = self.megabytes()
        install = [self._bin("python"), "-m", "pip", "install", "--quiet", str(checkout.resolve())]
        self.install_s = timed(lambda: subprocess.run(install, check=True))[1] / 1e3
        picture, self._file, self._back = (folder / name for name in ("small.png", "small.dca", "back.png"))
        subprocess.run([self._bin("python"), "-c", PICTURE, str(picture)], check=True, cwd=folder)
        subprocess.run([self._bin("dca-fast"), "encode", str(picture), str(self._file)], check=True)

    def _bin(self, name: str) -> str:
        return str(self._venv / "bin" / name)

    def megabytes(self) -> float:
        """Of all files, each once."""
        files = (path.lstat() for path in self._venv.rglob("*") if not path.is_dir())
        return sum({(file.st_dev, file.st_ino): file.st_size for file in files}.values()) / 1e6

    def decode(self) -> tuple[float, float]:
        """Seconds, and peak memory in megabytes."""
        self._back.unlink(missing_ok=True)
        process = subprocess.Popen([self._bin("dca-fast"), "decode", str(self._file), str(self._back)])
        (_, status, usage), ms = timed(os.wait4, process.pid, 0)
        if status:
            raise SystemExit("a decode failed")
        return ms / 1e3, usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)

    def first(self) -> float:
        """Seconds until a codec is there."""
        command = [self._bin("python"), "-c", FIRST]
        return float(subprocess.run(command, check=True, cwd=self._folder, capture_output=True).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="*", default=[f"now={ROOT}"], metavar="LABEL=CHECKOUT")
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    os.environ.pop("PYTHONPATH", None)  # only what is installed there
    with tempfile.TemporaryDirectory() as name:
        named = [text.partition("=") for text in args.checkouts]
        installations = {
            label: Installation(Path(path), Path(name) / str(i)) for i, (label, _, path) in enumerate(named)
        }
        times: dict[str, list[tuple[float, float, float]]] = {label: [] for label in installations}
        for _ in range(args.repeat):
            for label, installation in installations.items():
                times[label].append((*installation.decode(), installation.first()))
        runs: dict[str, Any] = {}
        for label, installation in installations.items():
            decode_s, peak, first = (statistics.median(values) for values in zip(*times[label], strict=True))
            runs[label] = {
                "install_s": round(installation.install_s, 1),
                "installed_mb": round(installation.megabytes()),
                "of_which_pip_mb": round(installation.megabytes_of_pip),
                "decode_s": round(decode_s, 3),
                "decode_peak_mb": round(peak, 1),
                "first_codec_s": round(first, 3),
            }
    print(json.dumps(runs, indent=1))
    if args.json:
        write_atomic(args.json, (json.dumps({"runs": runs, **environment()}, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
