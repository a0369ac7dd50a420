"""PyTorch where it is installed; else a stand-in that skips the test that uses it."""

from __future__ import annotations

from typing import Any

import pytest

torch: Any
try:
    import torch
except ImportError:

    class _Missing:
        def __getattr__(self, name: str) -> Any:
            pytest.skip("PyTorch is not installed")

    torch = _Missing()
