"""The command line: `dca-fast encode | decode | info | eval | train | ablate | export | demo`.

Exit codes: 0 done; 1 the demo's backends disagree; 2 wrong usage or input; 3 bytes that cannot be decoded;
4 something this machine lacks (backend, weights, package). Every failure is one line on standard error.
"""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from dca_fast import commands, convert
from dca_fast.config import ALIGN, AQ_STEPS, DEFAULT_AQ, DEFAULT_EFFORT, MAX_AQ, MAX_EFFORT, QUALITY_MAX
from dca_fast.errors import DcaError

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; default: those of the process.

    Returns:
        The exit code. Usage mistakes and --help end the process instead, as argparse does.
    """
    args = make_parser().parse_args(argv)
    with warnings.catch_warnings():
        commands.show_warnings()
        try:
            return int(args.command(args))
        except (DcaError, OSError) as error:
            return commands.fail(error)
        except KeyboardInterrupt:
            return INTERRUPTED


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of the usage text."""
        commands.say("error", message)
        sys.exit(commands.BAD_INPUT)


def make_parser() -> Parser:
    parser = Parser("dca-fast", description="An exact neural image codec.")
    add = parser.add_subparsers(metavar="COMMAND", required=True).add_parser
    model = model_options()
    for name, command in (("encode", convert.encode), ("decode", convert.decode)):
        _add_conversion(add(name, parents=[model], help=command.__doc__), command)
    _add_info(add("info", help=commands.info.__doc__))
    _add_eval(add("eval", parents=[model], help=commands.evaluate.__doc__))
    _add_train(add("train", help=commands.train.__doc__))
    _add_ablate(add("ablate", help=commands.ablate.__doc__))
    p = add("export", help=commands.export.__doc__)
    p.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint.pt of a training")
    p.add_argument("out", type=Path, metavar="OUT", help="the .safetensors file to write")
    p.add_argument("--mix", type=Path, metavar="FILE", help="take the mean with these float weights")
    p.add_argument("--share", type=float, default=0.5, help="of --mix in the mean, 0 to 1 (default: %(default)g)")
    p.add_argument("--float", type=Path, metavar="FILE", help="also float weights, for `train --start`")
    p.add_argument("--data", type=Path, metavar="PATH", help="photographs to fit the coder's tables to, as of `train`")
    p.add_argument("--cache", type=Path, metavar="STEM", help="decoded photographs (default: beside OUT)")
    p.set_defaults(command=commands.export)
    p = add("demo", parents=[model], help=commands.demo.__doc__)
    p.add_argument("image", nargs="?", type=Path, metavar="IMAGE", help="default: a portrait in matplotlib")
    p.add_argument("--out", type=Path, default=Path("dca-demo"), metavar="DIR", help="default: %(default)s")
    p.set_defaults(command=commands.demo)
    return parser


def model_options() -> Parser:
    """Options of every command that builds a codec."""
    p = Parser(add_help=False)
    p.add_argument("--preset", default="dca-s", metavar="NAME", help="shipped weights (default: %(default)s)")
    p.add_argument("--weights", metavar="FILE", help="other weights, as `export` writes them")
    p.add_argument("--backend", choices=("auto", "cuda", *commands.BACKENDS), default="auto")
    p.add_argument("--threads", type=count, metavar="N", help="default: DCA_THREADS or all cores")
    p.add_argument("--device", metavar="NAME", help="default: cpu")
    return p


def _add_effort(p: argparse.ArgumentParser, text: str) -> None:
    default = f"{text} (default: %(default)s)"
    p.add_argument("-e", "--effort", type=effort, default=DEFAULT_EFFORT, metavar="0..9", help=default)
    most = MAX_AQ / AQ_STEPS
    aq_help = f"of adaptive quantisation, 0 to {most:g}; 0: for PSNR of each picture (default: %(default)g)"
    p.add_argument("--aq-strength", type=aq_strength, default=DEFAULT_AQ, metavar="X", help=aq_help)


