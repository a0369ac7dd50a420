"""All of the native backend in a process in which PyTorch cannot be imported; bytes and pixels as with it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dca_fast import Codec
from dca_fast.testing import photograph

BLOCK = "import sys; sys.modules['torch'] = sys.modules['triton'] = None\n"
WORK = """
import hashlib, io, json
import numpy as np
from PIL import Image
import dca_fast.pillow
from dca_fast import Codec, inspect
from dca_fast.testing import photograph

def work():
    codec, files = Codec(threads=2), []
    colour = photograph(70, 90, seed=1)
    alpha = np.arange(70 * 90, dtype=np.uint8).reshape(70, 90)
    for effort in range(10):
        files.append(codec.encode(colour[:33, :40] if effort > 5 else colour, 60, effort=effort))
    files.append(codec.encode(colour[..., 0]))
    files.append(codec.encode(np.dstack([colour, alpha]), metadata={"xmp": b"<x/>"}))
    files += codec.encode_batch([colour, colour[:1]], aq_strength=0.5)
    for goal in ({"psnr": 31}, {"bpp": 0.6}, {"max_bytes": 900}):
        files.append(codec.encode_to(colour, **goal))
    saved = io.BytesIO()
    Image.fromarray(colour).save(saved, "DCA", quality=40)
    files.append(saved.getvalue())
    pixels = [np.asarray(Image.open(io.BytesIO(data))) for data in files]
    pixels += [codec.decode(data, output) for data in files for output in ("numpy", "pil")]
    digests = [hashlib.sha256(data).hexdigest() for data in files]
    return digests + [hashlib.sha256(np.ascontiguousarray(p).tobytes()).hexdigest() for p in pixels]
"""


def without_torch(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", BLOCK + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pictures_are_coded_as_with_it() -> None:
    here: dict = {}
    exec(WORK, here)
    assert json.loads(without_torch(WORK + "\nprint(json.dumps(work()))")) == here["work"]()


def test_commands_run(tmp_path: Path) -> None:
    picture, file = tmp_path / "photo.png", tmp_path / "photo.dca"
    Image.fromarray(photograph(40, 50)).save(picture)
    run = "from dca_fast.cli.parser import main\nassert main(sys.argv[1:]) == 0"
    without_torch(run, "encode", picture, file, "--verify", "--effort", 2)
    assert hashlib.sha256(file.read_bytes()).digest() == hashlib.sha256(Codec().encode(picture, effort=2)).digest()
    without_torch(run, "decode", file, tmp_path / "back.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "back.png")), Codec().decode(file, "numpy"))
    assert '"width": 50' in without_torch(run, "info", file, "--json")
    assert Codec().model_id in without_torch(run, "info", "--preset", "dca-s")
    assert "PSNR" in without_torch(run, "eval", tmp_path, "--qualities", "20,60")
    assert "landscape" in without_torch(run, "demo", "--out", tmp_path / "demo")
    profile = "from dca_fast.profile.run import main\nassert main(sys.argv[1:]) == 0"
    assert "encode" in without_torch(profile, "--resolution", "128x96", "--repeat", "1")


@pytest.mark.parametrize(
    ("call", "extra"),
    [
        ("Codec(backend='reference')", "torch"),
        ("Codec(device='cuda')", "gpu"),
        ("Codec().decode(Codec().encode(np.zeros((8, 8, 3), np.uint8)), 'torch')", "torch"),
    ],
)
def test_what_needs_it_names_the_command_that_installs_it(call: str, extra: str) -> None:
    code = (
        "import numpy as np\nfrom dca_fast import BackendUnavailableError, Codec\n"
        f"try:\n    {call}\nexcept BackendUnavailableError as error:\n    print(error)"
    )
    assert f'pip install "dca-fast[{extra}]"' in without_torch(code)


@pytest.mark.parametrize(
    "command", ["train --data . --out runs", "export a.pt b.safetensors", "ablate --data . --out r --start s"]
)
def test_commands_that_need_it_say_so_in_a_line(command: str, tmp_path: Path) -> None:
    code = BLOCK + "from dca_fast.cli.parser import main\nsys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *command.split()], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 4
    assert 'pip install "dca-fast[torch]"' in done.stderr
    assert len(done.stderr.splitlines()) == 1
