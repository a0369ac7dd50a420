"""Makes the package of weights from the sources, and installs it: slim wheels depend on it."""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str) -> None:
    subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True)


run("pip", "install", "--quiet", "numpy", "pillow", "rich", "safetensors", "shtab")
with tempfile.TemporaryDirectory() as folder:
    run("dca_fast", "package", "-o", folder)
    run("pip", "install", "--quiet", *map(str, Path(folder).iterdir()))
