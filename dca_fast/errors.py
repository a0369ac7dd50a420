"""Every exception and warning this package raises on purpose.

DcaError
|-- ConfigError (ValueError)              an argument or preset that makes no sense
|-- InputError (ValueError)               an image of the wrong shape, type or size
|-- WeightsError                          a weight file that is missing, damaged or does not fit
|-- TrainingError                         a training that went astray
|-- BackendUnavailableError (RuntimeError)  what was asked for cannot run here, and why
|-- OutOfMemoryError (MemoryError)        too little memory for this image
|   `-- DeviceMemoryError                 the device has too little of its own
`-- BitstreamError (ValueError)           bytes that cannot be decoded exactly
    |-- NotADcaFileError                  the first bytes are not those of a .dca file
    |-- UnsupportedVersionError           a newer format, or flags this version does not know
    |-- UnknownModelError                 no weights with the model id of the file
    |-- TruncatedStreamError              the file ends too early
    |-- CorruptStreamError                bytes were changed, or decode to something impossible
    `-- LimitExceededError                more pixels or bytes than the caller allows
InputWarning (UserWarning)                a lossy step taken while reading an image
"""

__all__ = [
    "BackendUnavailableError",
    "BitstreamError",
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
]


class DcaError(Exception):
    """Root of all errors of this package."""


class ConfigError(DcaError, ValueError):
    """An argument, option or preset is invalid."""


class InputError(DcaError, ValueError):
    """An image has the wrong shape, type or size, or cannot be read."""


class WeightsError(DcaError):
    """A weight file is missing, damaged or does not fit the model."""


class TrainingError(DcaError):
    """A training's loss rose so far that going on would waste its time."""


class BackendUnavailableError(DcaError, RuntimeError):
    """The requested backend cannot run on this machine; the message says why."""


class OutOfMemoryError(DcaError, MemoryError):
    """There is too little memory for this image."""


class DeviceMemoryError(OutOfMemoryError):
    """The device has too little memory for this image, even strip by strip."""


class BitstreamError(DcaError, ValueError):
    """Bytes that cannot be decoded exactly."""


class NotADcaFileError(BitstreamError):
    """The data does not start like a .dca file."""


class UnsupportedVersionError(BitstreamError):
    """The file needs a newer version of this package."""


class UnknownModelError(BitstreamError):
    """No available weights have the model id named in the file."""


class TruncatedStreamError(BitstreamError):
    """The data ends before the file does."""


class CorruptStreamError(BitstreamError):
    """The data was changed after encoding, or never came from an encoder."""


class LimitExceededError(BitstreamError):
    """The data asks for more pixels or bytes than the limit allows."""


class InputWarning(UserWarning):
    """Information was dropped while an image was read (bit depth, further frames)."""
