"""Tensors on a GPU to bytes and back, without a copy to the host between.

    python examples/cuda_tensors.py

Says in one line what is missing where this cannot run.
"""

import sys

from dca_fast import BackendUnavailableError, Codec
from dca_fast.testing import landscape

try:
    codec = Codec(device="cuda")
except BackendUnavailableError as error:
    sys.exit(f"no GPU: {error}")

import torch

picture = torch.from_numpy(landscape(512, 768)).permute(2, 0, 1).contiguous().cuda()  # uint8 [3, H, W]
codec.warm_up(512, 768)  # compiles and records; else the first two pictures of this size are slow
data = codec.encode(picture, quality=60)
decoded = codec.decode(data, output="torch")
print(f"{len(data):,} bytes, decoded on {decoded.device}")

on_cpu = Codec(device="cpu")
print("the CPU writes the same bytes:", on_cpu.encode(landscape(512, 768), quality=60) == data)
print("the CPU reads the same pixels:", torch.equal(on_cpu.decode(data, output="torch"), decoded.cpu()))
