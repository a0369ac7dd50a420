"""dca-fast: an exact neural image codec. `from dca_fast import Codec` is all most programs need."""

import pkgutil
from typing import TYPE_CHECKING, Any

from dca_fast.errors import (
    BackendUnavailableError,
    BitstreamError,
    ConfigError,
    CorruptStreamError,
    DcaError,
    DeviceMemoryError,
    InputError,
    InputWarning,
    LimitExceededError,
    NotADcaFileError,
    OutOfMemoryError,
    TrainingError,
    TruncatedStreamError,
    UnknownModelError,
    UnsupportedVersionError,
    WeightsError,
)

if TYPE_CHECKING:
    from dca_fast.codec import Codec
    from dca_fast.files.container import inspect

    _cpu: Any  # built or mapped at install time
    _exact: Any
    _rans: Any
    kernels: Any

# Lets a run in the repository root find the kernels and extensions of an ordinary `pip install .`.
__path__ = pkgutil.extend_path(__path__, __name__)

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "BitstreamError",
    "Codec",
    "ConfigError",
    "CorruptStreamError",
    "DcaError",
    "DeviceMemoryError",
    "InputError",
    "InputWarning",
    "LimitExceededError",
    "NotADcaFileError",
    "OutOfMemoryError",
    "TrainingError",
    "TruncatedStreamError",
    "UnknownModelError",
    "UnsupportedVersionError",
    "WeightsError",
    "__version__",
    "inspect",
]

if not TYPE_CHECKING:  # which would take any name for granted

    def __getattr__(name: str) -> object:
        """Load `Codec` and `inspect` on first use, so that importing stays cheap."""
        if name == "Codec":
            from dca_fast.codec import Codec

            return Codec
        if name == "inspect":
            from dca_fast.files.container import inspect

            return inspect
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
