"""Files are decoded with the weights that they name, wherever those are."""

import dataclasses
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from dca_fast import Codec
from dca_fast.cli.parser import main
from dca_fast.errors import CorruptStreamError, UnknownModelError, WeightsError
from dca_fast.files import container
from dca_fast.network import models, weights
from dca_fast.testing import photograph


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of another model id, in a folder of their own."""
    shipped = weights.load(models.named("dca-s"))
    tensors = dict(shipped.tensors)
    name = next(name for name in sorted(tensors) if name.startswith("synthesis.") and name.endswith(".b"))
    tensors[name] = tensors[name] + 1
    path = tmp_path_factory.mktemp("models") / "other.safetensors"
    weights.save(path, tensors, shipped.config, shipped.skip)
    return path


@pytest.fixture(scope="module")
def theirs(other: Path) -> bytes:
    return Codec(weights=other).encode(photograph(60, 40), 50)


def test_a_file_finds_its_weights(other: Path, theirs: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    codec, expected = Codec(), Codec(weights=other).decode(theirs, "numpy")
    mine = codec.encode(photograph(60, 40), 50)
    with pytest.raises(UnknownModelError, match=f"made with model {Codec(weights=other).model_id}.*DCA_WEIGHTS"):
        codec.decode(theirs)
    monkeypatch.setenv("DCA_WEIGHTS", os.pathsep.join(["/nowhere", str(other.parent)]))
    assert np.array_equal(codec.decode(theirs, "numpy"), expected)
    assert np.array_equal(codec.decode(theirs, "numpy", region=(3, 4, 20, 10)), expected[4:14, 3:23])
    assert codec.decode(theirs, "numpy", reduce=8).shape == (8, 5, 3)
    for picture, file in zip(codec.decode_batch([theirs, mine, theirs], "numpy"), (theirs, mine, theirs), strict=True):
        assert np.array_equal(picture, codec.decode(file, "numpy"))
    # One that encodes with those weights reads files of the shipped ones.
    assert np.array_equal(Codec(weights=other).decode(mine, "numpy"), codec.decode(mine, "numpy"))


def test_another_model_does_not_make_damaged_files_readable(
    other: Path, theirs: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file under the id of another model has another digest."""
    monkeypatch.setenv("DCA_WEIGHTS", str(other.parent))
    dca, codec = container.parse(theirs), Codec()
    forged = dataclasses.replace(dca.header, model_id=bytes.fromhex(codec.model_id))
    body = bytearray(container.pack(forged, dca.stream))
    before = theirs.index(dca.stream) - 4  # as it stood before the id was changed
    body[before : before + 4] = theirs[before : before + 4]
    body[-4:] = container.zlib.crc32(body[:-4]).to_bytes(4, "little")
    with pytest.raises(CorruptStreamError):
        codec.decode(bytes(body))


