"""Pictures to a tar shard of .dca files, and from there to batches of a training.

    python examples/webdataset_shards.py PICTURES SHARD.tar

With a GPU, batches are decoded there; else by the loader's workers.
"""

import sys
from pathlib import Path

import torch
import webdataset

from dca_fast import Codec
from dca_fast.bulk import encode_items
from dca_fast.loading import Handler, decoded

if len(sys.argv) != 3:
    sys.exit(__doc__)
pictures, shard = map(Path, sys.argv[1:])
items = ((path.name, path.read_bytes()) for path in sorted(pictures.iterdir()) if path.is_file())
with webdataset.TarWriter(str(shard)) as tar:
    for number, (name, data) in enumerate(encode_items(items, quality=70)):
        if isinstance(data, Exception):
            print(f"{name}: left out: {data}")
        else:
            tar.write({"__key__": f"{number:06d}", "dca": data, "txt": name})

samples = webdataset.WebDataset(str(shard), shardshuffle=False)
together = {"batch_size": 4, "collate_fn": lambda some: {key: [sample[key] for sample in some] for key in some[0]}}
if torch.cuda.is_available():
    loader = torch.utils.data.DataLoader(samples, num_workers=1, **together)
    batches = decoded(loader, Codec(device="cuda"))
else:
    batches = torch.utils.data.DataLoader(samples.decode(Handler("torch")), num_workers=1, **together)
for batch in batches:
    for name, picture in zip(batch["txt"], batch["dca"], strict=True):
        name = name if isinstance(name, str) else name.decode()
        print(f"{name}: {tuple(picture.shape)} {picture.dtype} on {picture.device}")
