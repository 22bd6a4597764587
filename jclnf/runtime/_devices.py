"""The device that JAX computes on, and whether there is a JAX at all."""

import os
import platform
import sys
from collections.abc import Mapping
from typing import Any

from jclnf.errors import JclnfError, ParamsError
from jclnf.runtime._process import silent_stderr

SHARE = 0.75
"""The part of a GPU's memory that JAX takes, unless it is told otherwise."""
_FRACTION, _PREALLOCATE = "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE"


def check_jax() -> None:
    """Import JAX.

    Raises:
        JclnfError: it cannot be imported here; the message says where it can.
    """
    try:
        import jax  # noqa: F401
    # Of versions that do not go together, and of old processors, jaxlib tells by a RuntimeError.
    except Exception as error:
        if sys.platform == "darwin" and platform.machine() == "x86_64":
            raise JclnfError(
                "JAX cannot be loaded: it is not made for Macs with Intel processors any more. On "
                "a Mac with an Apple processor use a Python made for it (arm64); otherwise use "
                "Linux (a container on this Mac will do) or Windows"
            ) from None
        why = (str(error).splitlines() or [repr(error)])[0]
        raise JclnfError(
            f"JAX cannot be loaded ({why}): install it anew with `pip install --force-reinstall "
            "jax jaxlib`; it is made for Linux (x86-64 with AVX, ARM), Macs with Apple processors "
            "and Windows (x86-64)"
        ) from None


def use_device(choice: str, *, check: bool = True) -> None:
    """Have JAX compute on a device; call it before the first computation.

    Args:
        choice: `cpu`, `gpu`, or the number of a GPU, which is then the only one that JAX sees.
        check: start JAX, to see whether there is such a device.

    Raises:
        ParamsError: there is none.
    """
    import jax

    if choice == "cpu":
        jax.config.update("jax_platforms", "cpu")
        return
    if choice != "gpu":
        if not (choice.isascii() and choice.isdecimal()):
            raise ParamsError(f"a device is cpu, gpu or the number of a GPU, not {choice!r}")
        for maker in ("cuda", "rocm"):
            jax.config.update(f"jax_{maker}_visible_devices", choice)
    jax.config.update("jax_platforms", None)  # whatever the environment says
    if not check:
        return
    try:
        with silent_stderr():  # where JAX tells at length what it has tried
            jax.devices("gpu")
    except RuntimeError as error:
        which = "no GPU" if choice == "gpu" else f"no GPU of the number {choice}"
        raise ParamsError(
            f"JAX finds {which} here ({str(error).splitlines()[0]}): install JAX for your GPU, as "
            "with `pip install 'jax[cuda13]'`, or compute on the cpu"
        ) from None


def share_device(count: int, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of each of several processes that share a GPU: what they need of its memory
    as they need it, and no more than their part of what one process would take.

    It must be set before JAX starts in them.

    Args:
        count: of the processes.
        environment: where people may have said how much one process would take.
    """
    try:
        share = float(environment.get(_FRACTION, SHARE))
    except ValueError:
        share = SHARE
    return {_PREALLOCATE: "false", _FRACTION: f"{share / count:.4g}"}


def device_report() -> dict[str, Any]:
    """What JAX computes on here, for metadata.

    Returns:
        platform: `cpu`, `gpu` or `tpu`.
        name: of the kind of device.
        number: of the GPU.
        memory_share: the part of a GPU's memory that this process may take; None of others.
    """
    import jax

    device = jax.devices()[0]
    gpu = device.platform == "gpu"
    number = getattr(device, "local_hardware_id", None)
    return {
        "platform": device.platform,
        "name": device.device_kind,
        "number": device.id if number is None else number,
        "memory_share": float(os.environ.get(_FRACTION, SHARE)) if gpu else None,
    }
