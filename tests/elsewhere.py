"""The C library built for another system, and run there or in an emulation of it: the pixels are this machine's.

    pip install ziglang
    python -m tests.elsewhere aarch64-linux-musl qemu-aarch64   # Debian's package qemu-user
    python -m tests.elsewhere x86_64-windows-gnu wine           # Debian's packages wine and wine64
    python -m tests.elsewhere aarch64-macos                     # built, not run

A target is one of Zig's; what follows it runs a program of that system. Files are those of the conformance table.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.progress import track

from tests.decoder_library import ROOT, WEIGHTS, build

zig = runpy.run_path(str(ROOT / "web" / "build.py"))["zig"]
CONFORMANCE = ROOT / "tests" / "conformance"
SYSTEMS = {"linux": "Linux", "windows": "Windows", "macos": "Darwin"}


def built(target: str) -> Path:
    """`decode`, the program of examples/, linked with the library, for one of Zig's targets."""
    processor, system = target.split("-")[:2]
    tools = ROOT / "build" / f"zig-{target}"
    tools.mkdir(parents=True, exist_ok=True)
    for tool in ("cc", "c++", "ar", "ranlib"):
        call = [*zig(), tool, *(["-target", target] if tool in ("cc", "c++") else [])]
        script = f'#!/bin/sh\nexec {shlex.join(call)} "$@"\n'
        if not (tools / tool).exists() or (tools / tool).read_text() != script:
            (tools / tool).write_text(script)
            (tools / tool).chmod(0o755)
    options = {"C_COMPILER": "cc", "CXX_COMPILER": "c++", "AR": "ar", "RANLIB": "ranlib"}
    definitions = [f"-DCMAKE_{name}={tools / tool}" for name, tool in options.items()]
    definitions += [f"-DCMAKE_SYSTEM_NAME={SYSTEMS[system]}", f"-DCMAKE_SYSTEM_PROCESSOR={processor}"]
    folder = build(target, "-DBUILD_SHARED_LIBS=OFF", *definitions)
    return next(path for path in (folder / "decode", folder / "decode.exe") if path.exists())


def decoded(command: Sequence[str | Path], data: Path, folder: Path) -> bytes:
    """The picture that a program writes."""
    out = folder / "picture"
    out.unlink(missing_ok=True)
    wine = {"WINEPREFIX": str(ROOT / "build" / "wine"), "WINEDEBUG": "-all"}  # its own Windows, not the user's
    subprocess.run([*command, WEIGHTS, data, out], check=True, capture_output=True, env=os.environ | wine)
    return out.read_bytes()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help=f"processor-system-library, systems: {', '.join(SYSTEMS)}")
    parser.add_argument("runner", nargs="*", help="what runs programs of that system")
    args = parser.parse_args()
    theirs = built(args.target)
    if not args.runner:
        print(f"{args.target}: built, not run")
        return 0
    ours, rows = build() / "decode", json.loads((CONFORMANCE / "conformance.json").read_text())["vectors"]
    with tempfile.TemporaryDirectory() as scratch:
        different = []
        for row in track(rows, args.target):
            data = CONFORMANCE / row["file"]
            if decoded([*args.runner, theirs], data, Path(scratch)) != decoded([ours], data, Path(scratch)):
                different.append(row["file"])
    print(f"{args.target}: {len(rows)} files, {len(different)} with other pixels {' '.join(different)}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
