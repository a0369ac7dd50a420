"""Maps kernels/ to dca_fast.kernels and builds the two native extensions; pyproject.toml has the rest."""

import sys
from glob import glob

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import find_packages, setup

# Products and sums stay two roundings, so that every compiler computes the same floats.
if sys.platform == "win32":
    COMPILE, LINK = ["/O2", "/fp:precise"], []
else:
    COMPILE, LINK = ["-O3", "-Wall", "-Wextra", "-ffp-contract=off", "-pthread"], ["-pthread"]


def extension(name: str) -> Pybind11Extension:
    """The module dca_fast._<name> from csrc/<name>_*.cpp; instruction sets are chosen inside the sources."""
    return Pybind11Extension(
        f"dca_fast._{name}",
        sorted(glob(f"csrc/{name}_*.cpp")),
        depends=sorted(glob("csrc/*.h")),
        cxx_std=17,
        extra_compile_args=COMPILE,
        extra_link_args=LINK,
    )


ParallelCompile("DCA_BUILD_JOBS").install()
setup(
    packages=[*find_packages(include=["dca_fast", "dca_fast.*"]), "dca_fast.kernels", "dca_fast.csrc"],
    package_dir={"dca_fast.kernels": "kernels", "dca_fast.csrc": "csrc"},
    ext_modules=[extension("rans"), extension("cpu")],
)
