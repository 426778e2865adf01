"""Every test checks shapes and types, forbids rank promotion, and has several fake devices."""

import os

# Compilation is what costs here, and what is compiled runs once or twice on little.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

install_import_hook("eenet_jax", "beartype.beartype")

import jax  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture(autouse=True)
def _rank_promotion_forbidden():
    with jax.numpy_rank_promotion("raise"):
        yield


def pytest_collection_modifyitems(items):
    """The notebooks take longest: first, so that the other worker has something to do beside."""
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")