def _add_conversion(p: argparse.ArgumentParser, command: Any) -> None:
    encoding = command is convert.encode
    p.add_argument("paths", nargs="+", metavar="PATH", help="IN OUT, '-' for a pipe; with -o: inputs, files or folders")
    p.add_argument("-o", "--out-dir", metavar="DIR", help="convert all inputs into this folder")
    p.add_argument("--no-overwrite", action="store_true", help="refuse, in a batch: keep, what exists")
    manifest_help = "of a batch: append a line of JSON about each file, with hashes"
    p.add_argument("--manifest", type=Path, metavar="FILE", help=manifest_help)
    if encoding:
        goal = p.add_mutually_exclusive_group()
        goal.add_argument("-q", "--quality", type=quality, default=60.0, help="0 to 100 (default: %(default)g)")
        goal.add_argument("--max-bytes", type=count, metavar="N", help="the highest quality with so many bytes")
        goal.add_argument("--bpp", type=positive, metavar="BITS", help="the highest with so many bits per pixel")
        goal.add_argument("--psnr", type=positive, metavar="DB", help="the lowest with such a fidelity")
        _add_effort(p, "time for fewer bits at equal distortion")
        p.add_argument("--strip", action="store_true", help="drop EXIF and XMP, turn the picture upright")
        p.add_argument("--verify", action="store_true", help="decode with every backend before writing")
    else:
        p.add_argument("--format", default="png", help="extension of outputs in DIR (default: %(default)s)")
    p.set_defaults(command=command)


def _add_info(p: argparse.ArgumentParser) -> None:
    p.add_argument("file", nargs="?", metavar="FILE", help="a .dca file, '-' for a pipe")
    p.add_argument("--preset", metavar="NAME", help="a model instead of a file")
    p.add_argument("--json", action="store_true")
    p.set_defaults(command=commands.info)


def _add_eval(p: argparse.ArgumentParser) -> None:
    p.add_argument("folder", type=Path, metavar="DIR", help="images, searched recursively")
    steps = tuple(float(q) for q in range(0, 101, 10))
    p.add_argument("--qualities", type=_qualities, default=steps, metavar="Q,Q", help="default: 0,10,..,100")
    _add_effort(p, "of the encoder")
    p.add_argument("--peers", type=_names, default=(), metavar="NAME,NAME", help="of jpeg,webp,avif,jxl")
    p.add_argument("--peer-cache", type=Path, metavar="DIR", help="keep what peers did: they are not run again")
    p.add_argument("--anchors", type=Path, metavar="FILE", help="JSON with published curves")
    p.add_argument("--anchor-set", metavar="NAME", help="set of images in it (default: the name of DIR)")
    p.add_argument("--anchor-names", type=_names, default=(), metavar="NAME,NAME", help="default: all of it")
    p.add_argument("--json", metavar="FILE", help="write everything measured")
    p.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves (.png, .svg, .pdf)")
    p.set_defaults(command=commands.evaluate)


def _add_train(p: argparse.ArgumentParser) -> None:
    p.add_argument("--preset", default="dca-s", metavar="NAME", help="default: %(default)s")
    p.add_argument("--data", type=Path, metavar="PATH", help="photographs: a folder, tar shards, or a packed .bin")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="its checkpoint is resumed")
    p.add_argument("--minutes", type=float, help="length of this run")
    p.add_argument("--steps", type=count, metavar="N", help="length of all runs in --out, instead of --minutes")
    p.add_argument("--batch", type=count, metavar="N", help="crops in a step, of each process of torchrun")
    p.add_argument("--crop", type=_crop, metavar="N", help=f"side of a crop in pixels, a multiple of {ALIGN}")
    p.add_argument("--rate", type=float, help="learning rate")
    p.add_argument("--cooldown", type=_part, metavar="PART", help="of the time in which the rate falls (default: 0.35)")
    p.add_argument("--seed", type=int, metavar="N", help="another one for a run with --start draws other crops")
    p.add_argument("--parts", type=_names, metavar="PART,PART", help="train only these, as synthesis,context")
    effort_help = "of the encoder that is trained for (default: 0); 1: with --parts, without analysis"
    p.add_argument("--effort", type=int, choices=(0, 1), help=effort_help)
    aq_help = "of adaptive quantisation that is trained for (default: 0)"
    p.add_argument("--aq-strength", type=aq_strength, metavar="X", help=aq_help)
    p.add_argument("--rate-only", action="store_true", help="bits alone, without f_s: for --parts without transforms")
    tables_help = "integer weights with whose tables the trellis is searched (default: Gaussian ones)"
    p.add_argument("--tables", type=Path, metavar="FILE", help=tables_help)
    p.add_argument("--optimiser", choices=("soap", "adam"), help="default: soap")
    p.add_argument("--threads", type=count, metavar="N", help="default: PyTorch's choice")
    p.add_argument("--device", default="cpu", metavar="NAME", help="default: %(default)s; cuda under torchrun: all")
    p.add_argument("--start", type=Path, metavar="FILE", help="a checkpoint or float weights to start from")
    p.add_argument("--cache", type=Path, metavar="STEM", help="decoded photographs (default: in --out)")
    compile_help = "torch.compile: some minutes, then faster steps"
    p.add_argument("--compile", action=argparse.BooleanOptionalAction, help=compile_help)
    p.add_argument("--bf16", action=argparse.BooleanOptionalAction, help="convolutions on a GPU (default: yes)")
    p.add_argument("--fused", action=argparse.BooleanOptionalAction, help="fused kernels on a GPU (default: yes)")
    p.add_argument("--record", action=argparse.BooleanOptionalAction, help="steps on a GPU as graphs (default: yes)")
    p.add_argument("--export", type=Path, metavar="FILE", help="at the end: integer weights, checked")
    p.add_argument("--validate", type=Path, metavar="DIR", help="at the end: rate and distortion over these images")
    p.add_argument("--plot", type=Path, metavar="FILE", help="draw the losses in --out, even without --data")
    p.set_defaults(command=commands.train)


