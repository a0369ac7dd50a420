"""How near a decoded picture is to its original, by PSNR and MS-SSIM; `dca_fast.ssimulacra2` has the third measure."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from dca_fast.errors import BackendUnavailableError

__all__ = ["MS_SSIM_SIDE", "Pixels", "ms_ssim", "need", "psnr"]

MS_SSIM_SIDE = 161  # five scales under a window of 11 need more than 160 pixels a side
Pixels = npt.NDArray[np.uint8]


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio of 8-bit images in dB; infinite for equal ones."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


def ms_ssim(a: Pixels, b: Pixels) -> float | None:
    """Multi-scale structural similarity of 8-bit RGB images, 0..1; None below 161 pixels a side.

    Raises:
        BackendUnavailableError: its packages are missing.
    """
    if min(a.shape[:2]) < MS_SSIM_SIDE:
        return None
    torch = need("torch")
    x, y = (torch.from_numpy(v.copy()).permute(2, 0, 1)[None].float() for v in (a, b))
    return float(need("pytorch_msssim").ms_ssim(x, y, data_range=255))


def need(module: str) -> Any:
    """Import what only a measurement needs.

    Raises:
        BackendUnavailableError: it is not installed; the message says how to get it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise BackendUnavailableError(f"evaluation needs `pip install 'dca-fast[eval]'`: {error}") from error
