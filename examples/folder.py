"""Every picture of a folder to .dca files; one that cannot be read does not stop the others.

    python examples/folder.py PICTURES ARCHIVE

`dca-fast encode PICTURES -o ARCHIVE` does the same and more: it resumes, verifies, shards and writes a manifest.
"""

import sys
from pathlib import Path

from dca_fast import Codec, InputError

if len(sys.argv) != 3:
    sys.exit(__doc__)
pictures, archive = map(Path, sys.argv[1:])
archive.mkdir(parents=True, exist_ok=True)
codec = Codec()
for path in sorted(path for path in pictures.iterdir() if path.is_file()):
    try:
        data = codec.encode(path, quality=60)
        with (archive / f"{path.name}.dca").open("xb") as file:  # "x": replaces nothing
            file.write(data)
    except (InputError, OSError) as error:
        print(f"{path.name}: left out: {error}")
        continue
    print(f"{path.name}: {path.stat().st_size:,} -> {len(data):,} bytes")
