"""PyTorch tensors in and out of a codec. Only here, and on a CUDA device, does a codec of the CPU know of PyTorch.

What is copied is copied by NumPy: threads of PyTorch's own do not survive a fork.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dca_fast.errors import BackendUnavailableError, InputError

if TYPE_CHECKING:
    from torch import Tensor

INSTALL = 'pip install "dca-fast[torch]"'


def has_torch() -> bool:
    """Whether PyTorch is installed; it is not imported for it."""
    try:
        return find_spec("torch") is not None
    except ValueError:  # hidden on purpose
        return False


def need_torch(what: str) -> Any:
    """The module `torch`.

    Raises:
        BackendUnavailableError: it is not installed; `what` needs it.
    """
    try:
        import torch
    except ImportError as error:
        raise BackendUnavailableError(f"{what} needs PyTorch: {INSTALL} ({error})") from error
    return torch


def is_tensor(value: object) -> bool:
    """Whether it is a tensor; PyTorch is not imported for it."""
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def pixels_of(image: Any) -> Any:
    """A tensor uint8 [C, H, W] as [H, W, C] on its device; C is 1, 3 or 4.

    Raises:
        InputError: another shape or type, no data, or a layout without strides.
    """
    torch: Any = sys.modules["torch"]
    if image.layout != torch.strided or image.is_meta or image.is_quantized:
        raise InputError(f"a tensor must be dense and hold data, got {image.layout} on {image.device}")
    if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] not in (1, 3, 4):
        shape = list(image.shape)
        raise InputError(f"a tensor must be uint8 [C, H, W] of 1, 3 or 4 channels, got {image.dtype} {shape}")
    return image.detach().permute(1, 2, 0)


def planes_of(pixels: Any, alpha: npt.NDArray[np.uint8] | None) -> Tensor:
    """A tensor uint8 [H, W, 3], and alpha [H, W] if there is any, as [3 or 4, H, W] on its device."""
    torch: Any = sys.modules["torch"]
    if alpha is not None:
        pixels = torch.cat((pixels, tensor_of(alpha).to(pixels.device)[:, :, None]), 2)
    planes: Tensor = pixels.permute(2, 0, 1).contiguous()
    return planes


class _Shared:
    """An array as NumPy sees it when it is told that it may write to it."""

    def __init__(self, array: npt.NDArray[np.uint8]) -> None:
        self._array = array
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


def tensor_of(array: npt.NDArray[np.uint8]) -> Tensor:
    """The same memory if contiguous. PyTorch has no read-only tensors and warns; nothing writes to this one."""
    torch: Any = sys.modules["torch"]
    array = np.ascontiguousarray(array).ravel().reshape(array.shape)  # sides of one pixel may keep negative strides
    tensor: Tensor = torch.from_numpy(array if array.flags.writeable else np.asarray(_Shared(array)))
    return tensor
