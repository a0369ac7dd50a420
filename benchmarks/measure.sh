#!/usr/bin/env bash
# Speed, rate and distortion, robustness: into benchmarks/results/dca-s, then the tables of the documents. Leave the machine alone meanwhile.
#
#   benchmarks/measure.sh PHOTOGRAPHS VALIDATION ANCHORS [PART ...]
#
# PHOTOGRAPHS and VALIDATION are folders of images, ANCHORS a file of published curves (docs/guide/evaluating.md). Parts:
# speed scaling bench profile coder kodak refined plain valid integer conformance hostile soak effort adaptive
# tables (default: all, in this order).
# PEER_CACHE names a folder that keeps what the peers did, PYTHON the interpreter, WEIGHTS a float model for
# `integer` (default: checkpoints/dca-s.safetensors).
set -euo pipefail
if (($# < 3)); then
    sed -n '2,11s/^# \?//p' "$0" >&2
    exit 2
fi
photographs=$(realpath "$1") validation=$(realpath "$2") anchors=$(realpath "$3")
shift 3
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3} out=benchmarks/results/dca-s cache=${PEER_CACHE:-.benchmarks/peers}
# 99: the best of the network. Quality 100 is the exact-colour coder's, far from it (docs/guide/encoding.md).
tens=0,10,20,30,40,50,60,70,80,90,99
export DCA_IMAGES=$photographs OMP_WAIT_POLICY=PASSIVE
mkdir -p "$out" "$cache"
first=$(find "$photographs" -maxdepth 1 -name '*.png' | sort | head -1)
if [[ -z $first ]]; then
    echo "no .png in $photographs" >&2
    exit 2
fi

evaluate() { # NAME FOLDER QUALITIES ...
    "$python" -m dca_fast eval "$2" --qualities "$3" --peers jpeg,webp,avif,jxl --peer-cache "$cache" --threads 1 \
        --force --json "$out/$1.json" "${@:4}"
}
speed() { "$python" benchmarks/test_bench_codec.py --out "$out/speed.json"; }
scaling() { "$python" benchmarks/test_bench_scaling.py --out "$out/scaling.json"; }
bench() {
    "$python" -m pytest benchmarks/test_bench_stages.py --benchmark-only -q --benchmark-json "$out/bench.json"
}
profile() { # without the places of files on this machine
    (cd "$photographs" && "$python" -m dca_fast.profile --image "${first##*/}" --force --json "$OLDPWD/$out/profile.json")
    "$python" - "$out/profile.json" <<'END'
import json, pathlib, sys
path = pathlib.Path(sys.argv[1])
facts = json.loads(path.read_text())
del facts["loaded"]
path.write_text(json.dumps(facts, indent=1) + "\n")
END
}
coder() {
    find "$photographs" -maxdepth 1 -name '*.png' | sort | awk 'NR % 8 == 1' |
        xargs "$python" benchmarks/test_bench_rans.py --out "$out/coder.json"
}
on_kodak() { # NAME ...
    evaluate "$1" "$photographs" 0,5,10,20,30,40,50,60,70,80,90,99 --anchors "$anchors" --anchor-set kodak "${@:2}"
}
kodak() { on_kodak kodak; }
refined() { # a quarter of an hour
    for level in 0 6; do OMP_NUM_THREADS=1 on_kodak "kodak_effort$level" --effort "$level"; done
}
plain() { OMP_NUM_THREADS=1 on_kodak kodak_aq0 --aq-strength 0; }
valid() { evaluate valid "$validation" "$tens"; }
integer() {
    "$python" benchmarks/measure/integer_loss.py "${WEIGHTS:-checkpoints/dca-s.safetensors}" "$photographs" \
        --out "$out/integer_loss.json"
}
conformance() { "$python" benchmarks/measure/conformance.py "$photographs" --out "$out/conformance.json"; }
hostile() { # an hour
    "$python" benchmarks/measure/hostile.py tests/golden tests/conformance --executions 1000000 --out "$out/hostile.json"
}
soak() { "$python" benchmarks/measure/soak.py --minutes 60 --out "$out/soak.json"; }
effort() { # takes half an hour: rows of the same weights are kept
    OMP_NUM_THREADS=1 "$python" benchmarks/measure/effort.py "$validation" --out "$out/effort.json"
}
adaptive() { OMP_NUM_THREADS=1 "$python" benchmarks/measure/adaptive.py "$validation" --out "$out/adaptive.json"; }
tables() { "$python" benchmarks/tables.py; }

parts=("$@")
if ((${#parts[@]} == 0)); then
    parts=(speed scaling bench profile coder kodak refined plain valid integer conformance)
    parts+=(hostile soak effort adaptive tables)
fi
for part in "${parts[@]}"; do
    SECONDS=0
    "$part"
    echo "== $part: $SECONDS s" >&2
done
