"""The command line as a page, from the parser itself.

python docs/reference/make_cli.py           # writes docs/reference/cli.md
python docs/reference/make_cli.py --check   # exit code 1 if the page says something else than the parser
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dca_fast.cli.examples import EXAMPLES
from dca_fast.cli.parser import make_parser

PAGE = Path(__file__).resolve().parent / "cli.md"
HEAD = """# Command line

`dca-fast help COMMAND` prints the same. `python -m dca_fast` is the same program. `python docs/reference/make_cli.py`
makes this page. Variables of the environment: [environment.md](environment.md).

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | the demo's backends disagree |
| 2 | wrong usage or input |
| 3 | bytes that cannot be decoded |
| 4 | something this machine lacks: a backend, weights, a package, memory |
| 130 | interrupted |
| 141 | nobody reads the output any more |

Every failure is one line on standard error. Options are not abbreviated.
"""


def page() -> str:
    """The whole page."""
    (commands,) = (a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return HEAD + "".join(section(name, parser) for name, parser in commands.choices.items())


def section(name: str, parser: argparse.ArgumentParser) -> str:
    """One command: what it does, examples, arguments."""
    rows = [(spelled(action), meaning(action)) for action in sorted_arguments(parser)]
    table = "".join(f"| {left} | {right} |\n" for left, right in rows)
    examples = "\n".join(EXAMPLES[name])
    return f"\n## {name}\n{parser.description}\n\n```\n{examples}\n```\n\n| argument | meaning |\n|---|---|\n{table}"


def sorted_arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Without --help; those without a name first."""
    actions = (action for action in parser._actions if action.dest != "help")
    return sorted(actions, key=lambda action: bool(action.option_strings))


def spelled(action: argparse.Action) -> str:
    """An argument as it is typed."""
    choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else None
    value = str(action.metavar or choices or action.dest.upper())
    if not action.option_strings:
        return f"`{value}`"
    takes = "" if action.nargs == 0 else f" {value}"
    return ", ".join(f"`{option}{takes}`" for option in action.option_strings)


def meaning(action: argparse.Action) -> str:
    """What an argument says of itself, with its default filled in as argparse does."""
    text = (action.help or "") % {"default": action.default}
    return text.replace("|", r"\|")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args().check
    new = page()
    if PAGE.exists() and PAGE.read_text("utf-8") == new:
        return 0
    if check:
        sys.stdout.write(f"{PAGE.name} says something else than the parser\n")
        return 1
    PAGE.write_text(new, "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
