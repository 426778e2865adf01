"""Imports follow the data and never go back, as read from the source itself."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

import eenet_jax

ROOT = Path(eenet_jax.__file__).parent
PACKAGE = ROOT.name

ORDER = (
    (
        "errors",
        "artifacts",
        "types",
        "environment",
        "confidence",
        "dense",
        "staged_network",
        "pieces",
        "timing",
    ),
    ("config",),
    ("data",),
    ("networks",),
    ("training",),
    ("predictions",),
    ("costs",),
    ("scheduler",),
    ("policies",),
    ("comparison",),
    ("frontier_file",),
    ("frontier",),
    ("execution",),
    ("scale",),
    ("report",),
    ("demo",),
    ("arguments",),
    ("cli",),
)
RANKS = {part: rank for rank, parts in enumerate(ORDER) for part in parts}
# `import eenet_jax` alone gives fit, load_policy and the types: no more than policies do.
RANKS[""] = RANKS["policies"]


def _name(path: Path) -> str:
    parts = (PACKAGE, *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in sorted(ROOT.rglob("*.py"))}


@functools.cache
def _imports(module: str) -> frozenset[str]:
    return frozenset(_read_imports(module))


def _read_imports(module: str) -> Iterator[str]:
    """Full names of all modules that a module imports, those inside its functions included."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level]
            source = ".".join([*(above if node.level else ()), *filter(None, [node.module])])
            for alias in node.names:
                inside = f"{source}.{alias.name}"
                yield inside if inside in MODULES else source


def _part(module: str) -> str:
    """The file or folder at the package's top that holds a module; "" for the package itself."""
    return module.split(".")[1] if "." in module else ""


def _ours(module: str) -> set[str]:
    return {name for name in _imports(module) if name.split(".")[0] == PACKAGE}


def _reached(module: str) -> set[str]:
    """A module and all of the package that importing it imports."""
    reached, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += _ours(name)
    return reached


def test_every_module_has_a_place():
    assert {_part(module) for module in MODULES} <= RANKS.keys()
    assert len(MODULES) > 50


def test_the_reader_sees_what_is_imported():
    assert "eenet_jax.networks.resnet" in _imports("eenet_jax.networks.convert")
    assert "eenet_jax.data.inputs" in _imports("eenet_jax.predictions")
    assert "eenet_jax.policies.fit" in _imports("eenet_jax")
    assert "tensorflow_datasets" in _imports("eenet_jax.data.builders.cifar")
    assert "eenet_jax.types" in _reached("eenet_jax.policies.max_prob")


@pytest.mark.parametrize("module", MODULES)
def test_imports_never_go_back(module):
    rank = RANKS[_part(module)]
    backward = {name for name in _ours(module) if RANKS[_part(name)] > rank}
    assert not backward


@pytest.mark.parametrize("part", ["scheduler", "policies", ""])
def test_whoever_brings_predictions_needs_no_network(part):
    reached = {n for module in MODULES if _part(module) == part for n in _reached(module)}
    parts = {_part(name) for name in reached}
    assert not parts & {"networks", "data", "training", "predictions"}


def _importers(*packages: str) -> set[str]:
    return {
        module
        for module in MODULES
        if any(name.split(".")[0] in packages for name in _imports(module))
    }


def test_flax_stays_among_the_networks():
    assert {_part(module) for module in _importers("flax")} == {"networks"}


def test_no_other_framework_and_no_pickle():
    assert not _importers("torchvision", "tensorflow", "pickle", "dill", "joblib")
    # An extra of its own, for reading published weights.
    assert _importers("torch") == {"eenet_jax.networks.weight_files"}
    assert not _importers("__future__")
