"""Draws what screens and documents show: text, programs, windows, tables and charts, to train with and to compare.

    python benchmarks/measure/graphics.py FOLDER --count 120 --size 1024x768 --seed 1000    # to train with
    python benchmarks/measure/graphics.py FOLDER --count 10 --size 768x512 --own-font    # to compare: `dca-fast eval`

Words are random letters as frequent as in English. Pictures to compare have a font that no others have, Pillow's own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Letters and digits, and how often each occurs in about a thousand.
LETTERS = list("etaoinshrdlcumwfgypbvkjxqz01248")
COUNTS = (
    127, 91, 82, 75, 70, 67, 63, 61, 60, 43, 40, 28, 28, 24, 24, 22, 20, 20, 19, 15, 10, 8, 2, 2, 1, 1, 6, 6, 4, 3, 3,
)  # fmt: skip
FREQUENCIES = np.array(COUNTS) / sum(COUNTS)
FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono",
    "DejaVuSansMono-Bold", "STIXGeneral", "STIXGeneralItalic", "STIXGeneralBol", "cmr10", "cmss10", "cmtt10",
)  # fmt: skip
Color = tuple[int, int, int]


@cache
def font(name: str | None, size: int) -> ImageFont.FreeTypeFont:
    """One of `FONTS`, which come with Matplotlib, or Pillow's own."""
    if name is None:
        found = ImageFont.load_default(size)
        assert isinstance(found, ImageFont.FreeTypeFont)  # Pillow was built with FreeType
        return found
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf" / f"{name}.ttf"), size)


