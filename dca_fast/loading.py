"""Training data in .dca files: hooks for WebDataset and PyTorch's DataLoader. docs/guide/bulk.md shows both.

Workers decode with `Handler`, a thread each. Where a GPU decodes, workers pass bytes on, and `decoded` makes tensors of
whole batches in the process that trains.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from inspect import signature
from typing import Any

from dca_fast.codec import Codec
from dca_fast.tensors import need_torch

__all__ = ["Handler", "decoded"]


class Handler:
    """A decoder for WebDataset: `webdataset.WebDataset(shards).decode(Handler("torch"))`.

    It makes its codec in each process at the first picture there, so it goes to workers of every start method.

    Args:
        output: "pil", "numpy" or "torch", as of `Codec.decode`.
        codec: default: one with the shipped weights on the CPU, with the threads of a worker.
        options: `region` or `reduce` of `Codec.decode`: `reduce=8` is a small picture in less time.

    Raises:
        TypeError: an option that `Codec.decode` has not.
    """

    def __init__(self, output: str = "torch", codec: Codec | None = None, **options: Any) -> None:
        signature(Codec.decode).bind(None, b"", output, **options)
        self._output, self._codec, self._options = output, codec, options

    def __call__(self, key: str, data: bytes) -> Any:
        """The picture; None for what is no .dca file by its key, as WebDataset's handlers say it.

        Raises:
            BitstreamError: as `Codec.decode`, from which WebDataset makes an error that names the sample.
        """
        if key.lower().rpartition(".")[2] != "dca":
            return None
        self._codec = self._codec or Codec()
        return self._codec.decode(data, self._output, **self._options)


def decoded(batches: Iterable[Mapping[str, Any]], codec: Codec, key: str = "dca") -> Iterator[dict[str, Any]]:
    """Batches of files to batches of pictures, by `Codec.decode_batch`: on the device of the codec.

    Args:
        batches: dictionaries of lists, as a loader collates them; the files are the list under `key`.
        codec: `Codec(device="cuda")` decodes files of about one size and of one quality together (docs/guide/gpu.md).
        key: of the files, and of the pictures after it.

    Yields:
        The batch with a uint8 tensor [N, C, H, W] in place of its files, or a list of [C, H, W] where sizes differ.

    Raises:
        BitstreamError: as `Codec.decode_batch`.
        BackendUnavailableError: PyTorch is not installed.
    """
    need_torch("`decoded`")
    import torch

    for batch in batches:
        pictures = codec.decode_batch(batch[key], "torch")
        alike = len({tuple(picture.shape) for picture in pictures}) == 1
        yield {**batch, key: torch.stack(pictures) if alike else pictures}
