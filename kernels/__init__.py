"""Triton kernels. A folder of its own in the repository, `dca_fast.kernels` once installed."""

if __name__ != "dca_fast.kernels":
    # Found as a top-level `kernels` by a run in the repository root: a second copy of every module.
    raise ImportError("import this package as 'dca_fast.kernels'")

__all__ = ["is_available"]


def is_available() -> tuple[bool, str]:
    """Say whether Triton kernels can run here.

    Returns:
        Whether Triton and a CUDA device are there, and in words which, or what is missing.
    """
    try:
        import torch
        import triton
    except ImportError as error:
        return False, f"{error.name or 'a package'} cannot be imported: {error}"
    if not torch.cuda.is_available():
        return False, "PyTorch sees no CUDA device"
    return True, f"Triton {triton.__version__} on {torch.cuda.get_device_name()}"
