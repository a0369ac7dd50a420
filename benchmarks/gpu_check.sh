#!/usr/bin/env bash
# All that needs an NVIDIA GPU, in one go: builds, tests, exactness, times. Leaves benchmarks/results/<gpu>.json
# and says at the end what failed. Needs Python >= 3.10 with torch, triton, numpy, pillow, safetensors, pytest, a C++
# compiler and nvcc. DCA_IMAGES=FOLDER takes photographs instead of synthetic pictures.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
name=$("$python" -c 'import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-"))') || exit 1
out=${1:-benchmarks/results/$name.json}
failed=()
step() {  # step NAME COMMAND...
    echo "== $1"
    local begin=$SECONDS
    "${@:2}" || failed+=("$1")
    echo "== $1: $((SECONDS - begin)) s"
}
step build "$python" setup.py --quiet build_ext --inplace
export DCA_REQUIRE_GPU=1
step tests "$python" -m pytest -q -x --maxfail=5 tests/test_kernels_*.py tests/test_rans_device.py tests/test_device.py
step measurements "$python" benchmarks/gpu.py --out "$out"
step profile "$python" -m dca_fast.profile --device cuda --resolution 4k --json "${out%.json}-profile.json"
if command -v compute-sanitizer >/dev/null; then
    step sanitizer timeout 100 compute-sanitizer --error-exitcode 1 --kernel-name-exclude kns=at \
        "$python" -m pytest -q -x tests/test_rans_device.py tests/test_device.py -k "cross or pixels_are and 64"
else
    echo "== sanitizer: compute-sanitizer not found, not run"
fi
if ((${#failed[@]})); then
    echo "FAILED: ${failed[*]}"
    exit 1
fi
echo "all passed; figures in $out"
