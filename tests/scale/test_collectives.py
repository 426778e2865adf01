"""Collectives are read off a program's text: kinds, whole arrays' bytes, asynchronous ones once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from eenet_jax.errors import InputError
from eenet_jax.networks import whole_batch
from eenet_jax.networks.bert import Dropout
from eenet_jax.scale.chips import CHIPS, chip_of
from eenet_jax.scale.collectives import Collective, collectives, sent_bytes
from eenet_jax.scale.measured import Compiled, compile_program
from eenet_jax.scale.topology import host_of
from eenet_jax.training.sharding import AXES, make_layout

# As XLA and the TPU compiler write them: one all-gather that runs beside others stands in three
# computations, and a sum of which each device keeps a part in one with a name of its own.
PROGRAM = """HloModule jit_step, is_scheduled=true, num_partitions=8

%async_collective_fusion.1 (param_0: f32[4,64]) -> (f32[4,64], f32[16,64]) {
  %all-gather.20 = f32[16,64]{1,0:T(8,128)S(1)} all-gather(%param_0), channel_id=1, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}, frontend_attributes={chain_id="0"}
}

%async_collective_done.1 (param_0: f32[4,64]) -> f32[16,64] {
  %all-gather.22 = f32[16,64]{1,0:T(8,128)S(1)} all-gather(%param_0), channel_id=1, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}, frontend_attributes={chain_id="0"}, metadata={op_name="state.params[\\'kernel\\']"}
}

