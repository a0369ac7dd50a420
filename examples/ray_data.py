"""Folders or buckets of pictures to .dca files, or back, by Ray Data: one codec in each actor.

    python examples/ray_data.py encode PICTURES ARCHIVE [ACTORS [CPUS]]
    python examples/ray_data.py decode ARCHIVE PICTURES [ACTORS [CPUS]]

Both are paths or what pyarrow has file systems for, such as s3://bucket/pictures.
"""

import sys
from pathlib import Path

import ray
from ray.data import ActorPoolStrategy, read_binary_files

from dca_fast.bulk import Decoder, Encoder

if len(sys.argv) not in (4, 5, 6) or sys.argv[1] not in ("encode", "decode"):
    sys.exit(__doc__)
source, out = (path if "://" in path else str(Path(path).resolve()) for path in sys.argv[2:4])
actors, cpus = map(int, [*sys.argv[4:], "2", "1"][:2])

ray.init(log_to_driver=False, include_dashboard=False)
rows = read_binary_files(source, include_paths=True).map_batches(
    Encoder if sys.argv[1] == "encode" else Decoder,
    fn_constructor_kwargs={"out": out, "root": source},  # and quality=..., effort=..., codec={"device": "cuda"}
    compute=ActorPoolStrategy(min_size=1, max_size=actors),  # size=actors waits for ever if reading is left no CPU
    num_cpus=cpus,  # threads of each codec
    batch_size=16,  # files that are read before one of them is coded
)
failed = 0
for row in rows.iter_rows():
    print(f"{row['path']}: {row['error'] or row['output']}", flush=True)
    failed += bool(row["error"])
sys.exit(1 if failed else 0)
