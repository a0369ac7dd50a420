"""Pillow opens and saves .dca files once `dca_fast.pillow` is imported.

python examples/pillow_plugin.py
"""

import tempfile
from pathlib import Path

from PIL import Image

import dca_fast.pillow  # noqa: F401 (registers the format)
from dca_fast.testing import landscape

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "landscape.dca"
    Image.fromarray(landscape(256, 384)).save(path, quality=70, effort=2)
    with Image.open(path) as image:  # reads size and metadata; pixels are decoded when they are needed
        print(image.format, image.mode, image.size, f"{path.stat().st_size:,} bytes")
        print("a thumbnail:", image.resize((96, 64)).size)
