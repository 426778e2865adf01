"""The command line: parses, and calls."""

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg

from eenet_jax.config import ExperimentConfig, find_config
from eenet_jax.errors import InputError

# The libraries behind a verb are imported by its function: `eenet --help` answers at once.

DataDir = Annotated[str, arg(help="Where prepared data sets lie.")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Train a multi-exit network, or continue a run that was cut off.

    Every setting of the config can be changed, e.g. `--training.epochs 20 --seed 1`;
    `eenet train CONFIG --settings` lists them all.
    """

    config: Positional[str]
    """A config file, or the name of one in experiments/configs/."""
    out: Path | None = None
    """The run's folder; runs/NAME by default."""
    data_dir: DataDir = "data"
    settings: bool = False
    """List the config's settings, and stop."""

    def __call__(self, overrides: Sequence[str]) -> None:
        """Run the verb."""
        from eenet_jax.training.loop import train

        shown = ["--help"] if self.settings else list(overrides)
        preset = find_config(self.config)
        config = parse(ExperimentConfig, shown, f"eenet train {self.config}", default=preset)
        train(config, self.out or Path("runs") / config.name, self.data_dir)


VERBS: dict[str, Callable[..., Any]] = {"train": Train}
WITH_OVERRIDES = (Train,)


def parse(
    kind: Callable[..., Any], arguments: Sequence[str], program: str, **options: Any
) -> Any:
    """Parse with tyro; what it finds wrong becomes one line.

    Raises:
      InputError: an unknown option, a missing one, or a value of another type.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, args=list(arguments), prog=program, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(_one_line(complaint.getvalue())) from None


def _one_line(complaint: str) -> str:
    """The words of tyro's boxed message, without the box and its heading."""
    words = [re.sub(r"[─│╭╮╰╯├┤]|--{3,}|\x1b\[[0-9;]*m", " ", line).strip() for line in complaint.splitlines()]
    return " ".join(line for line in words[1:] if line) or " ".join(words)


def main(argv: Sequence[str] | None = None) -> None:
    """Run `eenet VERB …`; bad input ends with one line on stderr and exit status 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        _dispatch(arguments)
    except InputError as error:
        print(f"eenet: {error}", file=sys.stderr)
        sys.exit(2)


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return
    verb, *rest = arguments
    if verb not in VERBS:
        raise InputError(f"unknown verb '{verb}': choose one of {', '.join(VERBS)}")
    kind = VERBS[verb]
    if kind in WITH_OVERRIDES:
        call, unknown = parse(kind, rest, f"eenet {verb}", return_unknown_args=True)
        call(unknown)
    else:
        parse(kind, rest, f"eenet {verb}")()


def _overview() -> str:
    lines = [f"  {verb:<9} {(kind.__doc__ or '').splitlines()[0]}" for verb, kind in VERBS.items()]
    head = "usage: eenet VERB …\n\nMulti-exit networks with a learned, budgeted early-exit scheduler.\n"
    return "\n".join([head, *lines, "", "`eenet VERB --help` tells more."])


if __name__ == "__main__":
    main()
