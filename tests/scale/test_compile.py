"""The largest batch is found in few compilations; a report says what to change."""

import dataclasses
import math

import pytest
from tiny_run import tiny_config

from eenet_jax.artifacts import read_json
from eenet_jax.errors import InputError
from eenet_jax.scale import compile as scale
from eenet_jax.scale import measured
from eenet_jax.scale.chips import CHIPS
from eenet_jax.scale.expected import expected_bytes
from eenet_jax.scale.measured import Compiled, compile_program
from eenet_jax.scale.programs import RunPrograms
from eenet_jax.scale.solver_program import lower_solver
from eenet_jax.training.sharding import make_layout

CHIP = dataclasses.replace(CHIPS["v5e"], memory_bytes=1e6)


def found(monkeypatch, bytes_a_sample, fits_up_to):
    """The batch that is found, and those that were compiled, where memory grows like this."""
    compiled = []

    def step(config, layout):
        size = config.data.batch_size
        compiled.append(size)
        return Compiled(
            name="train_step",
            samples=size,
            compile_seconds=0.0,
            memory_bytes=RunPrograms(config=config, layout=layout).state_bytes
            + bytes_a_sample * size,
            fits=size <= fits_up_to,
        )

    monkeypatch.setattr(scale, "_train_step", step)
    config, chosen = scale._largest(tiny_config(), make_layout(), CHIP)
    assert chosen.samples == config.data.batch_size
    return config.data.batch_size, compiled


def test_one_compilation_says_where_the_largest_batch_is(monkeypatch):
    # Two devices; a megabyte holds 1,000 samples, of which 512 are a power of two.
    assert found(monkeypatch, 990.0, 1000) == (512, [16, 512, 1024])
    # Memory may grow faster or slower than the first said.
    assert found(monkeypatch, 990.0, 300) == (256, [16, 512, 256])
    assert found(monkeypatch, 990.0, 5000) == (4096, [16, 512, 1024, 2048, 4096, 8192])
    assert found(monkeypatch, 990.0, 2) == (2, [16, 8, 4, 2])
    assert found(monkeypatch, 990.0, 0)[0] == 2


def test_a_runs_programs_are_lowered_without_its_data_and_send_what_arithmetic_says():
    config = tiny_config()
    layout = make_layout()
    programs = RunPrograms(config=config, layout=layout)
    step = compile_program("train_step", programs.train_step(), 78)
    expected = expected_bytes(programs)
    assert expected.scattered == expected.gathered == expected.reduced_parts == 0
    # The loss and the accuracies of two exits are sent besides.
    assert expected.reduced <= step.sent <= 1.1 * expected.sent + 64
    predict = compile_program("predict_step", programs.predict_step(), 700)
    assert set(predict.by_kind()) <= {"all-gather"}
    solver = compile_program(
        "solver", lower_solver(config, 2, list(layout.mesh.devices.ravel()[:1]))
    )
    assert solver.fits
    assert solver.collectives == ()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (
            "train_step",
            "fewer samples than --batch 64, or --training.rematerialise, or"
            " --training.compute-dtype bfloat16, or a larger --fsdp, or more"
            " --training.micro-batches",
        ),
        ("predict_step", "a --data.eval-batch-size below 700"),
        ("solver", "a smaller --data.val-size"),
    ],
)
def test_what_does_not_fit_says_what_to_change(tmp_path, name, changes):
    broken = Compiled(name=name, samples=64, compile_seconds=1.0, memory_bytes=3e10, fits=False)
    report = scale.SliceReport(
        topology="v5e:2x2", devices=4, fsdp=1, batch_size=64, config=tiny_config(),
        programs={name: broken}, weight_bytes=4, versions={},
    )  # fmt: skip
    assert report.verdict() == f"does not fit ({name}): try {changes}"
    scale.write_report(report, tmp_path / "report.json")
    written = read_json(tmp_path / "report.json")
    assert not written["fits"]
    assert written["programs"][name]["flops"] is None
    assert written["programs"][name]["memory_bytes"] == 3e10


def test_of_what_repeats_no_least_time_is_told():
    program = Compiled(
        name="train_step", samples=64, compile_seconds=1.0, memory_bytes=1e9, fits=True,
        flops=1e9, bytes_accessed=1e9,
    )  # fmt: skip
    assert "samples/s" in "".join(scale._described(program, CHIP))
    repeating = "".join(scale._described(dataclasses.replace(program, loops=1), CHIP))
    assert "(a loop, its body counted once)" in repeating
    assert "at best" not in repeating
    assert "samples/s" not in repeating


@pytest.mark.parametrize(
    ("complaint", "gigabytes", "words"),
    [
        ("Used 24.5G of 15.75G hbm. Exceeded hbm capacity by 8.75G.", 24.5 * 1.073741824, "26.31"),
        ("allocation (49.64G) exceeds the memory", 49.64 * 1.073741824, "53.30"),
        ("no room", math.nan, "too many"),
    ],
)
def test_what_does_not_fit_is_as_large_as_the_compiler_says(complaint, gigabytes, words):
    found = measured._wanted_bytes(complaint)
    assert found / 1e9 == pytest.approx(gigabytes, nan_ok=True)
    program = Compiled(
        name="solver", samples=0, compile_seconds=1.0, memory_bytes=found, fits=False
    )
    assert f"solver: {words} GB a chip, which does not fit" in scale._described(program, CHIP)[0]


@pytest.mark.parametrize("parts", [1, 3])
def test_with_cut_weights_they_are_gathered_once_and_gradients_scattered(parts):
    config = tiny_config()
    config = dataclasses.replace(
        config,
        training=dataclasses.replace(config.training, micro_batches=parts),
        network=dataclasses.replace(
            config.network, overrides={**config.network.overrides, "widths": (16, 32)}
        ),
    )
    programs = RunPrograms(config=config, layout=make_layout(2))
    expected = expected_bytes(programs)
    step = compile_program("train_step", programs.train_step(), 78)
    kinds = step.by_kind()
    # What is sent with every micro-batch stands once in the program, in a loop.
    assert parts * kinds["all-gather"][1] == expected.gathered > 0
    # Two stages and two heads, each padded to a tile or two of each device's.
    assert 0 <= expected.scattered - expected.gathered < parts * 4 * 2 * 2**13
    assert parts * kinds["reduce-scatter"][1] == expected.scattered
    sums = expected.reduced + (expected.reduced_parts + expected.statistics) / parts
    # The loss, the accuracies of two exits, and the count of labels.
    assert sums <= kinds["all-reduce"][1] <= sums + 32


def test_a_batch_that_is_no_number_is_named():
    with pytest.raises(InputError, match="batch is 'most': give a number of samples"):
        scale._batch_size("most", tiny_config())
