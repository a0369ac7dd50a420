"""Draws the pictures that `screens.py` measures: what screens, documents and charts show, each of another kind.

    python benchmarks/measure/screen_set.py FOLDER [--browser chromium] [--site build/site]

Nothing is fetched. Screenshots are made by a headless browser of the pages below and of this project's own site, if one
was built; words are random letters or this repository's own text. The photograph in mixed pictures is the portrait in
Matplotlib's sample data, a work of the United States government. No picture was seen by any training, and none is kept
in the repository. Names that begin with "mixed" hold photographs, grain or blur; the rest are clean graphics.
"""

from __future__ import annotations

import argparse
import html
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path

import matplotlib
import matplotlib.cbook
import matplotlib.pyplot as plt
import numpy as np
from graphics import FONTS, draw, font
from PIL import Image, ImageDraw, ImageFilter, ImageFont

ROOT = Path(__file__).resolve().parents[2]
SIZE = (960, 640)
KEYWORDS = re.compile(r"\b(def|class|return|import|from|for|in|if|else|while|not|and|or|None|True|False|with|as)\b")


def source() -> list[str]:
    """A program: the executable specification of the exact-colour coder."""
    return (ROOT / "dca_fast/exact/colours.py").read_text().splitlines()


def prose() -> str:
    return " ".join(re.sub(r"[`*|#]", "", (ROOT / "docs/spec/exact.md").read_text()).split())


