"""`eenet export`: a run's network and one of its fitted policies → a bundle."""

import glob
from collections.abc import Sequence
from pathlib import Path

from eenet_jax.config import DataConfig
from eenet_jax.data import datasets
from eenet_jax.data.text import tokenizer_path
from eenet_jax.errors import InputError
from eenet_jax.execution.adaptive import find_policies
from eenet_jax.execution.export import (
    PLATFORMS,
    ImagePreprocessing,
    TextPreprocessing,
    check_replaceable,
    export_bundle,
)
from eenet_jax.policies.policy import Policy
from eenet_jax.predictions import load_network
from eenet_jax.training.run import RunFolder


def export_run(
    run: str | Path,
    *,
    fit: str | Path | None = None,
    policy: str = "eenet",
    budget: str | None = None,
    out: str | Path,
    platforms: Sequence[str] = PLATFORMS,
) -> None:
    """Write a run's network and one of its fitted policies as a bundle.

    Args:
      run: Folder of the training run.
      fit: Folder that `eenet fit` wrote; the run's own by default.
      policy: Which policy.
      budget: As typed for `eenet fit`; may be left out where one was fitted.
      out: The bundle's folder. A bundle that is there is replaced.
      platforms: To export for, in JAX's words.

    Raises:
      InputError: there is no run, no such policy, several budgets and none chosen, or something
        else lies at `out`.
    """
    check_replaceable(Path(out))
    chosen = _chosen_policy(Path(run) if fit is None else Path(fit), policy, budget)
    network, variables, _ = load_network(run)
    folder = RunFolder(Path(run))
    data = folder.own_tokenizer(folder.config()[0].data)
    export_bundle(
        network,
        variables,
        chosen,
        out=out,
        class_names=datasets.get_configured(data).class_names,
        preprocessing=_preprocessing_of(data),
        platforms=platforms,
    )


def _chosen_policy(fit: Path, name: str, budget: str | None) -> Policy:
    found = find_policies(fit, name, None if budget is None else [budget])
    if len(found) > 1:
        paths = (fit / "policies").glob(f"{glob.escape(name)}-*.json")
        typed = sorted(path.stem.removeprefix(f"{name}-") for path in paths)
        raise InputError(
            f"'{fit}' has the policy '{name}' for {len(found)} budgets: choose one by --budget,"
            f" of {', '.join(typed)}"
        )
    return found[0]


def _preprocessing_of(data: DataConfig) -> ImagePreprocessing | TextPreprocessing:
    spec = datasets.get_configured(data)
    if spec.kind == "text":
        path = tokenizer_path(data.tokenizer)
        return TextPreprocessing(tokenizer=path, max_length=data.max_length)
    return ImagePreprocessing(mean=spec.mean, std=spec.std)
