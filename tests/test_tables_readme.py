"""The tables and the charts in the documents are those of the saved results, and the check of that can fail."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "tables.py"


@pytest.fixture(scope="module")
def tables(benchmark_script: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_script("tables")


@pytest.fixture
def copied(tables: ModuleType, tmp_path: Path) -> Path:
    """Documents and results, free to be changed."""
    for name in (*tables.DOCUMENTS, *tables.CHARTS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / tables.RESULTS.parent, tmp_path / tables.RESULTS.parent)
    return tmp_path


def change(path: Path, *keys: str | int, value: object) -> None:
    """Set one value inside of a JSON file."""
    facts = place = json.loads(path.read_text("utf-8"))
    for key in keys[:-1]:
        place = place[key]
    assert place[keys[-1]] != value
    place[keys[-1]] = value
    path.write_text(json.dumps(facts), "utf-8")


def test_documents_agree_with_the_results() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, f"run python benchmarks/tables.py:\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize(
    ("file", "keys", "value", "document"),
    [
        ("kodak", ("bd_rate", "JPEG 4:2:0 (libjpeg-turbo 3.2.0)", "rate_percent"), -99.0, "README.md"),
        ("kodak", ("bd_rate", "JPEG 4:2:0 (libjpeg-turbo 3.2.0)", "rate_percent"), -99.0, "docs/results.md"),
        ("speed", ("sizes", "768x512", "dca-s", "encode_ms"), 0.125, "README.md"),
        ("speed", ("sizes", "1920x1080", "dca-s", "encode_ms"), 0.125, "docs/results.md"),
        ("scaling", ("exponents", "decode_ms"), 7.0, "docs/results.md"),
        ("effort", ("levels", 4, "rate_percent"), -50.0, "docs/guide/encoding.md"),
        ("hostile", ("wrong_pictures",), 3, "docs/results.md"),
        ("profile", ("encode", "floor_ms"), 1e6, "docs/results.md"),
        ("bench", ("rows", 0, "median"), 12.5, "docs/results.md"),
    ],
)
def test_another_result_is_noticed_and_written(
    tables: ModuleType, copied: Path, file: str, keys: tuple[str | int, ...], value: object, document: str
) -> None:
    path = copied / tables.RESULTS / f"{file}.json"
    if file == "kodak":  # the library's version is part of the name
        keys = (keys[0], next(iter(json.loads(path.read_text("utf-8"))["bd_rate"])), keys[2])
    change(path, *keys, value=value)
    before = (copied / document).read_text("utf-8")
    assert any(line.startswith(document) for line in tables.run(copied, check=True))
    assert (copied / document).read_text("utf-8") == before
    tables.run(copied, check=False)
    assert (copied / document).read_text("utf-8") != before
    assert tables.run(copied, check=True) == []


def test_figures_typed_by_hand_are_noticed(tables: ModuleType, copied: Path) -> None:
    readme = copied / "README.md"
    text = readme.read_text("utf-8")
    start = text.index("<!-- tables:times -->")
    digit = next(i for i in range(start, len(text)) if text[i].isdigit())
    readme.write_text(text[:digit] + str(9 - int(text[digit])) + text[digit + 1 :], "utf-8")
    assert [line for line in tables.run(copied, check=True) if line.startswith("README.md")]


@pytest.mark.parametrize(
    ("chart", "file", "keys"),
    [
        ("docs/speed.png", "speed", ("sizes", "768x512", "WebP method 4", "decode_ms")),
        ("docs/kodak.png", "kodak", ("points", 3, "ms_ssim")),
        ("docs/experiments/ablation.png", "ablation", ("twins", "rl", "psnr_gain")),
    ],
)
def test_charts_are_of_the_results(
    tables: ModuleType, copied: Path, chart: str, file: str, keys: tuple[str | int, ...]
) -> None:
    said = f"{chart} was drawn from other results"
    change(copied / tables.RESULTS / f"{file}.json", *keys, value=0.5)
    assert said in tables.run(copied, check=True)
    (copied / chart).unlink()
    assert said in tables.run(copied, check=True)
    tables.run(copied, check=False)
    assert tables.run(copied, check=True) == []


def test_results_of_different_weights_are_noticed(tables: ModuleType, copied: Path) -> None:
    change(copied / tables.RESULTS / "conformance.json", "model_id", value="00000000")
    assert any("different weights" in line for line in tables.run(copied, check=True))


def test_blocks_are_known_complete_and_all_there(tables: ModuleType, copied: Path) -> None:
    document = copied / "docs" / "results.md"
    text = document.read_text("utf-8")
    document.write_text(text.replace("tables:coder", "other:coder"), "utf-8")
    assert "no document has the table coder" in tables.run(copied, check=True)
    document.write_text(text.replace("tables:coder", "tables:colour"), "utf-8")
    with pytest.raises(ValueError, match="no table of the name 'colour'"):
        tables.run(copied, check=True)
    end = text.rindex("<!-- /tables -->")
    document.write_text(text[:end] + text[end + len("<!-- /tables -->") :], "utf-8")
    with pytest.raises(ValueError, match="no end"):
        tables.run(copied, check=True)


def test_numbers_have_three_digits(tables: ModuleType) -> None:
    shown = {0.1234: "0.12", 1.234: "1.23", 12.34: "12.3", 123.4: "123", 1234.0: "1,230", 999.7: "1000", 0.0: "0.00"}
    assert {value: tables.significant(value) for value in shown} == shown
