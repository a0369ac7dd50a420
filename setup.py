"""Maps kernels/ to dca_fast.kernels and builds the three native extensions; pyproject.toml has the rest.

Without a C++ compiler the package is installed without them: it needs PyTorch then, and is many times slower.
With DCA_SLIM=1 the weights are left out, and the package of them that `dca-fast package` makes is a dependency instead.
Python 3.12 and later share one build in their stable ABI; 3.10 and 3.11 need one each.
With DCA_CUDA_ARCHS, such as "sm_80 sm_90 sm_100", nvcc also builds the GPU's coder for these architectures.
"""

import json
import os
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path
from tempfile import TemporaryDirectory

import nanobind
import numpy
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

DEPENDENCIES = ["numpy>=1.24", "pillow>=11.3", "safetensors>=0.4.3", "rich>=13", "shtab>=1.6"]
SLIM = os.environ.get("DCA_SLIM") == "1"
if SLIM:
    newest = next(iter(json.loads(Path("dca_fast/data/models.json").read_text("utf-8"))))
    DEPENDENCIES.append(f"dca-fast-weights-{newest[:8]}")

# Products and sums stay two roundings, so that every compiler computes the same floats. nanobind wants <cstdio>, which
# neither Python's header for the stable ABI brings nor, on macOS, those of C++.
if sys.platform == "win32":
    COMPILE, ALIASING, LINK = ["/std:c++17", "/EHsc", "/bigobj", "/O2", "/fp:precise", "/FIcstdio"], [], []
else:
    COMPILE = ["-std=c++17", "-O3", "-g0", "-Wall", "-Wextra", "-fvisibility=hidden", "-ffp-contract=off", "-pthread"]
    COMPILE += ["-include", "cstdio"]
    ALIASING, LINK = ["-fno-strict-aliasing"], ["-pthread"]  # nanobind looks into objects of Python

STABLE = sys.version_info >= (3, 12) and not sysconfig.get_config_var("Py_GIL_DISABLED")
MACROS = [("NDEBUG", None), ("NB_COMPACT_ASSERTIONS", None), ("NB_DOMAIN", "dca_fast")]
MACROS += [("Py_LIMITED_API", "0x030C0000")] if STABLE else []
NANOBIND = os.path.join(nanobind.source_dir(), "nb_combined.cpp")
ROBIN_MAP = os.path.join(nanobind.source_dir(), "..", "ext", "robin_map", "include")
INCLUDE = [nanobind.include_dir(), ROBIN_MAP, numpy.get_include()]


def extension(name: str, room: str) -> Extension:
    """The module dca_fast._<name> from csrc/<room>/; instruction sets are chosen inside the sources."""
    return Extension(
        f"dca_fast._{name}",
        sorted(glob(f"csrc/{room}/*.cpp")),
        depends=["csrc/arrays.h", *sorted(glob(f"csrc/{room}/*.h"))],
        define_macros=MACROS,
        include_dirs=INCLUDE,
        extra_compile_args=COMPILE,
        extra_link_args=LINK,
        py_limited_api=STABLE,
    )


class Build(build_ext):
    """Builds the extensions if anything can be compiled here; what then fails is an error."""

    def build_extensions(self):
        if not self.compiles():
            self.warn("no C++ compiler works here: dca-fast has no C++ backend, needs PyTorch and is slow")
            self.extensions = []
            return
        compile_some = self.compiler.compile
        bindings = compile_some([NANOBIND], self.build_temp, MACROS, INCLUDE, extra_postargs=[*COMPILE, *ALIASING])
        for each in self.extensions:
            each.extra_objects = bindings
        with ThreadPoolExecutor(int(os.environ.get("DCA_BUILD_JOBS") or os.cpu_count() or 1)) as pool:
            self.compiler.compile = lambda sources, **options: [
                path for paths in pool.map(lambda source: compile_some([source], **options), sources) for path in paths
            ]
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
            with TemporaryDirectory() as folder:
                Path(folder, "empty.cpp").touch()
                self.compiler.compile([str(Path(folder, "empty.cpp"))], output_dir=folder)
                return True
        except Exception as error:  # of setuptools' choice, where there is no Visual C++
            self.warn(str(error))
            return False


setup(
    packages=[*find_packages(include=["dca_fast", "dca_fast.*"]), "dca_fast.kernels", "dca_fast.csrc.coder"],
    package_dir={"dca_fast.kernels": "kernels", "dca_fast.csrc.coder": "csrc/coder"},
    exclude_package_data={"dca_fast": ["data/*.safetensors"] if SLIM else []},
    install_requires=DEPENDENCIES,
    ext_modules=[extension("rans", "coder"), extension("cpu", "ops"), extension("exact", "exact")],
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp312"}} if STABLE else {},
)
