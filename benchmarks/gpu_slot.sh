#!/usr/bin/env bash
# Some minutes of a lent NVIDIA GPU, none of them wasted: exactness first, then figures, then training until the end.
#
#   benchmarks/gpu_slot.sh OUT MINUTES [PART ...]
#
# Parts, each with a time of its own and useful alone: exactness (60 s), figures (90 s), train (what is left); and, when
# they are named, tests (240 s), sanitizer (120 s), soak (120 s), profile (60 s). Default: exactness figures train. A part
# that fails is named at the end, and the others run all the same. OUT takes few files, none above 16 MiB, written as they
# come: gpu.json, soak.json, training.jsonl, weights and checkpoints (benchmarks/train_queue.py), slot.log.
#
# Needs Python >= 3.10 with torch, triton, numpy, pillow, safetensors and rich, and nvcc. Nothing has to be installed, and
# nothing is fetched. Extensions that were built beforehand for this Python (setup.py build_ext --inplace) are taken, else
# they are built here, which wants setuptools, nanobind and a C++ compiler.
#   DCA_PACK     photographs to train on (default: pack.crops, of python -m dca_fast.train.pack)
#   DCA_QUEUE    the trainings (default: benchmarks/gpu_queue.json)
#   DCA_RESUME   folder with the files of earlier slots, of which trainings go on (default: OUT)
#   DCA_IMAGES   photographs to measure with, instead of synthetic pictures
#   DCA_DEVICE   cpu: a rehearsal with tiny pictures and without a GPU (default: cuda)
set -uo pipefail
[[ $# -ge 2 ]] || { sed -n '4p' "$0" | cut -c5-; exit 2; }
started=$(date +%s)
out=$(realpath -m "$1") length=$(awk "BEGIN { printf \"%d\", 60 * $2 }")
shift 2
parts=("$@")
((${#parts[@]})) || parts=(exactness figures train)
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
mkdir -p "$out"
exec > >(tee "$out/slot.log") 2>&1
python=${PYTHON:-python3}
device=${DCA_DEVICE:-cuda}
pack=$(realpath -m "${DCA_PACK:-pack.crops}")
failed=()
left() { echo $((started + length - $(date +%s) - 5)); } # the last seconds are for what ends late
asked() { [[ " ${parts[*]} " == *" $1 "* ]]; }
step() { # step NAME SECONDS COMMAND...: none may take the time of all
    local seconds=$2 begin=$SECONDS
    ((seconds <= $(left))) || seconds=$(left)
    if ((seconds < 5)); then
        echo "== $1: no time left"
        failed+=("$1")
        return
    fi
    echo "== $1"
    timeout -k 5 "$seconds" "${@:3}" || failed+=("$1")
    echo "== $1: $((SECONDS - begin)) s"
}
if [[ ! -e dca_fast/kernels ]]; then # where it is not installed, packages outside of its folder are not found
    ln -s ../kernels dca_fast/kernels
    trap 'rm dca_fast/kernels' EXIT
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 DCA_BUILD_JOBS=${DCA_BUILD_JOBS:-16}
[[ $device != cuda ]] || export DCA_REQUIRE_GPU=1
"$python" -c 'import dca_fast._cpu, dca_fast._rans' 2>/dev/null ||
    step build 200 "$python" setup.py --quiet build_ext --inplace

exact=0 figures=0
! asked exactness || exact=$([[ $device == cuda ]] && echo 60 || echo 4)
! asked figures || figures=$([[ $device == cuda ]] && echo 90 || echo 4)
if ((exact + figures)); then # in one process: kernels are compiled once. The first picture takes up to a minute of that.
    step measure $((exact + figures + 90)) "$python" benchmarks/gpu.py --device "$device" --out "$out/gpu.json" \
        --exactness "$exact" --figures "$figures"
fi
if asked tests; then # what compiles only, or runs in emulation, says nothing about this device
    parallel=()
    ! "$python" -c 'import xdist' 2>/dev/null || parallel=(-n 8)
    step tests 240 "$python" -m pytest -q --maxfail=20 -W default "${parallel[@]}" \
        -k "not compile and not sanitizers and not emulated" \
        tests/test_kernels_*.py tests/test_rans_device.py tests/test_device.py \
        tests/test_train.py::test_a_gpu_trains_as_the_host_says \
        tests/test_conformance.py::test_a_gpu_returns_the_pixels_and_refuses
fi
if asked sanitizer; then # the coder's kernels, not PyTorch's own
    step sanitizer 120 compute-sanitizer --error-exitcode 1 --kernel-name-exclude kns=at6native "$python" -m pytest \
        -q -x -W default -k "gpu and (every_layout or searched_as)" tests/test_rans_device.py
fi
if asked soak; then # whether memory grows, and every file and picture is that of the CPU
    minutes=$([[ $device == cuda ]] && echo 1.6 || echo 0.03)
    step soak 120 "$python" benchmarks/measure/soak.py --device "$device" --minutes "$minutes" --out "$out/soak.json"
fi
if asked profile; then
    step profile 60 "$python" -m dca_fast.profile --device "$device" --resolution 4k --json "$out/profile.json"
fi
if asked train; then
    step train "$(left)" "$python" benchmarks/train_queue.py --data "$pack" --out "$out" --device "$device" \
        --queue "${DCA_QUEUE:-benchmarks/gpu_queue.json}" --resume "${DCA_RESUME:-$out}" --until $((started + length - 15))
fi
if ((${#failed[@]})); then
    echo "FAILED: ${failed[*]}"
    exit 1
fi
echo "all done in $(($(date +%s) - started)) s; results in $out"
