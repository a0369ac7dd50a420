"""The decoder in WebAssembly gives the pixels of `Codec.decode`: in Node, and in Chromium with worker and element."""

from __future__ import annotations

import functools
import hashlib
import http.server
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.parse
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dca_fast import Codec, __version__, inspect
from dca_fast.errors import BitstreamError
from dca_fast.files import container
from dca_fast.testing import landscape, page, photograph
from tests.decoder_library import random_weights

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = sorted((ROOT / "tests" / "golden").glob("*.dca"))
CONFORMANCE = ROOT / "tests" / "conformance"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("zig") is None and importlib.util.find_spec("ziglang") is None, reason="no Zig to compile with"
    ),
]
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")


@pytest.fixture(scope="module")
def site() -> Path:
    """build/web; processes that test side by side wait for the one that builds."""
    import fcntl

    folder = ROOT / "build" / "web"
    folder.parent.mkdir(exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, ROOT / "web" / "build.py", "--no-samples"]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout
    return folder


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(threads=1)


def sha(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def rgba(codec: Codec, data: bytes, reduce: int = 1) -> np.ndarray:
    """As a page shows it: eight bits."""
    pixels = codec.decode(data, "numpy", reduce=reduce)
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    return pixels if pixels.shape[2] == 4 else np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])


def samples(codec: Codec, data: bytes) -> np.ndarray:
    pixels = codec.decode(data, "numpy")
    return np.concatenate([pixels[..., :1], pixels[..., 3:]], 2) if inspect(data).grayscale else pixels


