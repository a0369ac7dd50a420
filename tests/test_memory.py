"""What coding takes for a pixel more: from the peaks of processes of their own, with small tiles and strips."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SIZES = (1024, 1024), (2048, 1536)
PAGES = [("page 0", 40), ("page 1", 40), ("page", 15)]
RESET = Path("/proc/self/clear_refs")
# Arrays go back to the system when they are let go.
ENVIRONMENT = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "DCA_THREADS": "1"}
SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from dca_fast import Codec
from dca_fast.engines import cpu
from dca_fast.network import walk
from dca_fast.profile.run import memory
from dca_fast.testing import page, photograph

way, height, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
walk.TILE, cpu.STRIP_PIXELS = 32, 1 << 17
effort = int(way.removeprefix("page ")) if way[-1].isdigit() else None
codec, tile = Codec(), page(256, 256, seed=1) if way.startswith("page") else photograph(256, 256, seed=2)
image = np.tile(tile, (height // 256, width // 256, 1))
if way == "gray":
    image = image[..., 0].copy()
if effort is None:
    data = codec.encode(image, 60, effort=0)
    del image
codec.decode(codec.encode(tile, 60), "numpy")
Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now
before = memory(peak=False)
if effort is not None:
    codec.encode(image, 60, effort=effort)
else:
    codec.decode(data, "numpy")
print(memory(peak=True) - before)
"""


@pytest.mark.skipif(not os.access(RESET, os.W_OK), reason="the peak of memory cannot be reset here")
@pytest.mark.parametrize(("way", "most"), [("0", 30), ("1", 30), ("decode", 15), ("gray", 15), ("6", 160), *PAGES])
def test_a_pixel_takes_little_memory(way: str, most: int) -> None:
    """`way`: an effort, or what is decoded; "page" of a screen. `most`: bytes per pixel."""
    peaks = []
    for height, width in SIZES:
        command = [sys.executable, "-c", SCRIPT, way, str(height), str(width)]
        found = subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True)
        peaks.append(int(found.stdout))
    (height, width), (higher, wider) = SIZES
    assert 3 < (peaks[1] - peaks[0]) / (higher * wider - height * width) <= most
