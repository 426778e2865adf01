"""Training in this process, its steps compiled once for all tests."""

import jax
import jax.numpy as jnp
import pytest
from tiny_run import STEPS_PER_EPOCH, tiny_config

from eenet_jax.data import datasets
from eenet_jax.training import loop
from eenet_jax.training import step as steps
from eenet_jax.training.network import build_network
from eenet_jax.training.optimizer import optimizer
from eenet_jax.training.sharding import make_layout
from eenet_jax.training.state import TrainState, create_state


class Compiled:
    """Network, fresh state and steps of the tiny run."""

    def __init__(self):
        config, spec = tiny_config(), datasets.get("digits")
        made = optimizer(config.training, STEPS_PER_EPOCH)
        total = config.training.epochs * STEPS_PER_EPOCH
        self.network = build_network(config, spec)
        self.layout = make_layout()
        self.train_step = steps.make_train_step(
            self.network, made, config, spec, total, self.layout
        )
        self.eval_step = steps.make_eval_step(self.network, config, spec, self.layout)
        self.fresh = create_state(self.network.init, made, jax.random.key(config.seed))

    def train(self, out, stop_before=None) -> TrainState:
        """`train`, broken off before the step named."""

        def step(state, batch):
            if stop_before is not None and int(state.step) + 1 == stop_before:
                raise KeyboardInterrupt
            return self.train_step(state, batch)

        with pytest.MonkeyPatch.context() as patch:
            # Steps donate the state, so that every run needs a copy.
            patch.setattr(loop, "create_state", lambda *_: jax.tree.map(jnp.array, self.fresh))
            patch.setattr(loop, "build_network", lambda *_: self.network)
            patch.setattr(steps, "make_train_step", lambda *_: step)
            patch.setattr(steps, "make_eval_step", lambda *_: self.eval_step)
            return loop.train(tiny_config(), out)


@pytest.fixture(scope="session")
def compiled():
    """The tiny run, its steps compiled once for all tests."""
    return Compiled()


@pytest.fixture(scope="session")
def finished(compiled, tmp_path_factory):
    """Folder of a tiny run that was never stopped, and its final state. To be read only."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, compiled.train(folder)
