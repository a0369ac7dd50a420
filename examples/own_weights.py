"""A training's checkpoint to integer weights, and a codec that uses them.

    python examples/own_weights.py CHECKPOINT OUT.safetensors

CHECKPOINT is `checkpoint.pt` of `dca-fast train`, or float weights as `checkpoints/dca-s.safetensors`. Needs PyTorch.
"""

import sys

from dca_fast import Codec, UnknownModelError
from dca_fast.cli import main
from dca_fast.testing import landscape

if len(sys.argv) != 3:
    sys.exit(__doc__)
checkpoint, weights = sys.argv[1:]
if code := main(["export", checkpoint, weights]):  # as `dca-fast export`; add "--data", PHOTOGRAPHS to fit the tables
    sys.exit(code)

own, shipped = Codec(weights=weights), Codec()
data = own.encode(landscape(256, 384), quality=60)
print(f"{own.model_id}: {len(data):,} bytes, {own.decode(data).size}")
try:
    shipped.decode(data)
except UnknownModelError as error:  # a file needs the weights that made it
    print("the shipped weights:", error)
