"""`dca-fast package`: a Python package of weights, from which `pip wheel` makes what others install."""

import argparse
import re

from dca_fast.cli.commands import note
from dca_fast.errors import InputError, WeightsError
from dca_fast.files.atomic import write_atomic
from dca_fast.network import models, weights

PROJECT = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{distribution}"
version = "1"
description = "Weights {name} of dca-fast, model {model}"
readme = "README.md"
license = "Apache-2.0"
requires-python = ">=3.10"

[project.entry-points."{group}"]
"{model}" = "{package}"

[tool.setuptools]
packages = ["{package}"]

[tool.setuptools.package-data]
{package} = ["*.safetensors"]
"""
README = """# {distribution}

The weights "{name}" of dca-fast: it reads files of model {model} once this package
is installed.

SHA-256 of what a decoder reads: {identity}
"""


def package(args: argparse.Namespace) -> None:
    """Write the package of a weights file."""
    path = args.weights or models.named("dca-s")
    loaded = weights.load(path)
    if loaded.problem:
        raise WeightsError(loaded.problem)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", loaded.config.name):
        raise InputError(f"{path}: a file and a package cannot be called {loaded.config.name!r}")
    model = loaded.model_id.hex()
    folder = args.out / models.distribution(loaded.model_id)
    if folder.exists():
        raise InputError(f"{folder} exists")
    inner = folder / folder.name.replace("-", "_")
    facts = {
        "distribution": folder.name,
        "package": inner.name,
        "name": loaded.config.name,
        "model": model,
        "identity": loaded.identity.hex(),
        "group": models.GROUP,
    }
    inner.mkdir(parents=True)
    write_atomic(inner / f"{loaded.config.name}.safetensors", path.read_bytes())
    write_atomic(inner / "__init__.py", f'"""Weights {loaded.config.name} of dca-fast, model {model}."""\n'.encode())
    write_atomic(folder / "pyproject.toml", PROJECT.format(**facts).encode())
    write_atomic(folder / "README.md", README.format(**facts).encode())
    note(f"{folder}: `pip wheel --no-deps {folder}` makes a wheel of it")
