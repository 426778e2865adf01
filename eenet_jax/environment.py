"""Where a number was measured: command, device, versions."""

import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import jax


def environment() -> dict[str, Any]:
    """What a measured number depends on: command (where there is one), device, host, versions."""
    device = jax.devices()[0]
    return {
        "command": _command(),
        "device": device_name(),
        "platform": device.platform,
        "host": f"{platform.machine()}, {cores()} cores",
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def _command() -> str:
    """The command line that was typed; empty in a notebook or another program."""
    if Path(sys.argv[0]).name not in ("eenet", "cli.py"):
        return ""
    return shlex.join(["eenet", *sys.argv[1:]])


def device_name() -> str:
    """The accelerator's name, or the processor's."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{len(jax.devices())} x {device.device_kind}"
    return f"{_processor()}, {cores()} cores"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    return _named(info.read_text() if info.exists() else "") or (
        platform.processor() or platform.machine()
    )


def _named(cpuinfo: str) -> str:
    """The first processor's name; a hypervisor may cut it to a brand, of which it says no more."""
    first = cpuinfo.split("\n\n")[0].splitlines()
    pairs = (line.partition(":") for line in first)
    fields = {name.strip(): value.strip() for name, _, value in pairs}
    name = fields.get("model name", "")
    numbered = any(letter.isdigit() for letter in name)
    if not name or numbered or not {"cpu family", "model"} <= set(fields):
        return name
    # A generation, at least: of one brand the newest may be twice as fast as the one before.
    return f"{name} (family {fields['cpu family']}, model {fields['model']})"


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
