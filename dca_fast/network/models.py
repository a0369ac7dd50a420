"""Where weights are: those that are shipped, those of installed packages, those in the folders of DCA_WEIGHTS.

A package offers its folder as an entry point of the group "dca_fast.weights", whose value is the name of the package.
`dca_fast/data/models.json` lists every model that was ever released, the newest first, by the SHA-256 of what a decoder
reads.
"""

import json
import os
import stat
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from dca_fast.errors import WeightsError
from dca_fast.network.weights import identity_of, load

__all__ = ["distribution", "folders", "listed", "named", "of_id", "released"]

SHIPPED = Path(__file__).resolve().parents[1] / "data"
GROUP = "dca_fast.weights"


def released() -> dict[bytes, str]:
    """Names of released models by their identity, the newest first."""
    listing: dict[str, dict[str, str]] = json.loads((SHIPPED / "models.json").read_text("utf-8"))
    return {bytes.fromhex(identity): facts["name"] for identity, facts in listing.items()}


def distribution(model_id: bytes) -> str:
    """The name of the package that holds the weights of a released model: `pip install` of it."""
    return f"dca-fast-weights-{model_id.hex()}"


def folders() -> list[Path]:
    """All of them, in the order in which they are searched; some may not exist."""
    from importlib.metadata import entry_points  # late: a codec of the shipped weights needs no packages

    places = [SHIPPED]
    for point in entry_points(group=GROUP):
        try:
            spec = find_spec(point.value)
        except (ImportError, ValueError, AttributeError):  # a package that was removed by half
            continue
        places += map(Path, (spec.submodule_search_locations or ()) if spec else ())
    return places + [Path(folder) for folder in os.environ.get("DCA_WEIGHTS", "").split(os.pathsep) if folder]


def files() -> list[Path]:
    """Every weights file in them; a pipe of that name would be waited for."""
    return [path for folder in folders() for path in sorted(folder.glob("*.safetensors")) if not _is_special(path)]


def _is_special(path: Path) -> bool:
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:  # which reading it will tell
        return False


def listed() -> tuple[dict[bytes, list[Path]], list[str]]:
    """The weights files by the SHA-256 of what a decoder reads, and what is wrong with others.

    Nothing but their metadata is read: `weights.load` compares it with the tensors.
    """
    known: dict[bytes, list[Path]] = {}
    problems = []
    for path in files():
        try:
            status = path.stat()
            known.setdefault(_identity(path, status.st_mtime_ns, status.st_size), []).append(path)
        except (OSError, WeightsError) as error:
            problems.append(str(error))
    return known, problems


@lru_cache(maxsize=256)
def _identity(path: Path, changed: int, size: int) -> bytes:
    return identity_of(path)


def of_id(model_id: bytes) -> Path:
    """The weights of a file's model.

    Args:
        model_id: four bytes, as the file names them.

    Raises:
        WeightsError: there are none, and the message says which there are, and where they were looked for; or there
            are two different ones.
    """
    known, problems = listed()
    fitting = [paths for identity, paths in known.items() if identity.startswith(model_id)]
    if len(fitting) == 1:
        return _whole(fitting[0])
    if fitting:
        names = " and ".join(str(paths[0]) for paths in fitting)
        raise WeightsError(f"{names} differ and are both of model {model_id.hex()}")
    ids = ", ".join(f"{identity[:4].hex()} ({paths[0].stem})" for identity, paths in known.items()) or "none"
    message = f"made with model {model_id.hex()}; the only weights here are of {ids}"
    if any(identity.startswith(model_id) for identity in released()):
        problems.append(f"`pip install {distribution(model_id)}` brings them")
    if not os.environ.get("DCA_WEIGHTS"):
        problems.append("DCA_WEIGHTS names folders with others")
    raise WeightsError("; ".join([message, *problems]))


def _whole(paths: list[Path]) -> Path:
    """Of several copies the first that is whole, else the first that decodes; the last, if all are damaged."""
    if len(paths) == 1:
        return paths[0]
    found = [_damage_of(path) for path in paths]
    least = min(found)
    return paths[found.index(least)] if least < 2 else paths[-1]


def _damage_of(path: Path) -> int:
    """0 for none, 1 of the encoder alone, 2 for any other."""
    try:
        status = path.stat()
        return _damage(path, status.st_mtime_ns, status.st_size)
    except OSError:
        return 2


@lru_cache(maxsize=256)
def _damage(path: Path, changed: int, size: int) -> int:
    try:
        return int(bool(load(path).problem))
    except WeightsError:
        return 2


def named(name: str) -> Path:
    """The weights of a preset: those that are shipped, else those of its newest release.

    Raises:
        WeightsError: there are none of that name; the message lists those that there are.
    """
    for path in SHIPPED.glob("*.safetensors"):  # the usual case: no package is looked for
        if path.stem == name:
            return path
    paths, fitting, problems = files(), [], []
    newest = next((identity for identity, other in released().items() if other == name), None)
    for path in (path for path in paths if path.stem == name):
        try:
            if newest in (None, identity_of(path)):
                fitting.append(path)
        except WeightsError as error:
            problems.append(f"; {error}")
    if fitting:
        return _whole(fitting)
    hint = "" if newest is None else f"; `pip install {distribution(newest[:4])}` brings them"
    known = ", ".join(dict.fromkeys(path.stem for path in paths)) or "none"
    raise WeightsError(f"no weights are called {name!r}; those here: {known}{hint}{''.join(problems)}")
