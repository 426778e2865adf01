"""Time, memory and quality of the scheduler's solver, beside a plain loop of the published one.

Command (the loop needs the torch extra; without it, its figures are left out):
    python experiments/benchmarks/solver.py [small] [cifar100] [imagenet] [--write FILE.md]

Predictions are drawn from `exits_of_an_imaginary_network`: a sample has a difficulty, an exit a
skill; logits are the true class's lead plus noise, of which the exits of a sample share half.
Sizes: small (N 5,000, K 4, C 10), cifar100 (N 5,000, K 4, C 100), imagenet (N 50,000, K 5,
C 1,000), each with 20 budgets. `eenet` is timed in a process of its own, compilation included.
The loop is the published algorithm in PyTorch (`published_loop.py`): one fit of 1,000 epochs is
timed; its protocol is 20 budgets of 10 restarts.
Quality is accuracy on as many fresh samples, less what `max_prob` has at the same cost.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

import eenet_jax
from eenet_jax.environment import environment
from eenet_jax.policies.eenet_paper import EENetPaperSettings, fit_eenet_paper
from eenet_jax.policies.problem import Problem, geometric_family, measure_scores
from eenet_jax.report.report import update_readme
from eenet_jax.report.tables import Table
from eenet_jax.scheduler.simulation import first_exit
from eenet_jax.types import CostTable, ExitPredictions

SIZES = {"small": (5000, 4, 10), "cifar100": (5000, 4, 100), "imagenet": (50_000, 5, 1000)}
BUDGETS = 20
RESTARTS = 10
EPOCHS = 1000


def exits_of_an_imaginary_network(
    samples: int, exits: int, classes: int, seed: int
) -> ExitPredictions:
    """Predictions whose deeper exits are better, with answers that exits share.

    Args:
      samples: N.
      exits: K.
      classes: C.
      seed: Of the draw.
    """
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, samples)
    difficulty = random.normal(size=samples).astype(np.float32)
    shared = random.standard_normal((samples, classes), np.float32)
    probs = np.empty((exits, samples, classes), np.float32)
    for k, skill in enumerate(np.linspace(2.0, 4.0, exits)):
        logits = 0.7 * (shared + random.standard_normal((samples, classes), np.float32))
        logits[np.arange(samples), labels] += skill - difficulty
        logits *= 1.5
        np.exp(logits - logits.max(1, keepdims=True), out=probs[k])
        probs[k] /= probs[k].sum(1, keepdims=True)
    return ExitPredictions(probs=probs, labels=labels)


def problem_of(size: str, seed: int = 0) -> Problem:
    samples, exits, classes = SIZES[size]
    costs = tuple(2.0**k for k in range(exits))
    budgets = np.linspace(costs[0], costs[-1], BUDGETS + 2)[1:-1]
    return Problem(
        predictions=exits_of_an_imaginary_network(samples, exits, classes, seed),
        costs=CostTable(costs=costs),
        budgets=tuple(budgets.tolist()),
    )


def time_eenet(size: str) -> dict:
    """Seconds of the whole fit, compilation included, and the process's peak memory."""
    problem = problem_of(size)
    before = memory_gb_from_here()
    started = time.perf_counter()
    policies = eenet_jax.fit(problem.predictions, problem.costs, problem.budgets)
    seconds = time.perf_counter() - started
    peak = _status_gb("VmHWM")
    again = time.perf_counter()
    eenet_jax.fit(problem.predictions, problem.costs, problem.budgets)
    return {
        "seconds": seconds,
        "seconds_compiled": time.perf_counter() - again,
        "peak_gb": peak,
        "gb_before": before,
        "lead_points": lead(size, problem, policies),
    }


def memory_gb_from_here() -> float:
    """Memory of this process in 10^9 bytes, from where its peak counts from now on; Linux alone."""
    # What drawing the predictions took is not the fit's.
    Path("/proc/self/clear_refs").write_text("5")
    return _status_gb("VmRSS")


def _status_gb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(kilobytes) * 1024 / 1e9


def lead(size: str, problem: Problem, policies: list) -> float:
    """Mean lead over `max_prob` at the same cost on fresh samples, every fourth budget, points."""
    fresh = problem_of(size, seed=1)
    costs = np.asarray(problem.costs.costs)
    scores = measure_scores(fresh, "max")
    family = geometric_family(problem, measure_scores(problem, "max"))
    exits = [np.asarray(first_exit(scores, row)) for row in family.thresholds[::16]]
    known = sorted((costs[each].mean(), accuracy(fresh, each)) for each in exits)
    gaps = []
    for policy in policies[::4]:
        where = policy.decide(fresh.predictions.probs)
        theirs = np.interp(costs[where].mean(), *zip(*known, strict=True))
        gaps.append(accuracy(fresh, where) - theirs)
    return float(100 * np.mean(gaps))


