"""The policies that a fit saved, and the samples that they are explained on."""

import eenet_jax
from eenet_jax.errors import InputError
from eenet_jax.policies.policy import Policy
from eenet_jax.report.sources import Fit, Sources, prediction_paths
from eenet_jax.types import ExitPredictions


def saved_policy(fit: Fit, name: str, budget: str) -> Policy | None:
    """A policy as it was saved, None where it was not."""
    path = fit.folder / "policies" / f"{name}-{budget}.json"
    return eenet_jax.load_policy(path) if path.is_file() else None


def middle_policies(sources: Sources) -> dict[str, Policy]:
    """The first fit's policies at the budget in the middle, by name."""
    found = {
        name: saved_policy(sources.fits[0], name, middle_budget(sources))
        for name in sources.policies
    }
    return {name: policy for name, policy in found.items() if policy is not None}


def middle_budget(sources: Sources) -> str:
    """As it was typed."""
    return sources.budgets[len(sources.budgets) // 2]


def fitted_predictions(sources: Sources) -> tuple[str, ExitPredictions]:
    """The split that the first fit was tested on, "val" where there was none, and its predictions.

    Raises:
      InputError: they are gone.
    """
    named = prediction_paths(sources.fits[0])
    for split in ("test", "val"):
        if split in named and named[split].is_file():
            return split, ExitPredictions.load(named[split])
        for run in sources.runs:
            if split in run.predictions:
                return split, run.predictions[split]
    raise InputError("no predictions: keep the files that the fit was made from")
