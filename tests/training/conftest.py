"""Training in this process, its steps compiled once for all tests."""

import functools

import pytest
from tiny_run import tiny_config

from eenet_jax.data import datasets
from eenet_jax.training import loop
from eenet_jax.training import step as steps
from eenet_jax.training.optimizer import optimizer
from eenet_jax.training.state import TrainState


@pytest.fixture(scope="session")
def compiled():
    """Network, train step and evaluation step of the tiny run."""
    config = tiny_config()
    spec = datasets.get("digits")
    network = loop.build_network(config, spec)
    train = steps.make_train_step(network, optimizer(config.training, 3), config, spec, 9)
    return network, train, steps.make_eval_step(network, config, spec)


@pytest.fixture
def train_tiny(compiled, monkeypatch):
    """`train` of the tiny run, told at which step to break off."""
    network, train_step, eval_step = compiled

    def run(out, *, stop_before=None, **options) -> TrainState:
        def step(state, batch):
            if stop_before is not None and int(state.step) + 1 == stop_before:
                raise KeyboardInterrupt
            return train_step(state, batch)

        monkeypatch.setattr(steps, "make_train_step", lambda *_: step)
        monkeypatch.setattr(steps, "make_eval_step", lambda *_: eval_step)
        monkeypatch.setattr(loop, "build_network", lambda *_: network)
        return loop.train(tiny_config(), out, **options)

    return run


@pytest.fixture(scope="session")
def finished(compiled, tmp_path_factory):
    """Folder of a tiny run that was never stopped, and its final state. To be read only."""
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("finished") / "run"
    train = functools.partial(loop.train, tiny_config(), folder)
    with patch.context() as patched:
        patched.setattr(steps, "make_train_step", lambda *_: compiled[1])
        patched.setattr(steps, "make_eval_step", lambda *_: compiled[2])
        patched.setattr(loop, "build_network", lambda *_: compiled[0])
        return folder, train()