%all-reduce-scatter.1 (input: bf16[3,3,64,64]) -> bf16[3,3,64,16] {
  %all-reduce.21 = bf16[3,3,64,64]{2,3,1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}

%all-reduce-scatter.2 (input: bf16[3,3,64,64]) -> bf16[3,3,64,16] {
  %all-reduce.22 = bf16[3,3,64,64]{2,3,1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}

ENTRY %main (a: f32[16]) -> f32[] {
  %all-reduce.1 = (f32[16]{0:T(128)}, f32[3,3,16,32]{3,2,1,0:T(8,128)}) all-reduce(%a, %b), channel_id=1, replica_groups={{0,1,2,3}}, metadata={op_name="jit(step)/mean"}
  %all-gather-start.2 = (f32[4,64]{1,0}, f32[16,64]{1,0}) all-gather-start(%c), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}
  %all-gather-start.6 = (f32[4,64]{1,0}, f32[16,64]{1,0}) all-gather-start(%c2), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}
  %all-gather-done.2 = f32[16,64]{1,0} all-gather-done(%all-gather-start.2)
  %reduce-scatter.3 = bf16[4,64]{1,0} reduce-scatter(%d), channel_id=1, replica_groups=[2,2]<=[4], dimensions={0}, metadata={op_name="jit(step)/transpose"}
  %collective-permute-start.4 = (u8[8]{0}, u8[8]{0}, u32[], u32[]) collective-permute-start(%e), channel_id=1
  ROOT %add.5 = f32[] add(%f, %g), metadata={op_name="all-reduce("}
}
"""  # noqa: E501


def test_a_programs_text_is_read():
    cut = Collective(kind="reduce-scatter", bytes=2 * 9 * 64 * 64, arrays=1, group=4, source="")
    gathered = Collective(kind="all-gather", bytes=4 * 16 * 64, arrays=1, group=4, source="")
    kernel = "state.params[\\'kernel\\']"
    assert collectives(PROGRAM) == [
        Collective(kind="all-gather", bytes=4 * 16 * 64, arrays=1, group=4, source=kernel),
        cut,
        cut,
        Collective(
            kind="all-reduce", bytes=4 * (16 + 3 * 3 * 16 * 32), arrays=2, group=4,
            source="jit(step)/mean",
        ),
        gathered,
        gathered,
        Collective(
            kind="reduce-scatter", bytes=2 * 2 * 4 * 64, arrays=1, group=2,
            source="jit(step)/transpose",
        ),
        Collective(kind="collective-permute", bytes=8, arrays=1, group=8, source=""),
    ]  # fmt: skip


def test_a_ring_sends_all_but_a_devices_own_part_and_a_sum_goes_round_twice():
    assert sent_bytes("all-gather", 800, 4) == sent_bytes("reduce-scatter", 800, 4) == 600
    assert sent_bytes("all-reduce", 800, 4) == 1200
    assert sent_bytes("collective-permute", 800, 4) == 800
    assert sent_bytes("all-reduce", 800, 1) == 0


def test_what_is_compiled_here_sends_what_was_asked_for():
    layout = make_layout()
    rows = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=layout.batch)
    total = compile_program("sum", jax.jit(lambda x: x.sum(0)).lower(rows), samples=8)
    assert total.by_kind() == {"all-reduce": (1, 4 * 64)}
    assert total.fits
    # Its half of the rows, and the sums.
    assert total.memory_bytes >= 4 * (4 * 64 + 64)
    assert total.samples == 8
    whole = jax.jit(lambda x: x, out_shardings=NamedSharding(layout.mesh, PartitionSpec()))
    gathered = compile_program("gather", whole.lower(rows))
    assert gathered.by_kind() == {"all-gather": (1, 4 * 8 * 64)}


def test_dropout_needs_no_other_devices_bits():
    layout = make_layout()

    def drop(x, key):
        return Dropout(0.1).apply({}, x, True, rngs={"dropout": key})

    for shape in ((8, 6, 10), (16, 7)):
        x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=layout.batch)
        step = jax.jit(drop, out_shardings=layout.batch)
        lowered = step.lower(x, jax.random.key(0))
        assert compile_program("drop", lowered).collectives == ()


def test_a_device_drops_what_it_would_of_a_whole_batch():
    layout, x = make_layout(2), jnp.ones((8, 6, 10))
    samples = layout.batch.spec

    def drop(x, key):
        return Dropout(0.1).apply({}, x, True, rngs={"dropout": key})

    def drop_own(x, key):
        with whole_batch.cut_over(AXES):
            return drop(x, key)

    apart = jax.shard_map(
        drop_own, mesh=layout.mesh, in_specs=(samples, PartitionSpec()), out_specs=samples
    )
    whole, key = drop(x, jax.random.key(3)), jax.random.key(3)
    np.testing.assert_array_equal(jax.jit(apart)(x, key), whole)
    assert len({sample.tobytes() for sample in np.asarray(whole)}) == 8


def test_the_roofline_is_the_greatest_of_three_times():
    chip = CHIPS["v5e"]
    sent = (
        Collective(kind="all-reduce", bytes=10**9, arrays=1, group=4, source=""),
        Collective(kind="all-gather", bytes=10**9, arrays=1, group=4, source=""),
    )
    program = Compiled(
        name="p", samples=1, compile_seconds=0.0, memory_bytes=1.0, fits=True,
        flops=197e12, bytes_accessed=819e9 * 2, collectives=sent,
    )  # fmt: skip
    assert program.bound_seconds(chip) == pytest.approx(
        {"arithmetic": 1.0, "memory": 2.0, "links": 0.75 * 3e9 / 200e9}
    )
    assert program.intensity == pytest.approx(197e12 / (2 * 819e9))


def test_loops_are_told_of_for_their_bodies_are_counted_once():
    def repeated(x):
        return jax.lax.fori_loop(0, 7, lambda _, x: jnp.sin(x) @ x, x)

    x = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    program = compile_program("loop", jax.jit(repeated).lower(x))
    assert program.loops == 1
    assert compile_program("none", jax.jit(jnp.sin).lower(x)).loops == 0


@pytest.mark.parametrize(
    ("topology", "host"),
    [("v5e:16x16", "v5e:2x2"), ("v5e:1x1", "v5e:1x1"), ("v5p:4x4x8", "v5p:2x2x1")],
)
def test_a_host_has_four_chips_of_a_slice(topology, host):
    assert host_of(topology) == host


@pytest.mark.parametrize(
    ("topology", "words"),
    [
        ("v5e", "give a chip and a slice"),
        ("v5e:4xfour", "give a chip and a slice"),
        ("v9:4x4", "choose one of v5e, v5p"),
    ],
)
def test_a_slice_that_is_none_is_named(topology, words):
    with pytest.raises(InputError, match=words):
        chip_of(topology)
