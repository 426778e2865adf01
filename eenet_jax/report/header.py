"""What was run: settings, command, device and time, without this machine's paths."""

import shlex
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from eenet_jax.report.sources import Fit, Sources, TrainingRun
from eenet_jax.report.tables import Table


def subject(sources: Sources) -> str:
    """Data set and network in a few words, for titles."""
    run = sources.main_run()
    parts = [run.network, run.dataset] if run else []
    return " on ".join(part for part in parts if part) or sources.fits[0].folder.name


def header_table(sources: Sources) -> Table:
    """Every training run and fit with its settings, command, device and time.

    Of later training runs, only that in which they differ from the first.
    """
    runs = [(f"training: {run.folder.name}", _run_values(run)) for run in sources.runs]
    first = runs[0][1] if runs else {}
    names = [fit.folder.name for fit in sources.fits]
    rows = [row for name, values in runs[:1] for row in _named(name, values)]
    for name, values in runs[1:]:
        rows += _named(name, {k: v for k, v in values.items() if v != first[k]})
    for fit, name in zip(sources.fits, names, strict=True):
        # Fits inside their training runs' folders often have one name.
        full = f"{fit.folder.parent.name}/{name}" if names.count(name) > 1 else name
        rows += _named(f"fit: {full}", _fit_values(fit))
    return Table(
        title="What was run",
        header=("", "setting", "value"),
        rows=tuple(_blank_repeats(rows)),
        numeric=False,
    )


def _blank_repeats(rows: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    previous = [""] + [row[0] for row in rows]
    return [
        ("" if row[0] == before else row[0], row[1], row[2])
        for row, before in zip(rows, previous, strict=False)
    ]


def _run_values(run: TrainingRun) -> dict[str, Any]:
    return {
        "name": run.config.get("name"),
        "data set": run.dataset,
        "network": run.network,
        "seed": run.config.get("seed"),
        "data": settings_text(run.config.get("data"), skip=("dataset",)),
        "network settings": settings_text(
            (run.config.get("network") or {}).get("overrides")
            if isinstance(run.config.get("network"), Mapping)
            else None
        ),
        "training": settings_text(run.config.get("training")),
        "command": command_text(run.times.get("command")),
        "device": run.times.get("device"),
        "training time": _duration(run.times.get("train_seconds")),
    }


def _fit_values(fit: Fit) -> dict[str, Any]:
    return {
        "seed": fit.settings.get("seed"),
        "command": command_text(fit.settings.get("command")),
        "device": fit.settings.get("device"),
        "fitting time": _duration(fit.settings.get("seconds")),
    }


def _named(name: str, values: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    kept = {key: value for key, value in values.items() if value not in (None, "")}
    return [(name, key, str(value).replace("|", "\\|")) for key, value in kept.items()]


def settings_text(section: Any, skip: tuple[str, ...] = ()) -> str:
    """`name = value` pairs of a section of the config; paths and what is not set left out."""
    if not isinstance(section, Mapping):
        return ""
    kept = {k: v for k, v in section.items() if k not in skip and v not in (None, "", [])}
    return ", ".join(f"{key} = {value}" for key, value in kept.items() if not _is_path(value))


def command_text(command: Any) -> str:
    """A command with absolute paths cut to their last part: they mean nothing elsewhere."""
    if not command:
        return ""
    try:
        words = shlex.split(command) if isinstance(command, str) else [str(w) for w in command]
    except ValueError:
        words = str(command).split()
    return f"`{shlex.join(_cut(word) for word in words)}`"


def _cut(word: str) -> str:
    option, equals, value = word.rpartition("=")
    return f"{option}{equals}{PurePath(value).name}" if _is_path(value) else word


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and PurePath(value).is_absolute()


def _duration(seconds: Any) -> str:
    if not isinstance(seconds, int | float):
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
