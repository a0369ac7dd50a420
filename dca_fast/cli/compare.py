"""`dca-fast compare`: one page that shows a picture beside other codecs at equal bytes, with a slider."""

import argparse
import base64
import html
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import Template

from PIL import Image

from dca_fast.cli.commands import check_reports, codec_of, colours_of, note, progress_bar, say
from dca_fast.errors import BackendUnavailableError, InputError
from dca_fast.evaluation.peers import FAMILIES, Peer, make_peers
from dca_fast.files.atomic import read, write_atomic
from dca_fast.files.image_io import load_image
from dca_fast.metrics import Pixels, psnr

__all__ = ["Shown", "at_most", "compare", "page"]

PAGE = Path(__file__).with_name("compare.html")
SHOWN_BY_BROWSERS = {"JPEG": "image/jpeg", "WEBP": "image/webp", "AVIF": "image/avif"}
MOST = 100  # quality of other codecs


@dataclass(frozen=True)
class Shown:
    """One picture of the page: `size` in bytes of its file, and what a browser shows of it as a URL."""

    name: str
    size: int
    psnr: float | None
    url: str


def _url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _lossless(pixels: Pixels) -> str:
    """Pixels as a file that every browser shows."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return _url("image/png", buffer.getvalue())


def at_most(encoded: Callable[[int], bytes], size: int) -> tuple[bytes, int]:
    """The file of the highest quality, 1 to 100, that takes no more than so many bytes, and that quality; the file of
    quality 1 if none does.

    Args:
        encoded: the file of a quality; larger ones for higher qualities, mostly.
        size: in bytes.
    """
    low, high, best = 1, MOST, encoded(1)
    while low < high:
        middle = (low + high + 1) // 2
        data = encoded(middle)
        if len(data) <= size:
            low, best = middle, data
        else:
            high = middle - 1
    return best, low


def _beside(peer: Peer, pixels: Pixels, size: int) -> Shown:
    data, _ = at_most(lambda quality: peer.encode(pixels, quality), size)
    decoded, kind = peer.decode(data), SHOWN_BY_BROWSERS.get(peer.format)
    url = _lossless(decoded) if kind is None else _url(kind, data)
    return Shown(peer.name, len(data), psnr(pixels, decoded), url)


def page(title: str, pixels: Pixels, shown: list[Shown]) -> str:
    """The page of a picture [H, W, 3] and of what codecs made of it, ours first."""
    height, width = pixels.shape[:2]
    rows = [f"<tr><td>original<td>{pixels.nbytes:,}<td>24.000<td>"]
    rows += [
        f"<tr><td>{html.escape(s.name)}<td>{s.size:,}<td>{8 * s.size / (height * width):.3f}<td>{s.psnr:.2f}"
        for s in shown
    ]
    larger = [s.name for s in shown[1:] if s.size > shown[0].size]
    notes = "Files of others are the largest that take no more bytes than ours."
    notes += f" {', '.join(larger)}: no file is that small." if larger else ""
    pictures = [{"name": "original", "url": _lossless(pixels)}, *({"name": s.name, "url": s.url} for s in shown)]
    return Template(PAGE.read_text("utf-8")).substitute(
        title=html.escape(title),
        width=width,
        height=height,
        size=f"{width} x {height}",
        rows="\n".join(rows),
        note=html.escape(notes),
        pictures=json.dumps(pictures).replace("<", "\\u003c"),
    )


def compare(args: argparse.Namespace) -> None:
    """Write the page of a picture."""
    if args.image == Path("-") and args.out is None:
        raise InputError("standard input needs an output")
    out = args.out or Path(f"{args.image.stem}.html")
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"the output {out} is not called *.html")
    check_reports(out, inputs=[args.image], force=args.force)
    codec = codec_of(args)
    image = colours_of(load_image(read(args.image), max_pixels=codec.max_pixels, pixels_only=True))
    data = codec.encode(image, args.quality, effort=args.effort, aq_strength=args.aq_strength)
    decoded = codec.decode(data, "numpy")[..., :3]
    name = f"dca-fast quality {args.quality:g}"
    shown = [Shown(name, len(data), psnr(image.pixels, decoded), _lossless(decoded))]
    with progress_bar(args.quiet) as bar:
        for family in bar.track(FAMILIES, description="comparing"):
            try:
                peers = make_peers([family], codec.threads)
                found = [_beside(peer, image.pixels, len(data)) for peer in peers]
            except BackendUnavailableError as error:
                say("warning", f"left out: {error}")
                continue
            except (OSError, ValueError) as error:  # as of sides that a format does not have
                say("warning", f"left out: {family}: {error}")
                continue
            fitting = [s for s in found if s.size <= len(data)] or found
            shown.append(max(fitting, key=lambda s: s.psnr or 0))
    write_atomic(out, page(args.image.name, image.pixels, shown).encode("utf-8", "replace"))
    if not args.quiet:
        note(f"{out}: " + ", ".join(f"{s.name} {s.size:,} bytes {s.psnr:.2f} dB" for s in shown))
