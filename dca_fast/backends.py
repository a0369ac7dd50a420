"""Which implementations of the integer operations can run here, and why others cannot."""

from __future__ import annotations

import logging
import os
from dataclasses import replace

from dca_fast.entropy.coder import available as coder_available
from dca_fast.entropy.coder import choose_isa
from dca_fast.errors import BackendUnavailableError, ConfigError
from dca_fast.ops import Ops
from dca_fast.tensors import INSTALL, has_torch

log = logging.getLogger(__name__)
ON_CPU = ("native", "reference")


def available() -> dict[str, tuple[bool, str]]:
    """(ok, reason) of every backend, fastest first. Where there is a CUDA device, this may build the CUDA coder."""
    return {name: state() for name, state in _STATES.items()}


def _cuda() -> tuple[bool, str]:
    from dca_fast import kernels

    ok, reason = kernels.is_available()
    if not ok:
        return False, reason
    from dca_fast.entropy import cuda_coder

    coder_ok, coder_reason = cuda_coder.available()
    return coder_ok, f"{reason}; {coder_reason}"


def _native() -> tuple[bool, str]:
    try:
        from dca_fast.ops import native
    except ImportError as error:
        return False, f"the C++ extension is not built: {error}"
    coder_ok, coder_reason = coder_available()
    return coder_ok, f"C++ with {', '.join(native.isas())}; {coder_reason}"


def _reference() -> tuple[bool, str]:
    if not has_torch():
        return False, f"PyTorch is not installed: {INSTALL}"
    return True, "pure PyTorch, the definition"


_STATES = {"cuda": _cuda, "native": _native, "reference": _reference}


def resolve(name: str = "auto", device: str | None = None) -> Ops:
    """The operations of a backend.

    Args:
        name: "auto", "cuda" (Triton and CUDA), "native" (C++) or "reference" (PyTorch). DCA_BACKEND overrides "auto".
        device: "cpu", a CUDA device, or None: that of the backend, the CPU with "auto".

    Raises:
        ConfigError: unknown name, or a backend that does not work on this device.
        BackendUnavailableError: it cannot run here; the message says why.
    """
    kind = None if device is None else str(device).split(":")[0]
    if kind not in (None, "cpu", "cuda"):
        raise BackendUnavailableError(f"device {device!r}: only cpu and cuda are known")
    asked = name
    name = os.environ.get("DCA_BACKEND") or "auto" if name == "auto" else name
    if name == "auto":
        name = "cuda" if kind == "cuda" else next((n for n in ON_CPU if _STATES[n]()[0]), ON_CPU[0])
    if name not in _STATES:
        raise ConfigError(f"unknown backend {name!r}; known: auto, {', '.join(_STATES)}")
    if kind is not None and (kind == "cuda") != (name == "cuda"):
        raise ConfigError(f"backend {name!r} does not run on device {device!r}")
    ok, reason = _STATES[name]()
    if not ok:
        raise BackendUnavailableError(f"backend {name!r} cannot run here: {reason}")
    if asked == "auto":
        log.info("backend %s: %s", name, reason)
        if name == "reference" and not os.environ.get("DCA_BACKEND"):
            log.warning("coding takes many times as long as it could: %s", _STATES["native"]()[1])
    return _load(name)


def _load(name: str) -> Ops:
    if name == "cuda":
        from dca_fast.kernels.ops import OPS

        return replace(OPS, name="cuda")
    if name == "reference":
        from dca_fast.ops import reference

        return reference.OPS
    from dca_fast.ops import native

    wanted = choose_isa("auto", native.isas()[::-1])
    # The best one is asked for as such: where the system refuses it, the next one will do.
    native.set_isa(wanted if os.environ.get("DCA_ISA", "auto") not in ("", "auto") else "auto")
    return native.OPS
