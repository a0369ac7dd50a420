"""Which implementations of the integer operations can run here, and why others cannot."""

from __future__ import annotations

import logging
import os

from dca_fast.entropy.coder import available as coder_available
from dca_fast.entropy.coder import choose_isa
from dca_fast.errors import BackendUnavailableError, ConfigError
from dca_fast.ops import Ops

log = logging.getLogger(__name__)
PREFERENCE = ("native", "reference")


def available() -> dict[str, tuple[bool, str]]:
    """(ok, reason) of every backend, fastest first."""
    return {"native": _native(), "reference": (True, "pure PyTorch, the definition")}


def _native() -> tuple[bool, str]:
    try:
        from dca_fast.ops import native
    except ImportError as error:
        return False, f"the C++ extension is not built: {error}"
    coder_ok, coder_reason = coder_available()
    return coder_ok, f"C++ with {', '.join(native.isas())}; {coder_reason}"


def resolve(name: str = "auto") -> Ops:
    """The operations of a backend.

    Args:
        name: "auto", "native" (C++) or "reference" (PyTorch). DCA_BACKEND overrides "auto".

    Raises:
        ConfigError: unknown name.
        BackendUnavailableError: it cannot run here; the message says why.
    """
    name = os.environ.get("DCA_BACKEND") or "auto" if name == "auto" else name
    states = available()
    if name == "auto":
        name = next(n for n in PREFERENCE if states[n][0])
        log.info("backend %s: %s", name, states[name][1])
    if name not in states:
        raise ConfigError(f"unknown backend {name!r}; known: auto, {', '.join(states)}")
    ok, reason = states[name]
    if not ok:
        raise BackendUnavailableError(f"backend {name!r} cannot run here: {reason}")
    if name == "reference":
        from dca_fast.ops import reference

        return reference.OPS
    from dca_fast.ops import native

    native.set_isa(choose_isa("auto", native.isas()[::-1]))
    return native.OPS
