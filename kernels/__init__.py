"""Triton kernels. A folder of its own in the repository, `dca_fast.kernels` once installed."""

import os

if __name__ != "dca_fast.kernels":
    # Found as a top-level `kernels` by a run in the repository root: a second copy of every module.
    raise ImportError("import this package as 'dca_fast.kernels'")

__all__ = ["is_available"]


def is_available() -> tuple[bool, str]:
    """Say whether Triton kernels can run here.

    Returns:
        Whether Triton is there and a CUDA device, or the interpreter is asked for (TRITON_INTERPRET=1: exact on CPU
        tensors, and very slow); and in words which, or what is missing.
    """
    try:
        import torch
        import triton
    except ImportError as error:
        install = 'pip install "dca-fast[gpu]"'
        return False, f"{error.name or 'a package'} cannot be imported: {error}; {install}"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return True, f"Triton {triton.__version__}, interpreter on the CPU, for tests only"
    if not torch.cuda.is_available():
        return False, "PyTorch sees no CUDA device"
    return True, f"Triton {triton.__version__} on {torch.cuda.get_device_name()}"
