"""Maps kernels/ to dca_fast.kernels and builds the three native extensions; pyproject.toml has the rest.

Without a C++ compiler the package is installed without them: all of it works, in PyTorch and Python, many times slower.
With DCA_SLIM=1 the weights are left out, and the package of them that `dca-fast package` makes is a dependency instead.
With DCA_CUDA_ARCHS, such as "sm_80 sm_90 sm_100", nvcc also builds the GPU's coder for these architectures.
"""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext, has_flag
from setuptools import find_packages, setup

DEPENDENCIES = ["numpy>=1.24", "pillow>=11.3", "safetensors>=0.4.3", "rich>=13", "shtab>=1.6"]
SLIM = os.environ.get("DCA_SLIM") == "1"
if SLIM:
    newest = next(iter(json.loads(Path("dca_fast/data/models.json").read_text("utf-8"))))
    DEPENDENCIES.append(f"dca-fast-weights-{newest[:8]}")

# Products and sums stay two roundings, so that every compiler computes the same floats.
if sys.platform == "win32":
    COMPILE, LINK = ["/O2", "/fp:precise"], []
else:
    COMPILE, LINK = ["-O3", "-Wall", "-Wextra", "-ffp-contract=off", "-pthread"], ["-pthread"]


def extension(name: str, room: str) -> Pybind11Extension:
    """The module dca_fast._<name> from csrc/<room>/; instruction sets are chosen inside the sources."""
    return Pybind11Extension(
        f"dca_fast._{name}",
        sorted(glob(f"csrc/{room}/*.cpp")),
        depends=sorted(glob(f"csrc/{room}/*.h")),
        cxx_std=17,
        extra_compile_args=COMPILE,
        extra_link_args=LINK,
    )


class Build(build_ext):
    """Builds the extensions if anything can be compiled here; what then fails is an error."""

    def build_extensions(self):
        if not self.compiles():
            self.warn("no C++ compiler works here: dca-fast is installed without its C++ backend, which makes it slow")
            self.extensions = []
        super().build_extensions()

    def run(self):
        super().run()
        archs = os.environ.get("DCA_CUDA_ARCHS", "").split()
        if archs and not self.inplace:
            sys.path.insert(0, str(Path(__file__).parent))
            from dca_fast.entropy.cuda_library import build

            folder = Path(self.build_lib, "dca_fast")
            with ThreadPoolExecutor(len(archs)) as pool:
                list(pool.map(lambda arch: build(arch, folder), archs))

    def compiles(self):
        try:
            return has_flag(self.compiler, "/O2" if sys.platform == "win32" else "-O2")
        except Exception as error:  # of setuptools' choice, where there is no Visual C++
            self.warn(str(error))
            return False


ParallelCompile("DCA_BUILD_JOBS").install()
setup(
    packages=[*find_packages(include=["dca_fast", "dca_fast.*"]), "dca_fast.kernels", "dca_fast.csrc.coder"],
    package_dir={"dca_fast.kernels": "kernels", "dca_fast.csrc.coder": "csrc/coder"},
    exclude_package_data={"dca_fast": ["data/*.safetensors"] if SLIM else []},
    install_requires=DEPENDENCIES,
    ext_modules=[extension("rans", "coder"), extension("cpu", "ops"), extension("exact", "exact")],
    cmdclass={"build_ext": Build},
)