def test_the_command_line_finds_them(
    other: Path, theirs: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "theirs.dca"
    file.write_bytes(theirs)
    assert main(["decode", str(file), "-o", str(tmp_path / "a.png")]) == 3
    assert "made with model" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCA_WEIGHTS", str(other.parent))
        assert main(["decode", str(file), "-o", str(tmp_path / "a.png")]) == 0
        assert main(["verify", str(file)]) == 0


def test_a_package_offers_a_folder(other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "dca_weights_of_a_test"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    (package / other.name).write_bytes(other.read_bytes())
    facts = tmp_path / "dca_weights_of_a_test-1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: dca-weights-of-a-test\nVersion: 1\n")
    damaged = "a = missing.weights\nb = :\n"  # of packages that are gone by half
    (facts / "entry_points.txt").write_text(f"[{models.GROUP}]\n{damaged}other = {package.name}\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert package in models.folders()
    assert models.named("other") == package / other.name
    assert models.of_id(weights.identity_of(other)[:4]) == package / other.name


def test_a_package_is_made_of_weights(other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = weights.identity_of(other)[:4]
    assert main(["package", str(other), "-o", str(tmp_path)]) == 0
    folder = tmp_path / models.distribution(model)
    assert folder.name == f"dca-fast-weights-{model.hex()}"
    inner = folder / folder.name.replace("-", "_")
    assert (inner / "dca-s.safetensors").read_bytes() == other.read_bytes()
    project = (folder / "pyproject.toml").read_text()
    assert f'"{model.hex()}" = "{inner.name}"' in project
    assert main(["package", str(other), "-o", str(tmp_path)]) == 2
    assert f"{folder} exists" in capsys.readouterr().err
    assert main(["package", str(folder / "pyproject.toml"), "-o", str(tmp_path)]) == 4


@pytest.mark.parametrize("name", ["../../evil", "x/y", 'a"b', "", ".hidden"])
def test_a_package_is_called_what_files_can_be(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = weights.load(models.named("dca-s"))
    weights.save(tmp_path / "w.safetensors", loaded.tensors, dataclasses.replace(loaded.config, name=name), loaded.skip)
    before = sorted(tmp_path.rglob("*"))
    assert main(["package", str(tmp_path / "w.safetensors"), "-o", str(tmp_path / "out" / "in")]) == 2
    assert "cannot be called" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_file_does_not_hide_a_good_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    shipped = models.named("dca-s")
    for folder, content in ((good, shipped.read_bytes()), (bad, b"bad")):
        folder.mkdir()
        (folder / shipped.name).write_bytes(content)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "models.json").write_text((models.SHIPPED / "models.json").read_text())
    monkeypatch.setattr(models, "SHIPPED", tmp_path / "none")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: ())
    monkeypatch.setenv("DCA_WEIGHTS", f"{bad}{os.pathsep}{good}")
    assert models.named("dca-s") == good / shipped.name
    monkeypatch.setenv("DCA_WEIGHTS", str(bad))
    with pytest.raises(WeightsError, match=r"no weights are called 'dca-s'.*cannot read weights"):
        models.named("dca-s")


def test_a_damaged_copy_does_not_hide_a_good_one(
    other: Path,
    theirs: bytes,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = bytearray(other.read_bytes())
    content[-1] ^= 1
    (tmp_path / "a.safetensors").write_bytes(content)
    (tmp_path / "b.safetensors").write_bytes(other.read_bytes())
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.safetensors")
    monkeypatch.setenv("DCA_WEIGHTS", str(tmp_path))
    assert Codec().decode(theirs).size == (40, 60)
    # Of copies that decode, one that encodes.
    header = 8 + int.from_bytes(content[:8], "little")
    at = header + json.loads(content[8:header])["latent.operand8"]["data_offsets"][0]
    blind = bytearray(other.read_bytes())
    blind[at] ^= 1
    for folder, data in (("c", blind), ("d", other.read_bytes())):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / other.name).write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCA_WEIGHTS", os.pathsep.join([str(tmp_path / "c"), str(tmp_path / "d")]))
        assert models.named(other.stem) == tmp_path / "d" / other.name
        assert Codec(weights=tmp_path / "c" / other.name).decode(theirs).size == (40, 60)
    source = tmp_path / "in"
    source.mkdir()
    command = ["encode", str(source), "-o", str(tmp_path / "out"), "--weights", str(tmp_path / "c" / other.name)]
    for i in range(3):
        Image.fromarray(photograph(8, 8)).save(source / f"{i}.png")
    capsys.readouterr()
    assert main(command) == 4
    assert capsys.readouterr().err.count("have no encoder: ") == 1  # for all of them
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(WeightsError, match="damaged"):
        Codec().decode(theirs)


def test_releases_are_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The shipped weights are the newest of their name; without them the message names their package."""
    identity = weights.identity_of(models.named("dca-s"))
    assert next(iter(models.released().items())) == (identity, "dca-s")
    monkeypatch.setattr(models, "SHIPPED", tmp_path)
    monkeypatch.setattr(
        "importlib.metadata.entry_points", lambda group: ()
    )  # the package of the weights may be installed
    (tmp_path / "models.json").write_text(json.dumps({identity.hex(): {"name": "dca-s", "since": "0.1.0"}}))
    brings = f"`pip install {models.distribution(identity[:4])}` brings them"
    with pytest.raises(WeightsError, match=brings):
        models.named("dca-s")
    with pytest.raises(WeightsError, match=brings):
        models.of_id(identity[:4])


def test_a_file_in_the_way_is_named(
    other: Path, theirs: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is no weights file hides no other."""
    (tmp_path / "a.safetensors").write_bytes(b"garbage that is long enough for any header")
    monkeypatch.setenv("DCA_WEIGHTS", str(tmp_path))
    with pytest.raises(UnknownModelError, match=r"cannot read weights .*a\.safetensors"):
        Codec().decode(theirs)
    (tmp_path / "b.safetensors").write_bytes(other.read_bytes())
    assert Codec().decode(theirs).size == (40, 60)


def test_a_false_identity_is_refused(
    other: Path, theirs: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metadata that claim the id of a file, over tensors of another model."""
    with safe_open(models.named("dca-s"), framework="np") as f:
        tensors, metadata = {name: f.get_tensor(name) for name in f.keys()}, f.metadata()  # noqa: SIM118
    save_file(tensors, tmp_path / "false.safetensors", metadata | {"identity": weights.identity_of(other).hex()})
    monkeypatch.setenv("DCA_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsError, match="identity"):
        Codec().decode(theirs)
    for wrong in ("", "xy", "ab" * 31):
        save_file(tensors, tmp_path / "false.safetensors", metadata | {"identity": wrong})
        with pytest.raises(WeightsError, match="identity"):
            weights.identity_of(tmp_path / "false.safetensors")


def test_two_models_of_one_id_are_refused(
    other: Path, theirs: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_id = container.parse(theirs).header.model_id
    both = {model_id + bytes(28): [other], model_id + bytes([1] * 28): [tmp_path / "forged.safetensors"]}
    monkeypatch.setattr(models, "listed", lambda: (both, []))
    with pytest.raises(UnknownModelError, match=r"other\.safetensors and .*forged\.safetensors differ"):
        Codec().decode(theirs)


def test_shipped_weights_have_names() -> None:
    with pytest.raises(WeightsError, match="no weights are called 'dca-x'; those here: dca-s"):
        models.named("dca-x")
    assert Codec().model_id == weights.identity_of(models.named("dca-s"))[:4].hex()
