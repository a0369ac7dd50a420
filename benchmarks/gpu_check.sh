#!/usr/bin/env bash
# All that needs an NVIDIA GPU, in one go: builds, exactness, times, tests. Leaves benchmarks/results/<gpu>.json
# and says at the end what failed.
#
#   benchmarks/gpu_check.sh [FILE.json [PART ...]]      parts: measurements tests profile sanitizer (default: all)
#
# Needs Python >= 3.10 with torch, triton, numpy, pillow, safetensors, rich, pytest, setuptools, pybind11, a C++ compiler
# and nvcc; pytest-xdist runs the tests in parallel. Nothing has to be installed, and nothing is fetched.
# DCA_IMAGES=FOLDER takes photographs instead of synthetic pictures.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
name=$("$python" -c 'import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-"))') || exit 1
out=$(realpath -m "${1:-benchmarks/results/$name.json}")
shift
parts=("$@")
((${#parts[@]})) || parts=(measurements tests profile sanitizer)
failed=()
step() { # step NAME SECONDS COMMAND...: none may take the time of all
    echo "== $1"
    local begin=$SECONDS
    timeout "$2" "${@:3}" || failed+=("$1")
    echo "== $1: $((SECONDS - begin)) s"
}
measurements() { step measurements 240 "$python" benchmarks/gpu.py --out "$out"; }
tests() { # what compiles only, or runs in emulation, says nothing about this device; neither do warnings of new versions
    local parallel=()
    "$python" -c 'import xdist' 2>/dev/null && parallel=(-n 8)
    step tests 240 "$python" -m pytest -q --maxfail=20 -W default "${parallel[@]}" \
        -k "not compile and not sanitizers and not emulated" \
        tests/test_kernels_*.py tests/test_rans_device.py tests/test_device.py
}
profile() {
    step profile 60 "$python" -m dca_fast.profile --device cuda --resolution 4k --force --json "${out%.json}-profile.json"
}
sanitizer() { # the coder's kernels, not PyTorch's own
    if command -v compute-sanitizer >/dev/null; then
        step sanitizer 120 compute-sanitizer --error-exitcode 1 --kernel-name-exclude kns=at6native "$python" -m pytest \
            -q -x -W default -k "gpu and (every_layout or searched_as)" tests/test_rans_device.py
    else
        echo "== sanitizer: compute-sanitizer not found, not run"
    fi
}
step build 200 "$python" setup.py --quiet build_ext --inplace
if [[ ! -e dca_fast/kernels ]]; then # where it is not installed, packages outside of its folder are not found
    ln -s ../kernels dca_fast/kernels
    trap 'rm dca_fast/kernels' EXIT
fi
export DCA_REQUIRE_GPU=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
if ((${#failed[@]})) || ! "$python" -c 'from dca_fast import Codec; Codec(device="cpu", backend="native")'; then
    echo "FAILED: build"
    exit 1
fi
for part in "${parts[@]}"; do
    "$part"
done
if ((${#failed[@]})); then
    echo "FAILED: ${failed[*]}"
    exit 1
fi
echo "all passed; figures in $out"
