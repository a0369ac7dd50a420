"""The command line: `dca-fast encode | decode | verify | info | compare | eval | train | ... | help`.

Exit codes: 0 done; 1 the demo's backends disagree; 2 wrong usage or input; 3 bytes that cannot be decoded;
4 something this machine lacks (backend, weights, package, memory). Every failure is one line on standard error;
with DCA_DEBUG=1 it is a Python traceback.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from dca_fast.cli import commands, convert, verify
from dca_fast.cli.examples import EXAMPLES
from dca_fast.config import ALIGN, AQ_ONE, DEFAULT_AQ, DEFAULT_EFFORT, MAX_AQ, MAX_EFFORT, QUALITY_MAX, REDUCTIONS

INTERRUPTED = 130
LIMIT_HELP = "refuse larger pictures (default: DCA_MAX_PIXELS, 2^28)"
BROKEN_PIPE = 141  # what a shell reports of a program whose output nobody reads any more


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; default: those of the process.

    Returns:
        The exit code. Usage mistakes and --help end the process instead, as argparse does.
    """
    return guarded(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    if hasattr(args, "paths") and all(text == "-" or text[:1] not in ("", "-") for text in rest):
        args.paths += rest  # argparse takes those of one place alone: `IN -q 50 OUT` leaves OUT
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return int(args.command(args))


def guarded(work: Callable[[], int]) -> int:
    """What every command of this package does around its work: a failure becomes one line and an exit code."""
    _keep_standard_files()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may not fit into its encoding
    try:
        with warnings.catch_warnings():
            commands.show_warnings()
            code = work()
    except SystemExit as end:
        if code := _flushed(commands.OK):
            return code
        raise end
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        code = BROKEN_PIPE
    except Exception as error:
        if os.environ.get("DCA_DEBUG"):
            raise
        code = commands.fail(error)
    return _flushed(code)


def _flushed(code: int) -> int:
    """The exit code, once all of standard output has been written, or that of this failing."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else it fails once more when the process ends
        if isinstance(error, BrokenPipeError):  # `| head` has seen enough
            return code or BROKEN_PIPE
        return code or commands.fail(error, "standard output")


def _keep_standard_files() -> None:
    """Where the shell closed a standard file (`2>&-`), nothing that is opened later may take its number.

    Else the warnings of a C library would be written into a picture.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


class Parser(argparse.ArgumentParser):
    """Options are not abbreviated: a later version may have two that begin so."""

    def __init__(self, prog: str | None = None, **options: Any) -> None:
        super().__init__(prog, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """One line instead of the usage text."""
        commands.say("error", message)
        sys.exit(commands.BAD_INPUT)


def make_parser() -> Parser:
    parser = Parser("dca-fast", description="An exact neural image codec.", epilog=_examples(""))
    version = sys.modules["dca_fast"].__version__  # the package is above its modules, which do not import it
    parser.add_argument("--version", action="version", version=f"%(prog)s {version}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Any, **options: Any) -> argparse.ArgumentParser:
        p = subparsers.add_parser(
            name, help=command.__doc__, description=command.__doc__, epilog=_examples(name), **options
        )
        p.set_defaults(command=command)
        return p

    model = model_options()
    _add_conversion(add("encode", convert.encode, parents=[model]), encoding=True)
    _add_conversion(add("decode", convert.decode, parents=[model]), encoding=False)
    _add_verify(add("verify", verify.verify, parents=[model]))
    _add_info(add("info", commands.info))
    _add_compare(add("compare", commands.compare, parents=[model]))
    _add_eval(add("eval", commands.evaluate, parents=[model]))
    _add_train(add("train", commands.train))
    _add_ablate(add("ablate", commands.ablate))
    p = add("export", commands.export)
    p.add_argument("checkpoint", type=path, metavar="CHECKPOINT", help="checkpoint.pt of a training")
    p.add_argument("out", type=path, metavar="OUT", help="the .safetensors file to write")
    p.add_argument("--mix", type=path, metavar="FILE", help="take the mean with these float weights")
    p.add_argument("--share", type=part, default=0.5, help="of --mix in the mean, 0 to 1 (default: %(default)g)")
    p.add_argument("--float", type=path, metavar="FILE", help="also float weights, for `train --start`")
    p.add_argument("--data", type=path, metavar="PATH", help="photographs to fit the coder's tables to, as of `train`")
    p.add_argument("--cache", type=path, metavar="STEM", help="decoded photographs (default: beside OUT)")
    add_force(p)
    p = add("package", commands.package)
    p.add_argument(
        "weights", nargs="?", type=path, metavar="FILE", help="as `export` writes it (default: the shipped ones)"
    )
    p.add_argument("-o", "--out", type=path, default=Path("dist"), metavar="DIR", help="default: %(default)s")
    p = add("demo", commands.demo, parents=[model])
    p.add_argument("image", nargs="?", type=path, metavar="IMAGE", help="default: a drawn landscape")
    p.add_argument("--out", type=path, default=Path("dca-demo"), metavar="DIR", help="default: %(default)s")
    add_force(p)
    p = add("completion", commands.completion)
    p.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    p.set_defaults(parser=make_parser)
    p = add("help", commands.help)
    p.add_argument("topic", nargs="?", choices=tuple(subparsers.choices), metavar="COMMAND")
    p.set_defaults(parser=make_parser)
    return parser


def _examples(command: str) -> str:
    return "examples:\n" + "\n".join(f"  {line}" for line in EXAMPLES[command])


def add_force(p: argparse.ArgumentParser) -> None:
    p.add_argument("--force", action="store_true", help="replace whatever has the name of an output")


def model_options() -> Parser:
    """Options of every command that builds a codec."""
    p = Parser(add_help=False)
    p.add_argument("--preset", default="dca-s", metavar="NAME", help="shipped weights (default: %(default)s)")
    p.add_argument("--weights", type=named, metavar="FILE", help="other weights, as `export` writes them")
    p.add_argument("--backend", choices=("auto", "cuda", *commands.BACKENDS), default="auto")
    p.add_argument("--threads", type=count, metavar="N", help="default: DCA_THREADS, else all cores")
    p.add_argument("--device", metavar="NAME", help="default: that of the backend, cpu with auto")
    return p


def _add_effort(p: argparse.ArgumentParser, text: str) -> None:
    default = f"{text} (default: %(default)s)"
    p.add_argument("-e", "--effort", type=effort, default=DEFAULT_EFFORT, metavar="0..9", help=default)
    most = MAX_AQ / AQ_ONE
    aq_help = f"of adaptive quantisation, 0 to {most:g}; 0: for PSNR of each picture (default: %(default)g)"
    p.add_argument("--aq-strength", type=aq_strength, default=DEFAULT_AQ, metavar="X", help=aq_help)


def _add_conversion(p: argparse.ArgumentParser, encoding: bool) -> None:
    paths_help = "IN [OUT], '-' for a pipe, OUT beside IN by default; with -o: inputs, files or folders"
    p.add_argument("paths", nargs="+", type=named, metavar="PATH", help=paths_help)
    p.add_argument("-o", "--out-dir", type=named, metavar="DIR", help="convert all inputs into this folder")
    force_help = "replace an output that exists and is no .dca file" if encoding else "replace an output that exists"
    p.add_argument("--force", action="store_true", help=f"{force_help}, or is the input")
    keep_help = "an output that exists is an error; of a batch, whole ones are kept"
    p.add_argument("--no-overwrite", action="store_true", help=keep_help)
    manifest_help = "of a batch: a line of JSON about each file, with hashes; later runs bring it up to date"
    p.add_argument("--manifest", type=path, metavar="FILE", help=manifest_help)
    p.add_argument("--shard", type=shard, metavar="I/N", help="of a batch: the I-th of N parts, for N processes")
    p.add_argument("--max-pixels", type=count, metavar="N", help=LIMIT_HELP)
    p.add_argument("--quiet", action="store_true", help="say only what went wrong")
    if encoding:
        p.add_argument("--keep-suffix", action="store_true", help="photo.jpg becomes photo.jpg.dca")
        goal = p.add_mutually_exclusive_group()
        goal.add_argument("-q", "--quality", type=quality, default=60.0, help="0 to 100 (default: %(default)g)")
        lossless_help = "every sample as it was, of 8 or 16 bits; --effort is of no meaning"
        goal.add_argument("--lossless", action="store_true", help=lossless_help)
        goal.add_argument("--max-bytes", type=count, metavar="N", help="the highest quality with so many bytes")
        goal.add_argument("--bpp", type=positive, metavar="BITS", help="the highest with so many bits per pixel")
        goal.add_argument("--psnr", type=positive, metavar="DB", help="the lowest with such a fidelity")
        goal.add_argument("--ms-ssim", type=positive, metavar="X", help="the same by MS-SSIM, below 1")
        goal.add_argument("--ssimulacra2", type=positive, metavar="X", help="the same by SSIMULACRA2, below 100")
        _add_effort(p, "time for fewer bits at equal distortion")
        screen_help = "text, charts and screens by the exact-colour coder where that takes less (default: %(default)s)"
        p.add_argument("--screen", choices=("auto", "off"), default="auto", help=screen_help)
        alpha_help = "100 keeps alpha as it is, below it has fewer levels (default: 100)"
        p.add_argument("--alpha-quality", type=quality, default=100.0, metavar="Q", help=alpha_help)
        p.add_argument("--strip", action="store_true", help="drop EXIF and XMP, turn the picture upright")
        verify = p.add_mutually_exclusive_group()
        verify.add_argument("--verify", action="store_const", const="itself", help="decode before writing")
        # An option without a separate value, so that `--verify IN OUT` does not take IN for one.
        reference_help = "decode with the reference backend too, and compare the pixels"
        verify.add_argument(
            "--verify=reference", dest="verify", action="store_const", const="reference", help=reference_help
        )
    else:
        format_help = "extension of outputs without a name (default: png)"
        p.add_argument("--format", metavar="EXT", type=lambda text: text.lower().removeprefix("."), help=format_help)
        region_help = "left, top, width and height in pixels: that part alone, of large pictures without the rest"
        p.add_argument("--region", type=region, metavar="L,T,W,H", help=region_help)
        reduce_help = "a pixel for N by N; 8 and 16 take less time than the whole"
        p.add_argument("--reduce", type=int, choices=REDUCTIONS[1:], default=1, help=reduce_help)


def _add_verify(p: argparse.ArgumentParser) -> None:
    p.add_argument("paths", nargs="*", type=named, metavar="PATH", help="files, or folders with all below them")
    p.add_argument("--manifest", type=path, metavar="FILE", help="of `encode`: its outputs, compared by their hashes")
    p.add_argument(
        "--quick", action="store_true", help="checksums alone: much faster, and finds bits that changed by accident"
    )
    p.add_argument("--max-pixels", type=count, metavar="N", help=LIMIT_HELP)
    p.add_argument("--quiet", action="store_true", help="say only what is wrong")


def _add_info(p: argparse.ArgumentParser) -> None:
    p.add_argument("file", nargs="?", type=named, metavar="FILE", help="a .dca file, '-' for a pipe")
    p.add_argument("--preset", metavar="NAME", help="a model instead of a file")
    p.add_argument("--json", action="store_true", help="the same as JSON")


def _add_compare(p: argparse.ArgumentParser) -> None:
    p.add_argument("image", type=path, metavar="IMAGE")
    p.add_argument("-o", "--out", type=path, metavar="FILE", help="default: IMAGE's name with .html, here")
    p.add_argument("-q", "--quality", type=quality, default=60.0, help="0 to 100 (default: %(default)g)")
    p.add_argument("--quiet", action="store_true", help="say only what went wrong")
    _add_effort(p, "time for fewer bits at equal distortion")
    add_force(p)


def _add_eval(p: argparse.ArgumentParser) -> None:
    p.add_argument("folder", type=path, metavar="DIR", help="images, searched recursively")
    steps = tuple(float(q) for q in range(0, 101, 10))
    p.add_argument("--qualities", type=qualities, default=steps, metavar="Q,Q", help="default: 0,10,..,100")
    _add_effort(p, "of the encoder")
    p.add_argument("--ssimulacra2", action="store_true", help="this measure too: about a second for a megapixel")
    p.add_argument("--peers", type=names, default=(), metavar="NAME,NAME", help="of jpeg,webp,avif,jxl")
    p.add_argument("--peer-cache", type=path, metavar="DIR", help="keep what peers did: they are not run again")
    p.add_argument("--anchors", type=path, metavar="FILE", help="JSON with published curves")
    p.add_argument("--anchor-set", metavar="NAME", help="set of images in it (default: the name of DIR)")
    p.add_argument("--anchor-names", type=names, default=(), metavar="NAME,NAME", help="default: all of it")
    p.add_argument("--json", type=path, metavar="FILE", help="write everything measured")
    p.add_argument("--plot", type=path, metavar="FILE", help="draw the curves (.png, .svg, .pdf)")
    add_force(p)


def _add_train(p: argparse.ArgumentParser) -> None:
    p.add_argument("--preset", default="dca-s", metavar="NAME", help="default: %(default)s")
    p.add_argument("--data", type=path, metavar="PATH", help="photographs: a folder, tar shards, or a packed .bin")
    p.add_argument("--out", type=path, required=True, metavar="DIR", help="its checkpoint is resumed")
    p.add_argument("--minutes", type=not_negative, help="length of this run")
    p.add_argument("--steps", type=count, metavar="N", help="length of all runs in --out, instead of --minutes")
    p.add_argument("--batch", type=count, metavar="N", help="crops in a step, of each process of torchrun")
    p.add_argument("--crop", type=crop, metavar="N", help=f"side of a crop in pixels, a multiple of {ALIGN}")
    p.add_argument("--rate", type=positive, help="learning rate")
    p.add_argument("--cooldown", type=part, metavar="PART", help="of the time in which the rate falls (default: 0.35)")
    p.add_argument("--seed", type=seed, metavar="N", help="another one for a run with --start draws other crops")
    p.add_argument("--parts", type=names, metavar="PART,PART", help="train only these, as synthesis,context")
    effort_help = "of the encoder that is trained for (default: 0); 1: with --parts, without analysis"
    p.add_argument("--effort", type=int, choices=(0, 1), help=effort_help)
    aq_help = "of adaptive quantisation that is trained for (default: 0)"
    p.add_argument("--aq-strength", type=aq_strength, metavar="X", help=aq_help)
    rates_help = "what is counted: uniform noise, or the values that files hold (default: noise)"
    p.add_argument("--rates", choices=("noise", "expected"), help=rates_help)
    for name, what in (("blocks", "blocks of f_a"), ("hidden", "their hidden widths")):
        text = f"{what} at 1/8 and 1/16, if not the preset's"
        p.add_argument(f"--analysis-{name}", type=two, metavar="N,N", help=text)
    p.add_argument("--rate-only", action="store_true", help="bits alone, without f_s: for --parts without transforms")
    tables_help = "integer weights with whose tables the trellis is searched (default: Gaussian ones)"
    p.add_argument("--tables", type=path, metavar="FILE", help=tables_help)
    p.add_argument("--optimiser", choices=("soap", "adam"), help="default: soap")
    p.add_argument("--threads", type=count, metavar="N", help="default: PyTorch's choice")
    p.add_argument("--device", default="cpu", metavar="NAME", help="default: %(default)s; cuda under torchrun: all")
    p.add_argument("--start", type=path, metavar="FILE", help="a checkpoint or float weights to start from")
    p.add_argument("--cache", type=path, metavar="STEM", help="decoded photographs (default: in --out)")
    compile_help = "torch.compile: some minutes, then faster steps"
    p.add_argument("--compile", action=argparse.BooleanOptionalAction, help=compile_help)
    p.add_argument("--bf16", action=argparse.BooleanOptionalAction, help="convolutions on a GPU (default: yes)")
    p.add_argument("--fused", action=argparse.BooleanOptionalAction, help="fused kernels on a GPU (default: yes)")
    p.add_argument("--record", action=argparse.BooleanOptionalAction, help="steps on a GPU as graphs (default: yes)")
    p.add_argument("--export", type=path, metavar="FILE", help="at the end: integer weights, checked")
    p.add_argument("--validate", type=path, metavar="DIR", help="at the end: rate and distortion over these images")
    p.add_argument("--plot", type=path, metavar="FILE", help="draw the losses in --out, even without --data")
    add_force(p)


def _add_ablate(p: argparse.ArgumentParser) -> None:
    p.add_argument("--data", type=path, required=True, metavar="DIR", help="one photograph in ten is for the test")
    p.add_argument("--out", type=path, required=True, metavar="DIR", help="what it holds is not trained again")
    p.add_argument("--start", type=path, required=True, metavar="FILE", help="float weights with the transforms")
    p.add_argument("--twins", type=names, metavar="NAME,NAME", help="default: all")
    p.add_argument("--steps", type=count, metavar="N", help="of each twin")
    p.add_argument("--batch", type=count, metavar="N", help="crops in a step")
    p.add_argument("--crop", type=crop, metavar="N", help=f"side of a crop in pixels, a multiple of {ALIGN}")
    p.add_argument("--rate", type=positive, help="learning rate")
    p.add_argument("--log-rate", type=float, help="times it: for the logarithms of gains and scales")
    p.add_argument("--qualities", type=qualities, metavar="Q,Q", help="of training and test")
    p.add_argument("--seeds", type=seeds, metavar="N,N", help="each trains all twins once")
    p.add_argument("--inherit", action=argparse.BooleanOptionalAction, help="start from the trained regional path")
    p.add_argument("--threads", type=count, metavar="N", help="default: PyTorch's choice")
    p.add_argument("--cache", type=path, metavar="STEM", help="decoded photographs (default: in --out)")


def named(text: str) -> str:
    """A path, "-" or a name; an empty one would be the folder that the program runs in."""
    if not text:
        raise argparse.ArgumentTypeError("a path is empty; '.' is this folder")
    return text


def path(text: str) -> Path:
    return Path(named(text))


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
    value, most = float(text), MAX_AQ / AQ_ONE
    if not 0 <= value <= most:
        raise argparse.ArgumentTypeError(f"must be within 0..{most:g}, got {text}")
    return round(value * AQ_ONE) / AQ_ONE


def qualities(text: str) -> tuple[float, ...]:
    return tuple(sorted({quality(part) for part in text.split(",")}))


def names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, text.split(","))))


def seed(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {text}")
    return int(text)


def seeds(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(map(seed, text.split(","))))


def count(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def positive(text: str) -> float:
    if not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text}")
    return float(text)


def not_negative(text: str) -> float:
    if not 0 <= float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, got {text}")
    return float(text)


def two(text: str) -> tuple[int, int]:
    first, second = map(count, text.split(","))
    return first, second


def crop(text: str) -> int:
    if int(text) < 1 or int(text) % ALIGN:
        raise argparse.ArgumentTypeError(f"must be a multiple of {ALIGN}, got {text}")
    return int(text)


def part(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"must be within 0..1, got {text}")
    return float(text)


def region(text: str) -> tuple[int, ...]:
    numbers = tuple(map(int, text.split(",")))
    if len(numbers) != 4:
        raise argparse.ArgumentTypeError(f"must be LEFT,TOP,WIDTH,HEIGHT in pixels, got {text}")
    return numbers


def shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not 1 <= int(part) <= int(parts):
        raise argparse.ArgumentTypeError(f"must be I/N with 1 <= I <= N, got {text}")
    return int(part), int(parts)