@pytest.fixture(scope="module")
def files(codec: Codec, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pictures of all kinds, golden files, damaged ones."""
    folder, small = tmp_path_factory.mktemp("web"), photograph(75, 101)
    alpha = (np.arange(75)[:, None] * 3 + np.arange(101)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    blocks = {"exif": exif.tobytes().removeprefix(b"Exif\0\0"), "icc": b"profile", "xmp": b"<x/>"}
    made = {
        "one": codec.encode(photograph(1, 1), 50),
        "column": codec.encode(photograph(130, 1), 20),
        "low": codec.encode(small, 0),
        "high": codec.encode(small, 100),
        "gray": codec.encode(small[..., 0], 50),
        "alpha": codec.encode(np.dstack([small, alpha]), 50, effort=1),
        "gray_alpha": codec.encode(Image.fromarray(np.dstack([small, alpha])).convert("LA"), 50),
        "screen": codec.encode(page(100, 140), 60),
        "adaptive": codec.encode(small, 50, aq_strength=15 / 16),
        "turned": codec.encode(small, 50, metadata=blocks),
        "deep": codec.encode(np.arange(1200, dtype=np.uint16).reshape(20, 20, 3) * 50, "lossless"),
        "lossless": codec.encode(small, "lossless"),
        "strips": codec.encode(np.tile(landscape(256, 384), (5, 3, 1)), 30, effort=1),
    }
    made |= {path.stem: path.read_bytes() for path in GOLDEN if path.stem != "tiles"}
    table = json.loads((CONFORMANCE / "conformance.json").read_text("utf-8"))
    rows = [row for key in ("vectors", "refused") for row in table[key] if not row.get("large")]
    made |= {f"{Path(row['file']).stem}_{row['file'][0]}": (CONFORMANCE / row["file"]).read_bytes() for row in rows}
    data = made["alpha"]
    made["damaged"] = data[:60] + bytes([data[60] ^ 1]) + data[61:]
    made["cut"] = data[:15]
    generator = np.random.default_rng(0)
    for i in range(40):  # with the right checksum
        body = bytearray(made[["alpha", "screen", "lossless", "layer"][i % 4]][:-4])
        body[generator.integers(len(body) if i % 3 else 30)] ^= 1 << int(generator.integers(8))
        made[f"hostile{i}"] = bytes(body) + zlib.crc32(body).to_bytes(4, "little")
    for name, content in made.items():
        (folder / f"{name}.dca").write_bytes(content)
    return {name: folder / f"{name}.dca" for name in made}


def wanted(codec: Codec, path: Path) -> dict[str, Any]:
    """Facts and hashes, or the kind of the error."""
    data = path.read_bytes()
    try:
        shown = rgba(codec, data)
    except BitstreamError as error:
        return {"kind": type(error).__name__.removesuffix("Error")}
    height, width = shown.shape[:2]
    facts = {"width": width, "height": height, "rgba": sha(shown)}
    return facts | {"samples": sha(samples(codec, data)), "preview": sha(rgba(codec, data, 8))}


@needs_node
@pytest.mark.parametrize("isa", ["wasm", "scalar"])
def test_node(site: Path, files: dict[str, Path], codec: Codec, isa: str) -> None:
    weights = next((site / "models").iterdir())
    command = ["node", ROOT / "tests" / "web" / "decode.mjs", site, weights, *files.values()]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"DCA_ISA": isa})
    assert done.returncode == 0, done.stderr
    *lines, last = map(json.loads, done.stdout.split("\n")[:-1])
    assert last == {"model": codec.model_id}
    careful = Codec(threads=1, max_pixels=1 << 24)
    for (name, path), line in zip(files.items(), lines, strict=True):
        expected = wanted(careful, path)
        assert {key: line.get(key) for key in expected} == expected, (name, line)
    facts = dict(zip(files, lines, strict=True))
    assert facts["turned"]["icc"] == "profile"
    assert facts["deep"]["depth"] == 16
    assert facts["gray_alpha"]["channels"] == 2
    assert facts["layer"]["graphicBlocks"] == inspect(files["layer"].read_bytes()).graphic_blocks
    assert {line["kind"] for line in lines if "kind" in line} >= {"CorruptStream", "TruncatedStream"}


@needs_node
@pytest.mark.parametrize("isa", ["wasm", "scalar"])
def test_node_with_another_network(site: Path, tmp_path: Path, isa: str) -> None:
    """Of widths that are no multiples of a vector."""
    path = random_weights(
        tmp_path / "w.safetensors", width=20, latent=48, latent_hidden=40, regional=12, heads=4, window=2
    )
    codec = Codec(weights=path, threads=1)
    pictures = [tmp_path / f"{quality}.dca" for quality in (0, 40, 97)]
    for picture in pictures:
        picture.write_bytes(codec.encode(photograph(100, 151), int(picture.stem), effort=0, screen="off"))
    command = ["node", ROOT / "tests" / "web" / "decode.mjs", site, path, *pictures]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"DCA_ISA": isa})
    *lines, last = map(json.loads, done.stdout.split("\n")[:-1])
    assert last == {"model": codec.model_id}
    assert [line.get("rgba") for line in lines] == [wanted(codec, picture)["rgba"] for picture in pictures]


@needs_node
def test_node_without_weights(site: Path, files: dict[str, Path], codec: Codec) -> None:
    command = ["node", ROOT / "tests" / "web" / "decode.mjs", site, "-", files["lossless"], files["low"]]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lossless, low, model = map(json.loads, done.stdout.split("\n")[:-1])
    assert lossless["rgba"] == wanted(codec, files["lossless"])["rgba"]
    assert low["kind"] == "UnknownModel"
    assert model == {"model": "00000000"}


@needs_node
def test_damaged_weights(site: Path, files: dict[str, Path], tmp_path: Path) -> None:
    content = bytearray(next((site / "models").iterdir()).read_bytes())
    content[-7] ^= 1
    command = ["node", ROOT / "tests" / "web" / "decode.mjs", site, tmp_path / "w", files["low"]]
    for weights in (content, b""):
        (tmp_path / "w").write_bytes(weights)
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode != 0
        assert "BadWeights" in done.stderr


def decoded_on_threads(site: Path, paths: list[Path], threads: int) -> list[dict[str, Any]]:
    weights = next((ROOT / "build" / "web" / "models").iterdir())
    command = ["node", ROOT / "tests" / "web" / "decode.mjs", site, weights, *paths]
    environment = os.environ | {"DCA_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.split("\n")[:-2]]


@needs_node
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_node_on_threads(site: Path, files: dict[str, Path], codec: Codec, threads: int) -> None:
    """Pictures that are large enough to be shared, between some that end an instance."""
    refused = sorted(name for name in files if name.endswith("_r"))[::8]
    names = ["stream_chains_v", "hostile0", "size_200x150_v", "damaged", *refused, "layer", "screen", "lossless"]
    names += ["alpha", "deep", "strips"]
    careful = Codec(threads=1, max_pixels=1 << 24)
    lines = decoded_on_threads(site, [files[name] for name in names], threads)
    for name, line in zip(names, lines, strict=True):
        expected = wanted(careful, files[name])
        assert {key: line.get(key) for key in expected} == expected, (name, line)
    assert lines[-1]["threads"] == threads
    assert sum("kind" in line for line in lines) > len(refused)


@needs_node
def test_a_helper_that_fails(site: Path, files: dict[str, Path], codec: Codec, tmp_path: Path) -> None:
    """In the middle of a task, for want of a stack: an error, not a decoder that waits for ever."""
    text, setting = (site / "helper.js").read_text(), "__stack_pointer.value = stack;"
    assert setting in text
    for name in ("dca.js", "dca-threads.wasm"):
        shutil.copy(site / name, tmp_path)
    (tmp_path / "helper.js").write_text(text.replace(setting, "__stack_pointer.value = 0;"))
    (tmp_path / "package.json").write_text('{"type": "module"}')
    lines = decoded_on_threads(tmp_path, [files["strips"]] * 6, 3)
    kinds = [line.get("kind") for line in lines]
    assert set(kinds) <= {"OutOfMemory", None}
    assert "OutOfMemory" in kinds  # a helper does work
    expected = wanted(codec, files["strips"])["samples"]
    assert all(line["samples"] == expected for line in lines if "kind" not in line)


USE = """
import {readFile} from 'node:fs/promises';
const [folder, weights, file, refused, huge] = process.argv.slice(1);
const {compile, Decoder} = await import(`${folder}/dca.js`);
const [classic, module, content, picture] = await Promise.all([
  compile(await readFile(`${folder}/dca.wasm`)), compile(await readFile(`${folder}/dca-threads.wasm`)),
  readFile(weights), readFile(file)]);
const kinds = [];
for (const [of, threads] of [[module, 0], [module, 65], [module, 1.5], [classic, 2]]) {
  await Decoder.create(of, content, {threads}).catch(error => kinds.push(error.kind));
}
await Decoder.create(module, content.subarray(0, 999), {threads: 2}).catch(error => kinds.push(error.kind));
const attempt = work => { try { work(); } catch (error) { kinds.push(error.kind); } };
for (const bad of ['text', {}, 5]) attempt(() => new Decoder(classic, bad));
for (const maxPixels of [0, NaN, -1]) attempt(() => new Decoder(classic, null, {maxPixels}));
const buffer = content.buffer.slice(content.byteOffset, content.byteOffset + content.length);
const models = [content, buffer, null].map(weights => new Decoder(classic, weights, {maxPixels: Infinity}).model);
// A file without a model of so many pixels that 32 bits do not hold their bytes.
const vast = await readFile(huge);
attempt(() => new Decoder(classic, null, {maxPixels: 2 ** 32}).decode(vast, {reduce: 16}));
const decoder = await Decoder.create(module, content, {threads: 2});
const used = decoder.decode(picture).threads, bad = await readFile(refused);
for (let i = 0; i < 40; ++i) try { decoder.decode(bad); } catch { } // each ends an instance, and its memory
const megabytes = process.memoryUsage().rss / 2 ** 20;
decoder.close();
const alone = [decoder.decode(picture).threads, new Decoder(module, content).decode(picture).threads];
const one = (await Decoder.create(classic, content)).decode(picture).threads;
console.log(JSON.stringify({kinds, models, used, alone, one, megabytes}));
"""


@needs_node
def test_helpers_are_given_back(site: Path, files: dict[str, Path], codec: Codec, tmp_path: Path) -> None:
    weights = next((site / "models").iterdir())
    header = container.Header(43690, 32769, container.MAX_QUALITY, bytes(4), 0, exact=True)
    (tmp_path / "huge").write_bytes(container.pack(header, bytes(40)))
    inputs = files["strips"], files["stream_end_r"], tmp_path / "huge"
    command = ["node", "--input-type=module", "-e", USE, site, weights, *inputs]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    kinds = ["BadArgument"] * 4 + ["BadWeights"] + ["BadArgument"] * 6 + ["LimitExceeded"]
    report = json.loads(done.stdout)
    assert report.pop("megabytes") < 1000  # of 40 instances with 30 each, most are collected
    models = [codec.model_id, codec.model_id, "00000000"]
    assert report == {"kinds": kinds, "models": models, "used": 2, "alone": [1, 1], "one": 1}


class Handler(http.server.SimpleHTTPRequestHandler):
    """The site, the files of a test, and where a page reports; a page that loads /wait is loaded once it has."""

    def end_headers(self) -> None:
        server: Any = self.server
        if server.isolated:
            self.send_header("cross-origin-opener-policy", "same-origin")
            self.send_header("cross-origin-embedder-policy", "require-corp")
        super().end_headers()

    def do_GET(self) -> None:
        server: Any = self.server
        path = urllib.parse.urlparse(self.path).path
        if path in server.hiccups:
            server.hiccups.remove(path)
            self.send_error(503)
        elif path == "/list.json":
            self.answer(json.dumps([*server.files]).encode(), "application/json")
        elif path == "/test.html":
            self.answer((ROOT / "tests" / "web" / "page.html").read_bytes(), "text/html")
        elif path == "/wait":
            server.reported.wait(120)
            self.answer(b"", "image/png")
        elif path.startswith("/files/") and (name := Path(path).stem) in server.files:
            self.answer(server.files[name].read_bytes(), "application/octet-stream")
        elif path == "/shot.html":
            watch = (
                "<script>setInterval(() => { const {shown, failed} = document.documentElement.dataset;"
                "const body = JSON.stringify({shown, failed});"
                "if (shown || failed) fetch('/report', {method: 'POST', body}); }, 200);"
                "</script><img src=/wait hidden>"
            )
            self.answer((Path(self.directory) / "index.html").read_bytes() + watch.encode(), "text/html")
        else:
            super().do_GET()

    def do_POST(self) -> None:
        server: Any = self.server
        server.report = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server.reported.set()
        self.answer(b"", "text/plain")

    def answer(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@contextmanager
def served(site: Path, files: dict[str, Path], isolated: bool = False, hiccups: tuple[str, ...] = ()) -> Iterator[Any]:
    """`hiccups`: addresses that fail once."""
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(site)))
    server.files, server.isolated, server.reported, server.report = files, isolated, threading.Event(), None
    server.hiccups = [*hiccups]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.reported.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def chromium(address: str, profile: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    assert CHROMIUM is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}", *options]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([CHROMIUM, *flags, address], **quiet) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)


@needs_chromium
@pytest.mark.parametrize("isolated", [False, True])
def test_chromium(site: Path, files: dict[str, Path], codec: Codec, tmp_path: Path, isolated: bool) -> None:
    """Isolated from other origins a page decodes on several threads, if it is not told otherwise."""
    with served(site, files | {"once": files["turned"]}, isolated, () if isolated else ("/dca.wasm",)) as server:
        with chromium(f"http://127.0.0.1:{server.server_port}/test.html", tmp_path):
            assert server.reported.wait(180), "the page did not report"
        report = server.report
    assert "failed" not in report, report["failed"]
    for name, path in files.items():
        expected = {
            key: value for key, value in wanted(codec, path).items() if key in ("width", "height", "rgba", "kind")
        }
        assert {key: report[name].get(key) for key in expected} == expected, (name, report[name])
    assert report["isolated"] == isolated
    assert report["strips"]["threads"] == (min(8, report["processors"]) if isolated else 1)
    assert report["alone"] == 1
    model = next((site / "models").iterdir())
    assert report["fetched"] == model.stat().st_size
    assert report["cached"] == 1
    assert report["hiccup"] == (None if isolated else "NotAvailable")
    assert report["sources"] is True
    assert report["none"] == ["TypeError"] * 3
    assert report["aborted"] == ["AbortError", True, 1]
    assert report["once"] == [1, 1, True]
    assert report["back"] == [1, True, True]
    assert report["other"] is False
    assert report["element"][:2] == [75, 101]  # turned by its EXIF
    assert report["element"][2] > 0
    assert report["small"][:2] == [10, 13]
    assert report["broken"] == "CorruptStream"
    assert report["missing"] == "TypeError"


def with_a_sample(site: Path, tmp_path: Path) -> Path:
    """The site with a sample in place of those that `--no-samples` leaves out, if there are any."""
    picture, folder = photograph(120, 160), tmp_path / "site"
    shutil.copytree(site, folder, ignore=shutil.ignore_patterns("samples"))
    (folder / "samples").mkdir()
    (folder / "samples" / "a-30.dca").write_bytes(Codec(threads=1).encode(picture, 30))
    Image.fromarray(picture).save(folder / "samples" / "a.png")
    Image.fromarray(picture).save(folder / "samples" / "a.jpeg", quality=20)
    entry = {"name": "a", "quality": 30, "file": "a-30.dca", "original": "a.png", "jpeg": "a.jpeg", "avif": "none"}
    (folder / "samples" / "samples.json").write_text(json.dumps([entry | {"jpeg_quality": 20}]))
    return folder


@needs_chromium
def test_the_page_shows_a_sample(site: Path, tmp_path: Path) -> None:
    folder = with_a_sample(site, tmp_path)
    data = (folder / "samples" / "a-30.dca").read_bytes()
    shot = tmp_path / "shot.png"
    with served(folder, {}) as server:
        options = (f"--screenshot={shot}", "--window-size=900,900")
        with chromium(f"http://127.0.0.1:{server.server_port}/shot.html", tmp_path / "profile", *options) as process:
            assert server.reported.wait(120)
            process.wait(60)
        assert server.report == {"shown": "dca, quality 30"}
    with Image.open(shot) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    decoded = {tuple(colour) for colour in Codec(threads=1).decode(data, "numpy").reshape(-1, 3).tolist()}
    assert len(colours & decoded) > len(decoded) // 4  # the right half of the picture, as it is


DROP = """
const shown = () => document.documentElement.dataset.shown;
const seen = new Promise(resolve => setInterval(() => shown() === 'mine.dca' && resolve(), 50));
const sample = () => shown()?.startsWith('dca') ? drop() : setTimeout(sample, 50);
const drop = async () => {
  const files = new DataTransfer();
  files.items.add(new File([await (await fetch('/files/dropped.dca')).blob()], 'mine.dca'));
  document.dispatchEvent(new DragEvent('drop', {dataTransfer: files, bubbles: true, cancelable: true}));
  await seen;
  const saved = new Promise(resolve => { HTMLAnchorElement.prototype.click = function() { resolve(this.href); }; });
  document.getElementById('save').click();
  const png = await createImageBitmap(await (await fetch(await saved)).blob());
  const canvas = new OffscreenCanvas(png.width, png.height), context = canvas.getContext('2d');
  context.drawImage(png, 0, 0);
  const hash = await crypto.subtle.digest('SHA-256', context.getImageData(0, 0, png.width, png.height).data);
  const rgba = Array.from(new Uint8Array(hash), b => b.toString(16).padStart(2, '0')).join('');
  const rows = [...document.querySelectorAll('#facts tbody tr')];
  const facts = rows.map(row => [...row.cells].map(cell => cell.textContent));
  await fetch('/report', {method: 'POST', body: JSON.stringify({rgba, facts})});
};
sample();
"""


@needs_chromium
def test_a_dropped_file_is_shown_and_saved(site: Path, codec: Codec, tmp_path: Path) -> None:
    """Beside a JPEG of as many bytes, and as a PNG with its pixels."""
    data = codec.encode(photograph(90, 120), 70)
    (tmp_path / "dropped.dca").write_bytes(data)
    folder = with_a_sample(site, tmp_path)
    page = (folder / "index.html").read_text() + f"<script type=module>{DROP}</script>"
    (folder / "drop.html").write_text(page)
    with served(folder, {"dropped": tmp_path / "dropped.dca"}) as server:
        with chromium(f"http://127.0.0.1:{server.server_port}/drop.html", tmp_path / "profile"):
            assert server.reported.wait(120)
        report = server.report
    assert report["rgba"] == sha(rgba(codec, data))
    (name, size, bpp, *_), (jpeg, most, *_) = report["facts"]
    assert (name, int(size.replace(",", ""))) == ("mine.dca", len(data))
    assert float(bpp) == pytest.approx(8 * len(data) / (90 * 120), abs=1e-3)
    assert jpeg.startswith("JPEG")
    assert int(most.replace(",", "")) <= len(data)


@pytest.mark.skipif(shutil.which("npm") is None, reason="no npm")
def test_the_package(site: Path, tmp_path: Path) -> None:
    done = subprocess.run(["npm", "pack", "--json", "--pack-destination", tmp_path], cwd=site, capture_output=True)
    (packed,) = json.loads(done.stdout)
    assert packed["version"] == __version__
    names = {file["path"] for file in packed["files"]}
    scripts = {"dca.js", "client.js", "worker.js", "helper.js", "dca-image.js"}
    assert scripts | {"dca.wasm", "dca-threads.wasm", "README.md", "LICENSE", "NOTICE"} < names
    assert not any(name.startswith(("samples", "page", "index")) for name in names)
    assert sum(name.startswith("models/") for name in names) == 1
    assert packed["unpackedSize"] < 8_000_000  # what a page loads in all