def _add_ablate(p: argparse.ArgumentParser) -> None:
    p.add_argument("--data", type=Path, required=True, metavar="DIR", help="one photograph in ten is for the test")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="what it holds is not trained again")
    p.add_argument("--start", type=Path, required=True, metavar="FILE", help="float weights with the transforms")
    p.add_argument("--twins", type=_names, metavar="NAME,NAME", help="default: all")
    p.add_argument("--steps", type=count, metavar="N", help="of each twin")
    p.add_argument("--batch", type=count, metavar="N", help="crops in a step")
    p.add_argument("--crop", type=_crop, metavar="N", help=f"side of a crop in pixels, a multiple of {ALIGN}")
    p.add_argument("--rate", type=float, help="learning rate")
    p.add_argument("--log-rate", type=float, help="times it: for the logarithms of gains and scales")
    p.add_argument("--qualities", type=_qualities, metavar="Q,Q", help="of training and test")
    p.add_argument("--seeds", type=_seeds, metavar="N,N", help="each trains all twins once")
    p.add_argument("--inherit", action=argparse.BooleanOptionalAction, help="start from the trained regional path")
    p.add_argument("--threads", type=count, metavar="N", help="default: PyTorch's choice")
    p.add_argument("--cache", type=Path, metavar="STEM", help="decoded photographs (default: in --out)")
    p.set_defaults(command=commands.ablate)


def quality(text: str) -> float:
    value = float(text)
    if not 0 <= value <= QUALITY_MAX:
        raise argparse.ArgumentTypeError(f"must be within 0..{QUALITY_MAX:g}, got {text}")
    return value


def effort(text: str) -> int:
    if not 0 <= int(text) <= MAX_EFFORT:
        raise argparse.ArgumentTypeError(f"must be within 0..{MAX_EFFORT}, got {text}")
    return int(text)


def aq_strength(text: str) -> float:
    value, most = float(text), MAX_AQ / AQ_STEPS
    if not 0 <= value <= most:
        raise argparse.ArgumentTypeError(f"must be within 0..{most:g}, got {text}")
    return round(value * AQ_STEPS) / AQ_STEPS


def _qualities(text: str) -> tuple[float, ...]:
    return tuple(sorted({quality(part) for part in text.split(",")}))


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, text.split(","))))


def _seeds(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(int(part) for part in text.split(",")))


def count(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def positive(text: str) -> float:
    if not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text}")
    return float(text)


def _crop(text: str) -> int:
    if int(text) < 1 or int(text) % ALIGN:
        raise argparse.ArgumentTypeError(f"must be a multiple of {ALIGN}, got {text}")
    return int(text)


def _part(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"must be within 0..1, got {text}")
    return float(text)
