"""Desktops and file(1) know .dca files by the files of dca_fast/share/."""

import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

import dca_fast
from dca_fast import Codec
from dca_fast.files.container import MAGIC
from dca_fast.pillow import MIME
from dca_fast.testing import photograph

SHARE = Path(dca_fast.__file__).parent / "share"


def program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def test_file_knows_them(tmp_path: Path) -> None:
    command = [program("file"), "-b", "-m", SHARE / "dca.magic"]
    data = Codec(threads=1).encode(photograph(40, 60), effort=0)
    (tmp_path / "photo").write_bytes(data)
    (tmp_path / "other").write_bytes(b"\x88" + data[1:])

    def says(*arguments: str, name: str = "photo") -> str:
        return subprocess.run(
            [*command, *arguments, tmp_path / name], capture_output=True, text=True, check=True
        ).stdout

    assert says() == f"DCA neural image, format version {data[len(MAGIC)]}\n"
    assert says("--mime-type") == f"{MIME}\n"
    assert says("--extension") == "dca\n"
    assert "DCA" not in says(name="other")


def test_the_description_of_the_type_is_that_of_the_format() -> None:
    space = {"m": "http://www.freedesktop.org/standards/shared-mime-info"}
    (kind,) = ElementTree.parse(SHARE / "dca-fast.xml").getroot()
    (match,) = kind.findall("m:magic/m:match", space)
    assert kind.get("type") == MIME
    assert match.attrib["value"].encode().decode("unicode_escape").encode("latin-1") == MAGIC
    assert [glob.get("pattern") for glob in kind.findall("m:glob", space)] == ["*.dca"]


def test_shared_mime_info_takes_it(tmp_path: Path) -> None:
    update = program("update-mime-database")
    (tmp_path / "packages").mkdir()
    shutil.copy(SHARE / "dca-fast.xml", tmp_path / "packages")
    subprocess.run([update, tmp_path], capture_output=True, check=True)
    assert f"{MIME}:*.dca" in (tmp_path / "globs2").read_text("utf-8")
    assert MAGIC in (tmp_path / "magic").read_bytes()