class Page:
    """A picture in the making, with its own theme.

    Args:
        generator: whose draws decide everything.
        size: width and height.
        fonts: names to choose from, None for Pillow's own.
    """

    def __init__(self, generator: np.random.Generator, size: tuple[int, int], fonts: Sequence[str | None]) -> None:
        self.random, self.size, self.fonts = generator, size, fonts
        dark = generator.random() < 0.3
        self.paper = self.shade((10, 60) if dark else (225, 256))
        self.ink = self.shade((190, 256) if dark else (0, 70))
        self.image = Image.new("RGB", size, self.paper)
        self.draw = ImageDraw.Draw(self.image)

    def shade(self, among: tuple[int, int], colored: float = 0.3) -> Color:
        """A colour, or with probability 1 - `colored` a gray."""
        level = (
            self.random.integers(*among, 3) if self.random.random() < colored else [self.random.integers(*among)] * 3
        )
        return int(level[0]), int(level[1]), int(level[2])

    def vivid(self) -> Color:
        return self.shade((20, 236), 1.0)

    def between(self, low: int, high: int) -> int:
        return int(self.random.integers(low, high))

    def word(self) -> str:
        word = "".join(self.random.choice(LETTERS, self.between(1, 11), p=FREQUENCIES))
        return word.capitalize() if self.random.random() < 0.12 else word

    def face(self, low: int = 9, high: int = 22) -> ImageFont.FreeTypeFont:
        return font(self.fonts[self.between(0, len(self.fonts))], self.between(low, high))

    def text(self, box: tuple[int, int, int, int], ink: Callable[[], Color], low: int = 9, high: int = 22) -> None:
        """Lines of words in a box, as many as fit."""
        face, (left, top, right, bottom) = self.face(low, high), box
        height = int(face.size * 1.35)
        for y in range(top, bottom - height, height):
            x = left
            if self.random.random() < 0.1:
                continue
            while x < right:
                word = self.word() + ("", "", "", "", ",", ".", "()", ":")[self.between(0, 8)]
                width = int(face.getlength(word + " "))
                if x + width > right:
                    break
                self.draw.text((x, y), word, fill=ink(), font=face)
                x += width
                if self.random.random() < 0.04:
                    break

    def article(self) -> None:
        columns, margin = self.between(1, 4), self.between(8, 50)
        width = (self.size[0] - margin) // columns
        self.text((margin, 4, self.size[0] - margin, 70), lambda: self.ink, 24, 44)
        for i in range(columns):
            self.text((margin + i * width, 76, (i + 1) * width - 6, self.size[1]), lambda: self.ink)

    def program(self) -> None:
        inks = [self.ink, *(self.vivid() for _ in range(3))]
        for x in range(0, self.size[0], self.between(360, 800)):
            self.text((x + 6, 4, self.size[0], self.size[1]), lambda: inks[self.between(0, 4)], 10, 18)
            self.draw.rectangle((x, 0, x + 2, self.size[1]), fill=self.paper)

    def window(self) -> None:
        accent = self.vivid()
        self.draw.rectangle((0, 0, self.size[0], 40), fill=accent)
        self.text((12, 8, self.size[0], 40), lambda: self.paper, 14, 20)
        step = self.between(34, 70)
        for x in range(10, self.size[0] - 120, self.between(180, 420)):
            for y in range(56, self.size[1] - step, step):
                box = (x, y, x + self.between(90, 300), y + step - 8)
                kind, radius = self.between(0, 5), self.between(0, 12)
                if kind == 0:
                    self.draw.rounded_rectangle(box, radius, fill=accent, outline=self.ink)
                elif kind == 1:
                    self.draw.rounded_rectangle(box, radius, outline=self.vivid(), width=self.between(1, 4))
                elif kind == 2:
                    self.draw.ellipse((x, y, x + step - 8, y + step - 8), fill=self.vivid(), outline=self.ink)
                    continue
                elif kind == 3:
                    points = [(self.between(x, x + step), self.between(y, y + step)) for _ in range(self.between(3, 7))]
                    self.draw.polygon(points, fill=self.vivid(), outline=self.ink)
                    continue
                self.text((x + 8, y + 4, box[2], y + step), lambda: self.ink, 11, 16)

    def table(self) -> None:
        height, width = self.between(18, 40), self.between(60, 200)
        for i, y in enumerate(range(0, self.size[1], height)):
            if i % 2:
                self.draw.rectangle((0, y, self.size[0], y + height), fill=self.shade((200, 256)))
            for x in range(0, self.size[0], width):
                self.text((x + 4, y + 2, x + width, y + height + 8), lambda: (20, 20, 20), 10, 15)
                self.draw.line((x, y, x, y + height), fill=self.ink)
            self.draw.line((0, y, self.size[0], y), fill=self.ink)

    def chart(self) -> None:
        left, bottom = 50, self.size[1] - 50
        self.draw.line((left, 10, left, bottom, self.size[0] - 10, bottom), fill=self.ink, width=2)
        xs = np.linspace(left, self.size[0] - 10, self.between(20, 120))
        for _ in range(self.between(1, 6)):
            ys = bottom / 2 + np.cumsum(self.random.normal(0, self.between(3, 30), len(xs)))
            points = [(float(x), float(np.clip(y, 10, bottom))) for x, y in zip(xs, ys, strict=True)]
            color, kind = self.vivid(), self.between(0, 3)
            if kind == 0:
                self.draw.line(points, fill=color, width=self.between(1, 5))
            for x, y in points:
                if kind == 1:
                    self.draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=color)
                elif kind == 2:
                    self.draw.rectangle((x - 3, y, x + 3, bottom), fill=color)
        for y in range(20, bottom, 60):
            self.draw.line((left, y, self.size[0] - 10, y), fill=self.shade((100, 180)))
            self.text((4, y, left, y + 24), lambda: self.ink, 10, 14)
        self.text((left, bottom + 8, self.size[0], self.size[1]), lambda: self.ink, 11, 18)

    LAYOUTS = (article, program, window, table, chart)


def draw(seed: int, size: tuple[int, int], fonts: Sequence[str | None]) -> Image.Image:
    """One picture; layouts take turns with the seed."""
    page = Page(np.random.default_rng(seed), size, fonts)
    Page.LAYOUTS[seed % len(Page.LAYOUTS)](page)
    return page.image


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--size", required=True, metavar="WxH")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture; the next ones have the next numbers")
    parser.add_argument("--own-font", action="store_true", help="Pillow's font instead of those of Matplotlib")
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    args.folder.mkdir(parents=True, exist_ok=True)
    for seed in range(args.seed, args.seed + args.count):
        draw(seed, (width, height), (None,) if args.own_font else FONTS).save(args.folder / f"{seed:04}.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
