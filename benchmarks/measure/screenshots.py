"""Pictures of programs' manuals for `screens.py`, most of them screenshots, as Debian distributes them.

    mkdir PACKAGES; (cd PACKAGES; apt-get download $(python benchmarks/measure/screenshots.py --packages))
    python benchmarks/measure/screenshots.py FOLDER --from PACKAGES

Of each manual those that stand at equal steps in the list of its pictures by name, of at least LEAST pixels, so
that nobody chose them. What is transparent becomes white. All are under free licences, most of them the GNU Free
Documentation License or Creative Commons BY-SA: the file copyright in each package names it. No picture was seen by any
training, and none is kept in the repository. The packages of the published figures are those of Debian 12.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

LEAST = 300_000
OF_EACH = 3
PACKAGES = (
    "debian-handbook",
    "gimp-help-en",
    "gnome-user-docs",
    "gnucash-docs",
    "gnumeric-doc",
    "kicad-doc-en",
    "kile-doc",
    "mate-user-guide",
    "qtcreator-doc",
    "texstudio-doc",
    "wxmaxima",
)


def on_white(path: Path) -> Image.Image:
    picture = Image.open(path).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def pictures(folder: Path) -> list[Path]:
    """The large ones, one of each name: the same in other languages would count twice."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.png")):
        if path.is_symlink():
            continue
        with Image.open(path) as picture:
            if picture.width * picture.height >= LEAST:
                found.setdefault(path.name, path)
    return list(found.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", metavar="FOLDER")
    parser.add_argument("--from", dest="packages", type=Path, help="a folder of the packages' files (.deb)")
    parser.add_argument("--packages", dest="names", action="store_true", help="print the packages' names")
    args = parser.parse_args()
    if args.names:
        print(*PACKAGES)
        return 0
    if args.out is None or args.packages is None:
        parser.error("both folders are needed")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in PACKAGES:
        (package,) = args.packages.glob(f"{name}_*.deb")
        with tempfile.TemporaryDirectory() as unpacked:
            subprocess.run(["dpkg-deb", "--extract", package, unpacked], check=True)
            found = pictures(Path(unpacked))
            for i in range(OF_EACH):
                path = found[(2 * i + 1) * len(found) // (2 * OF_EACH)]
                on_white(path).save(args.out / f"{name}-{i}-{path.stem}.png")
                print(f"{package.name}: {path.relative_to(unpacked)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
