"""What documents say of the repository holds: links, paths, commands, variables, examples."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dca_fast.testing import photograph

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").glob("*.md")),
]
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
MOST_WORDS = 1000
SOURCES = [
    path
    for folder in ("dca_fast", "kernels", "csrc", "benchmarks", "tests", "examples", ".ci")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".h", ".cpp", ".cu", ".sh") or path.name == "run"
]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(path: Path) -> set[str]:
    """Anchors of the headings of a page, as GitHub and mkdocs make them of plain words."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", path.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def broken(page: Path, text: str) -> list[str]:
    """Relative links of a text that lead nowhere, were it at the place of `page`."""
    wrong = []
    for link in LINK.findall(CODE.sub("", text)):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("page", DOCUMENTS, ids=named)
def test_no_relative_link_is_broken(page: Path) -> None:
    assert broken(page, page.read_text("utf-8")) == []


def test_broken_links_are_found() -> None:
    page = ROOT / "docs" / "index.md"
    good = "[a](results.md) [b](results.md#exactness) [c](https://example.org/x) `[d](none.md)` ![e](speed.png)"
    assert broken(page, good) == []
    assert broken(page, "[a](none.md) [b](results.md#none) [c](#none)") == ["none.md", "results.md#none", "#none"]


@pytest.mark.parametrize("path", [path for path in SOURCES if "docs/" in path.read_text("utf-8")], ids=named)
def test_pages_that_sources_name_exist(path: Path) -> None:
    pages = re.findall(r"\bdocs/[\w/]+\.(?:md|png)", path.read_text("utf-8"))
    assert [page for page in pages if not (ROOT / page).exists()] == []


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    navigation = re.findall(r"^ +- ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    pages = (path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))
    assert sorted(navigation) == sorted(pages)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").split()) <= MOST_WORDS


def test_the_architecture_names_every_folder_and_nothing_else() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    rows = set(re.findall(r"`([\w./]+/)`", text.split("## The tree")[1].split("\n## ")[0]))
    if not (ROOT / ".git").exists():
        pytest.skip("which files belong to the repository only git knows")
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    parents = [name.split("/")[:-1] for name in files if "/" in name and not name.startswith(".")]
    folders = {"/".join(parts[:depth]) + "/" for parts in parents for depth in (1, 2)}
    assert folders - {"docs/"} <= rows, "a folder without a sentence"
    assert all((ROOT / row).is_dir() for row in rows)
    named_files = re.findall(r"`((?:dca_fast|csrc|kernels)/[\w/]+\.\w+)`", text)
    assert named_files
    assert [name for name in named_files if not (ROOT / name).exists()] == []


def test_every_variable_of_the_environment_has_a_row() -> None:
    page = (ROOT / "docs" / "reference" / "environment.md").read_text("utf-8")
    users = [path for path in SOURCES if path.relative_to(ROOT).parts[0] != "tests"]
    read = re.compile(r"(?:environ\S*[(\[]\s*|getenv\(|ParallelCompile\()\"(DCA_\w+)|\$\{(DCA_\w+)")
    texts = [path.read_text("utf-8") for path in (*users, ROOT / "setup.py", ROOT / "tests" / "conftest.py")]
    names = {name for text in texts for match in read.findall(text) for name in match if name}
    assert {"DCA_BACKEND", "DCA_THREADS", "DCA_QUEUE", "DCA_BUILD_JOBS"} <= names
    assert names <= set(re.findall(r"^\| `(DCA_\w+)` \|", page, re.MULTILINE))


def test_the_page_of_the_command_line_is_the_parsers(tmp_path: Path) -> None:
    script = ROOT / "docs" / "reference" / "make_cli.py"
    done = subprocess.run([sys.executable, script, "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    other = tmp_path / script.name
    other.write_text(script.read_text("utf-8"), "utf-8")
    page = (script.parent / "cli.md").read_text("utf-8")
    (tmp_path / "cli.md").write_text(page.replace("--strip", "--tidy"), "utf-8")
    again = subprocess.run([sys.executable, other, "--check"], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 1
    assert "something else than the parser" in again.stdout


def test_the_guide_to_encoding_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "guide" / "encoding.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    Image.fromarray(photograph(40, 60)).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    exec("\n".join(blocks), {})
    with Image.open(tmp_path / "back.png") as image:
        assert image.size == (60, 40)


# Examples


def run(name: str, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "examples" / name, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_every_example_is_listed_and_tested() -> None:
    names = {path.name for path in (ROOT / "examples").glob("*.py")}
    here = Path(__file__).read_text("utf-8")
    listed = (ROOT / "examples" / "README.md").read_text("utf-8")
    assert all(f"]({name})" in listed and f'run("{name}"' in here for name in names)


def test_example_roundtrip(tmp_path: Path) -> None:
    done = run("roundtrip.py", cwd=tmp_path)
    assert re.match(r"[\d,]+ bytes, \d\.\d\d bits per pixel, PSNR \d\d\.\d dB\n", done.stdout), done.stderr
    assert done.stdout.endswith("same bytes: True\none thread, same pixels: True\n")


def test_example_target_size(tmp_path: Path) -> None:
    done = run("target_size.py", cwd=tmp_path)
    size, bpp, _, refused = done.stdout.splitlines()
    assert 7000 < int(size.split()[-2].replace(",", "")) <= 8000
    assert int(bpp.split()[-2].replace(",", "")) <= 256 * 384 // 16
    assert "more than 100" in refused


def test_example_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(photograph(40, 60)).save(tmp_path / "in" / "photo.png")
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    first = run("folder.py", "in", "out", cwd=tmp_path).stdout
    assert "notes.txt: left out" in first
    assert "photo.png: " in first
    data = (tmp_path / "out" / "photo.png.dca").read_bytes()
    again = run("folder.py", "in", "out", cwd=tmp_path)
    assert "photo.png: left out" in again.stdout
    assert again.returncode == 0
    assert (tmp_path / "out" / "photo.png.dca").read_bytes() == data


def test_example_pillow_plugin(tmp_path: Path) -> None:
    done = run("pillow_plugin.py", cwd=tmp_path)
    assert done.stdout.startswith("DCA RGB (384, 256) "), done.stderr
    assert "a thumbnail: (96, 64)" in done.stdout


def test_example_cuda_tensors(tmp_path: Path) -> None:
    done = run("cuda_tensors.py", cwd=tmp_path)
    if done.returncode:
        assert done.stderr.startswith("no GPU: backend 'cuda' cannot run here: ")
        assert len(done.stderr.splitlines()) == 1
    else:
        assert done.stdout.count("True") == 2


def test_example_own_weights(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    weights = tmp_path / "own.safetensors"
    done = run("own_weights.py", ROOT / "checkpoints" / "dca-s.safetensors", weights, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    *_, coded, refused = done.stdout.splitlines()
    assert re.fullmatch(r"[0-9a-f]{8}: [\d,]+ bytes, \(384, 256\)", coded)
    assert refused.startswith(f"the shipped weights: made with model {coded[:8]}")


def test_example_webdataset_shards(tmp_path: Path) -> None:
    pytest.importorskip("webdataset", reason="pip install webdataset")
    pytest.importorskip("torch")
    (tmp_path / "in").mkdir()
    Image.fromarray(photograph(40, 60)).save(tmp_path / "in" / "photo.png")
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    done = run("webdataset_shards.py", "in", "shard.tar", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    left_out, picture = done.stdout.splitlines()
    assert left_out.startswith("notes.txt: left out")
    assert picture.startswith("photo.png.dca: (3, 40, 60) torch.uint8 on c")


@pytest.mark.slow
def test_example_ray_data(tmp_path: Path) -> None:
    pytest.importorskip("ray.data", reason="pip install 'ray[data]'")
    (tmp_path / "in" / "below").mkdir(parents=True)
    Image.fromarray(photograph(40, 60)).save(tmp_path / "in" / "below" / "photo.png")
    (tmp_path / "in" / "bad.png").write_text("no picture")
    done = run("ray_data.py", "encode", "in", "out", cwd=tmp_path)
    assert done.returncode == 1, done.stderr[-3000:]
    bad, good = sorted(done.stdout.splitlines())
    assert ": InputError: " in bad
    assert good == f"{tmp_path}/in/below/photo.png: {tmp_path}/out/below/photo.png.dca"
    assert run("ray_data.py", "decode", "out", "back", cwd=tmp_path).returncode == 0
    with Image.open(tmp_path / "back" / "below" / "photo.png") as image:
        assert image.size == (60, 40)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="pip install 'dca-fast[docs]'; .ci/run builds the site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(DOCUMENTS) - 10
    fetched = re.compile(r"(?:src|<link[^>]*href)=\"https?://")
    assert [path.name for path in pages if fetched.search(path.read_text("utf-8"))] == []