def accuracy(problem: Problem, exits: np.ndarray) -> float:
    return float(problem.correct[exits, np.arange(exits.size)].mean())


def in_a_process_of_its_own(size: str) -> dict:
    done = subprocess.run(
        [sys.executable, __file__, "--only", size], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def time_paper(restarts: int) -> float:
    """Seconds of `eenet_paper`'s own fit of the small size, its own defaults but the restarts."""
    problem = problem_of("small")
    started = time.perf_counter()
    fit_eenet_paper(problem, EENetPaperSettings(restarts=restarts), seed=0)
    return time.perf_counter() - started


def torch_figures(epochs: int) -> dict:
    try:
        import published_loop
    except ImportError:
        print("without PyTorch: the published loop was not timed")
        return {}
    problem = problem_of("small")
    middle = problem.budgets[len(problem.budgets) // 2]
    started = time.perf_counter()
    _, stopped = published_loop.fit(problem, middle, epochs)
    seconds = (time.perf_counter() - started) * EPOCHS / epochs
    print(
        f"published loop, one fit of {EPOCHS} epochs: {seconds:.1f} s ({epochs} timed; its stop"
        f" would have ended it after {stopped})"
    )
    return {"torch_epochs": epochs, "torch_stopped": stopped, "seconds_torch_fit": seconds}


def speed_table(figures: dict, sizes: list[str]) -> Table:
    """What was measured, for the documentation."""
    rows = []
    for size in sizes:
        samples, exits, classes = SIZES[size]
        rows.append(
            (
                f"`eenet`, {size}: N {samples:,}, K {exits}, C {classes:,}",
                f"{figures[f'seconds_{size}']:.1f}",
                f"{figures[f'seconds_compiled_{size}']:.1f}",
                f"{figures[f'peak_gb_{size}']:.2f} ({figures[f'gb_before_{size}']:.2f})",
                f"{figures[f'lead_points_{size}']:+.2f}",
            )
        )
    if "seconds_paper_small" in figures:
        cells = (f"{figures['seconds_paper_small']:.1f}", "", "", "")
        rows.append((f"`eenet_paper`, small, {RESTARTS} restarts a budget", *cells))
    note = f"Device: {figures['device']}. {BUDGETS} budgets each."
    if "seconds_torch_fit" in figures:
        cells = (f"{figures['seconds_torch_fit']:.1f}", "", "", "")
        rows.append(
            ("published algorithm as a PyTorch loop, small, one fit of 1,000 epochs", *cells)
        )
        note += (
            f" The published protocol is {BUDGETS} x {RESTARTS} such fits: `eenet` is"
            f" {figures['speedup_small']:.0f} times as fast, compilation included. Of the"
            f" {figures['torch_epochs']:,} epochs timed, the published stop (100 without"
            f" improvement) would have run {figures['torch_stopped']:,}."
        )
    return Table(
        title="Time and memory of a fit",
        header=("what", "s, compilation included", "s, once compiled", "peak GB (before)", "lead"),
        rows=tuple(rows),
        note=note
        + " Peak: of the process while it fits; before: of the process with its predictions."
        " Lead: over `max_prob` at the same cost, on fresh samples of the generator, in points.",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="*", default=["small", "cifar100", "imagenet"])
    parser.add_argument("--torch-epochs", type=int, default=EPOCHS)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--only", choices=SIZES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        print(json.dumps(time_eenet(given.only)))
        return
    figures = {}
    for size in given.sizes:
        found = in_a_process_of_its_own(size)
        samples, exits, classes = SIZES[size]
        print(
            f"{size} (N {samples:,}, K {exits}, C {classes:,}), {BUDGETS} budgets:"
            f" {found['seconds']:.1f} s with compilation, {found['seconds_compiled']:.1f} s after,"
            f" peak {found['peak_gb']:.2f} GB ({found['gb_before']:.2f} before the fit),"
            f" {found['lead_points']:+.2f} points over max_prob at the same cost",
            flush=True,
        )
        figures |= {f"{name}_{size}": value for name, value in found.items()}
    if "small" in given.sizes:
        figures["seconds_paper_small"] = time_paper(RESTARTS)
        print(
            f"eenet_paper, {BUDGETS} budgets x {RESTARTS} restarts, its own defaults:"
            f" {figures['seconds_paper_small']:.1f} s"
        )
        figures |= torch_figures(given.torch_epochs)
        if "seconds_torch_fit" in figures:
            protocol = figures["seconds_torch_fit"] * BUDGETS * RESTARTS
            figures["speedup_small"] = protocol / figures["seconds_small"]
            print(f"speed-up over the published protocol: {figures['speedup_small']:.0f}")
    figures |= {"device": environment()["device"], "jax": jax.__version__}
    if given.write:
        update_readme(given.write, "speed", speed_table(figures, given.sizes).markdown())
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
