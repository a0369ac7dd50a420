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
            # Whoever looks at all names of a module, as pytest does, is no test: it must not be skipped with all in it.
            if name.startswith(("pytest", "_")) and name != "__version__":
                raise AttributeError(name)
            pytest.skip("PyTorch is not installed")

    torch = _Missing()