def wrapped(text: str, face: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines, line = [], ""
    for word in text.split():
        if face.getlength(f"{line} {word}") > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return [*lines, line]


def canvas(paper: tuple[int, int, int] | str, size: tuple[int, int] = SIZE) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", size, paper)
    return image, ImageDraw.Draw(image)


def document(smooth: bool) -> Image.Image:
    """Black text on white, with or without antialiasing."""
    image, pen = canvas("white")
    pen.fontmode = "L" if smooth else "1"
    y = 20
    pen.text((40, y), "The exact-colour coder", "black", font("DejaVuSerif-Bold", 30))
    for size in (18, 15, 12, 10):
        face = font("DejaVuSerif" if smooth else "DejaVuSans", size)
        y += 45
        for line in wrapped(prose()[size * 50 :], face, SIZE[0] - 80)[:5]:
            pen.text((40, y), line, "black", face)
            y += round(size * 1.4)
    return image


def editor(lcd: bool) -> Image.Image:
    """A program with coloured words on dark ground; `lcd`: antialiased by colour stripes on light ground."""
    times = 3 if lcd else 1
    paper, ink = ((255, 255, 255), (30, 30, 30)) if lcd else ((30, 30, 30), (212, 212, 212))
    image, pen = canvas(paper, (SIZE[0] * times, SIZE[1] * times))
    face = font("DejaVuSansMono", 13 * times)
    wide = round(face.getlength("m"))
    for row, line in enumerate(source()[40:80]):
        y = (8 + 16 * row) * times
        pen.text((8 * times, y), f"{row + 41:4}", (133, 133, 133), face)
        colours = [ink] * len(line)
        for found in re.finditer(r"\".*?\"|#.*", line):
            colours[found.start() : found.end()] = [(163, 21, 21) if lcd else (206, 145, 120)] * len(found.group())
        for found in KEYWORDS.finditer(line):
            colours[found.start() : found.end()] = [(0, 0, 255) if lcd else (86, 156, 214)] * len(found.group())
        for column, letter in enumerate(line):
            pen.text((60 * times + column * wide, y), letter, colours[column], face)
    if not lcd:
        pen.rectangle((0, SIZE[1] - 22, *SIZE), (0, 122, 204))
        pen.text((10, SIZE[1] - 20), "main   Python 3.12   UTF-8   Ln 41, Col 1", "white", font("DejaVuSans", 12))
        return image
    fine = np.asarray(image).reshape(SIZE[1], 3, SIZE[0], 3, 3).mean(1)  # rows together; thirds of columns apart
    return Image.fromarray(np.rint(np.stack([fine[:, :, k, k] for k in range(3)], 2)).astype(np.uint8))


def terminal() -> Image.Image:
    """A bitmap font."""
    image, pen = canvas("black")
    face = ImageFont.load_default_imagefont()
    colours = ["#d3d7cf"] * 6 + ["#4e9a06", "#3465a4", "#cc0000", "#c4a000"]
    for row, line in enumerate((source() * 2)[:56]):
        pen.text((4, 4 + 11 * row), f"$ {line}"[:155], colours[row * 7 % 10], face)
    return image


def sheet() -> Image.Image:
    image, pen = canvas("white")
    face, random = font("DejaVuSans", 12), np.random.default_rng(3)
    for row in range(SIZE[1] // 20):
        for column in range(SIZE[0] // 80):
            box = (80 * column, 20 * row, 80 * column + 80, 20 * row + 20)
            head = row == 0 or column == 0
            fill = "#e6e6e6" if head else "#fff2cc" if column == 5 else "#e2efda" if row % 7 == 3 else "white"
            pen.rectangle(box, fill, "#c0c0c0")
            text = str(row) if column == 0 else chr(64 + column) if row == 0 else f"{random.normal(500, 300):,.2f}"
            pen.text((box[2] - 6, box[1] + 3), text, "#c00000" if "-" in text else "black", face, anchor="ra")
    return image


def town() -> Image.Image:
    """A map: areas, roads and labels, antialiased."""
    random, times = np.random.default_rng(4), 3
    image, pen = canvas("#f2efe9", (SIZE[0] * times, SIZE[1] * times))

    def at(count: int) -> list[tuple[float, float]]:
        return [(float(x), float(y)) for x, y in random.uniform(0, 1, (count, 2)) * image.size]

    for colour in ["#cdebb0", "#aad3df", "#e0dfdf", "#add19e", "#f7efb7"] * 5:
        (x, y), angles = at(1)[0], np.sort(random.uniform(0, 6.28, 9))
        radii = random.uniform(100, 420, 9)
        edge = zip(x + radii * np.cos(angles), y + radii * np.sin(angles), strict=True)
        pen.polygon([(float(a), float(b)) for a, b in edge], colour)
    for wide, edge, fill in [(13, "#bbb", "#fff")] * 22 + [(25, "#c98", "#fcd6a4")] * 6 + [(34, "#a44", "#e892a2")] * 2:
        road = at(3)
        pen.line(road, edge, wide + 6, "curve")
        pen.line(road, fill, wide, "curve")
    image = image.resize(SIZE, Image.Resampling.BOX)
    pen = ImageDraw.Draw(image)
    for x, y in random.uniform(0, 1, (45, 2)) * SIZE:
        name = "".join(random.choice(list("aeiourstlnm"), 7)).title()
        pen.text((x, y), name, "#333", font("DejaVuSans", 11), stroke_width=2, stroke_fill="white")
    return image


def plotted(kind: str) -> Image.Image:
    random = np.random.default_rng(5)
    figure, axes = plt.subplots(figsize=(9.6, 6.4), dpi=100)
    x = np.linspace(0, 10, 300)
    if kind == "lines":
        for i in range(5):
            axes.plot(x, np.cumsum(random.normal(0, 1, 300)), label=f"series {i}")
        axes.grid(alpha=0.4)
        axes.legend()
    elif kind == "bars":
        for i in range(4):
            axes.bar(np.arange(9) + i / 5, random.uniform(1, 9, 9), 0.2, label=f"method {i}", hatch="/" * i)
        axes.legend()
    elif kind == "scatter":
        axes.scatter(*random.normal(0, 1, (2, 900)), c=random.uniform(0, 1, 900), s=40, alpha=0.5, cmap="viridis")
    elif kind == "heat":
        shown = axes.imshow(random.uniform(0, 1, (12, 18)), cmap="magma")
        figure.colorbar(shown)
        for i, j in np.ndindex(12, 18):
            axes.text(j, i, f"{random.integers(0, 99)}", ha="center", va="center", color="gray", fontsize=7)
    elif kind == "contours":
        a, b = np.meshgrid(x, x[:200])
        shown = axes.contourf(a, b, np.sin(a) * np.cos(b / 2) + a / 9, 24, cmap="RdYlBu")
        figure.colorbar(shown)
        axes.contour(a, b, np.sin(a) * np.cos(b / 2) + a / 9, 24, colors="k", linewidths=0.5)
    else:
        axes.set_axis_off()
        for i, formula in enumerate(
            (
                r"$\int_{-\infty}^{\infty} e^{-x^2}\,dx = \sqrt{\pi}$",
                r"$\sum_{n=1}^{\infty} \frac{1}{n^2} = \frac{\pi^2}{6}$",
                r"$\hat{f}(\xi) = \int f(x)\, e^{-2\pi i x \xi}\, dx$",
                r"$\left(\frac{a}{b}\right)^{\gamma+1} \leq \prod_{k} \alpha_k \beta^{k}$",
                r"$R_{\mu\nu} - \frac{1}{2} R\, g_{\mu\nu} + \Lambda g_{\mu\nu} = \frac{8\pi G}{c^4} T_{\mu\nu}$",
            )
        ):
            axes.text(0.02, 0.9 - i / 5, f"({i + 1})   {formula}", fontsize=22)
    if kind != "maths":
        axes.set(title=f"A chart of {kind}", xlabel="time in hours", ylabel="value")
    file = BytesIO()
    figure.savefig(file, format="png")
    plt.close(figure)
    return Image.open(file).convert("RGB")


def lines() -> Image.Image:
    """A line drawing, black on white, antialiased."""
    random, image = np.random.default_rng(6), Image.new("L", (SIZE[0] * 3, SIZE[1] * 3), 255)
    pen, t = ImageDraw.Draw(image), np.linspace(0, 1, 60)[:, None]
    for _ in range(70):
        a, b, c, d = random.uniform(-0.1, 1.1, (4, 2)) * image.size
        curve = a * (1 - t) ** 3 + 3 * b * t * (1 - t) ** 2 + 3 * c * t**2 * (1 - t) + d * t**3
        pen.line([(float(x), float(y)) for x, y in curve], 0, int(random.integers(3, 9)), "curve")
    return image.resize(SIZE, Image.Resampling.BOX).convert("RGB")


def pixel_art() -> Image.Image:
    random = np.random.default_rng(7)
    palette = random.integers(0, 256, (16, 3), np.uint8)
    tiles = []
    for _ in range(10):
        half = palette[random.integers(0, 16, (16, 8)) * (random.random((16, 8)) < 0.6)]
        tiles.append(np.concatenate([half, half[:, ::-1]], 1))
    picture = np.tile(palette[3], (216, 320, 1))
    picture[160:] = palette[5]
    for y, x in random.integers(0, (12, 19), (90, 2)):
        picture[16 * y : 16 * y + 16, 16 * x : 16 * x + 16] = tiles[random.integers(0, 10)]
    return Image.fromarray(picture).resize(SIZE, Image.Resampling.NEAREST)


def desktop() -> Image.Image:
    """Windows with shadows over slopes of colour."""
    y, x = np.mgrid[0 : SIZE[1], 0 : SIZE[0]]
    slope = np.stack([30 + x / 12, 50 + y / 8, 120 + (x + y) / 20], 2)
    image = Image.fromarray(slope.astype(np.uint8))
    for i, (left, top) in enumerate(((60, 50), (330, 200), (540, 90))):
        shadow = Image.new("L", SIZE)
        ImageDraw.Draw(shadow).rounded_rectangle((left + 4, top + 8, left + 364, top + 328), 12, fill=150)
        image.paste("black", mask=shadow.filter(ImageFilter.GaussianBlur(12)))
        pen = ImageDraw.Draw(image)
        pen.rounded_rectangle((left, top, left + 360, top + 320), 10, fill="#fafafa")
        pen.rounded_rectangle((left, top, left + 360, top + 34), 10, fill=("#3b6ea5", "#5a5a5a", "#7a3b8a")[i])
        pen.text((left + 14, top + 8), f"Window {i + 1}", "white", font("DejaVuSans-Bold", 14))
        for row, line in enumerate(wrapped(prose()[i * 900 :], font("DejaVuSans", 12), 330)[:12]):
            pen.text((left + 14, top + 48 + 18 * row), line, "#222", font("DejaVuSans", 12))
        pen.rounded_rectangle((left + 250, top + 280, left + 345, top + 308), 6, fill="#2f80ed")
        pen.text((left + 280, top + 286), "Apply", "white", font("DejaVuSans", 12))
    return image


def vector() -> Image.Image:
    """Flat shapes of many colours, antialiased."""
    random = np.random.default_rng(8)
    image, pen = canvas("#fdf6e3", (SIZE[0] * 4, SIZE[1] * 4))
    for _ in range(45):
        (x, y), (a, b) = random.uniform(0, 1, 2) * image.size, random.uniform(80, 700, 2)
        colour, kind = "#" + "".join(f"{c:02x}" for c in random.integers(40, 250, 3)), random.integers(0, 3)
        if kind == 0:
            pen.ellipse((x, y, x + a, y + b), colour)
        elif kind == 1:
            pen.rounded_rectangle((x, y, x + a, y + b), 60, colour, "#333", 8)
        else:
            pen.polygon([(x, y), (x + a, y + b / 3), (x - b / 2, y + a)], colour)
    return image.resize(SIZE, Image.Resampling.LANCZOS)


def squares() -> Image.Image:
    """A code of black and white squares, as telephones read them."""
    code = np.random.default_rng(9).random((41, 41)) < 0.5
    for y, x in ((0, 0), (0, 34), (34, 0)):
        code[y : y + 7, x : x + 7] = np.pad(np.pad(np.ones((3, 3), bool), 1), 1, constant_values=True)
    image, pen = canvas("white", (640, 640))
    image.paste(Image.fromarray(~code).convert("RGB").resize((492, 492), Image.Resampling.NEAREST), (74, 40))
    pen.text((320, 570), "SCAN ME", "black", font("DejaVuSans-Bold", 36), anchor="ma")
    return image


def slide() -> Image.Image:
    slope = np.linspace((20, 30, 70), (90, 40, 120), SIZE[1])[:, None] * np.ones((1, SIZE[0], 1))
    image = Image.fromarray(np.rint(slope).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    pen.text((60, 50), "Results of the quarter", "white", font("DejaVuSans-Bold", 52))
    for i, line in enumerate(("Files are 14 % smaller", "Decoders agree bit for bit", "Screens: text stays text")):
        pen.ellipse((70, 190 + 90 * i, 90, 210 + 90 * i), "#ffd166")
        pen.text((115, 178 + 90 * i), line, "white", font("DejaVuSans", 34))
    pen.pieslice((640, 330, 900, 590), 0, 210, "#06d6a0")
    pen.pieslice((640, 330, 900, 590), 210, 360, "#ef476f")
    return image


def photo(size: tuple[int, int]) -> Image.Image:
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        return Image.open(file).convert("RGB").resize(size, Image.Resampling.LANCZOS)


def magazine() -> Image.Image:
    """Two columns of text, a photograph in one of them."""
    image, pen = canvas("white")
    pen.text((30, 16), "A pioneer of compilers", "#111", font("DejaVuSerif-Bold", 34))
    lines = wrapped(prose(), font("DejaVuSerif", 13), 420)
    for i, line in enumerate(lines[:62]):
        column, row = divmod(i, 31)
        if column == 1 and row > 10:
            break
        pen.text((30 + 460 * column, 76 + 18 * row), line, "#222", font("DejaVuSerif", 13))
    image.paste(photo((300, 352)), (570, 280))
    return image


def meme() -> Image.Image:
    image = photo((544, 640))
    pen = ImageDraw.Draw(image)
    for y, text in ((20, "IT COMPILED"), (560, "ON THE FIRST TRY")):
        pen.text((272, y), text, "white", font("DejaVuSans-Bold", 48), "ma", stroke_width=4, stroke_fill="black")
    return image


def scan() -> Image.Image:
    """Text from paper: blurred, with grain and uneven light."""
    random = np.random.default_rng(10)
    page = np.asarray(document(True).filter(ImageFilter.GaussianBlur(0.9)).convert("L"), float)
    light = 0.88 + 0.1 * np.linspace(0, 1, SIZE[0]) * np.linspace(1, 0.8, SIZE[1])[:, None]
    noisy = page * light + random.normal(0, 4, page.shape)
    return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8)).convert("RGB")


def dithered() -> Image.Image:
    return photo(SIZE).quantize(16, dither=Image.Dither.FLOYDSTEINBERG).convert("RGB")


def page(seed: int) -> Image.Image:
    return draw(seed, SIZE, FONTS)


DRAWN: dict[str, Callable[[], Image.Image]] = {
    "document": partial(document, True),
    "document-bilevel": partial(document, False),
    "editor": partial(editor, False),
    "editor-lcd": partial(editor, True),
    "terminal": terminal,
    "sheet": sheet,
    "map": town,
    "chart-lines": partial(plotted, "lines"),
    "chart-bars": partial(plotted, "bars"),
    "chart-scatter": partial(plotted, "scatter"),
    "chart-heat": partial(plotted, "heat"),
    "chart-contours": partial(plotted, "contours"),
    "maths": partial(plotted, "maths"),
    "line-art": lines,
    "pixel-art": pixel_art,
    "desktop": desktop,
    "vector": vector,
    "squares": squares,
    "slide": slide,
    "window": partial(page, 9002),
    "table": partial(page, 9003),
    "mixed-magazine": magazine,
    "mixed-meme": meme,
    "mixed-scan": scan,
    "mixed-dithered": dithered,
}

STYLE = "body{font:14px DejaVu Sans,sans-serif;margin:0} pre,code{font-family:DejaVu Sans Mono,monospace}"


def _rows(pattern: str, count: int) -> str:
    words = prose().split()
    return "".join(pattern.format(i=i, text=html.escape(" ".join(words[7 * i : 7 * i + 9]))) for i in range(count))


def html_pages() -> dict[str, str]:
    """Pages of our own, by name."""
    mail = (
        "<style>body{display:flex}.s{min-width:150px;background:#f0f3f7;height:700px;padding:12px}tr:nth-child(odd)"
        "{background:#f7f9fc}td{padding:7px;border-bottom:1px solid #ddd;white-space:nowrap}b{color:#1a4f9c}</style>"
        "<div class=s><h3>Mail</h3><p>Inbox (12)<p>Sent<p>Drafts<p>Archive<p>Spam</div><table>"
        + _rows("<tr><td>&#9734;<td><b>Person {i}</b><td>{text}<td>1{i}:04</tr>", 19)
    )
    chat = (
        "<style>body{background:#313338;color:#dbdee1;padding:14px}.m{margin:9px 0}.a{display:inline-block;width:32px;"
        "height:32px;border-radius:16px;background:linear-gradient(#5865f2,#eb459e);vertical-align:middle}"
        "b{color:#f2c94c}</style>" + _rows("<div class=m><span class=a></span> <b>user{i}</b> {text}</div>", 15)
    )
    board = (
        "<style>body{background:#eef1f5;padding:18px}.c{float:left;width:276px;height:150px;margin:8px;padding:12px;"
        "background:#fff;border-radius:10px;box-shadow:0 3px 10px #0003}.n{font-size:40px;color:#2563eb}"
        ".b{height:12px;border-radius:6px;background:linear-gradient(90deg,#34d399,#2563eb);width:70%}</style>"
        + _rows("<div class=c>{text}<div class=n>{i}4.{i} %</div><div class=b></div></div>", 9)
    )
    code = html.escape("\n".join(source()[150:185]))
    review = (
        "<style>pre{background:#fff;border:1px solid #d0d7de;padding:8px;font-size:12px}.h{background:#24292f;color:"
        "#fff;padding:14px;font-size:17px}</style><div class=h>Review: candidates #41</div><pre>"
        + "\n".join(
            f"<span style='background:{('#e6ffec', '#ffebe9', '#fff', '#fff')[i * 7 % 4]}'>{i + 1:3} {line}</span>"
            for i, line in enumerate(code.splitlines())
        )
    )
    return {"web-mail": mail, "web-chat": chat, "web-board": board, "web-review": review}


def shoot(browser: str, address: str, target: Path) -> None:
    """A screenshot, by a headless Chromium."""
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={profile}", f"--window-size={SIZE[0]},{SIZE[1]}", f"--screenshot={target}"]
        subprocess.run([*command, address], check=True, capture_output=True, timeout=120)


def make(folder: Path, browser: str | None, site: Path | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, drawn in DRAWN.items():
        drawn().convert("RGB").save(folder / f"{name}.png")
    if browser is None or shutil.which(browser) is None:
        print("no browser: no screenshots")
        return
    pages = {}
    with tempfile.TemporaryDirectory() as made:
        for name, body in html_pages().items():
            path = Path(made) / f"{name}.html"
            path.write_text(f"<meta charset=utf-8><style>{STYLE}</style>{body}")
            pages[name] = path
        if site is not None:
            pages |= {"web-site": site / "index.html", "web-spec": site / "spec/exact.html"}
        for name, path in pages.items():
            shoot(browser, path.resolve().as_uri(), folder / f"{name}.png")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--browser", default="chromium", help="headless, for screenshots (default: %(default)s)")
    parser.add_argument("--site", type=Path, help="this project's site, as `mkdocs build` makes it")
    args = parser.parse_args()
    make(args.folder, args.browser, args.site)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
