"""The demonstration: every step on the embedded digits, from images to a report."""

from pathlib import Path

from rich.console import Console

from eenet_jax.config import find_config
from eenet_jax.costs import write_costs
from eenet_jax.execution.adaptive import print_measurements, run_adaptive
from eenet_jax.frontier import fit_frontier
from eenet_jax.predictions import predict
from eenet_jax.report.report import print_table, write_report
from eenet_jax.training.loop import train

POLICIES = ("eenet", "eenet_paper", "max_prob", "entropy", "patience", "vote")


def run_demo(out: str | Path) -> Path:
    """Train on digits, fit every policy at five budgets, measure, and write the report.

    Args:
      out: Folder to write into; a run that was cut off there is continued.

    Returns:
      The path of report.md.
    """
    out, console = Path(out), Console()
    config = find_config("digits_cnn")
    console.rule("1/5 train a network with three exits")
    train(config, out)
    console.rule("2/5 predictions and costs of every exit")
    validation, test = predict(out)
    tables = dict(write_costs(out, latency=True))
    full = tables[out / "costs.json"].costs[-1]
    console.rule("3/5 fit policies for five budgets")
    budgets = [f"{share * full:.4g}" for share in config.budgets]
    fit_frontier(validation, test, out / "costs.json", budgets, POLICIES, config.seed, out)
    print_table([out])
    console.rule("4/5 adaptive inference, measured")
    print_measurements(run_adaptive(out, batch_size=360))
    console.rule("5/5 report")
    written = write_report([out], out)
    console.print(f"wrote {written}, its figures in {written.parent / 'figures'}")
    return written
