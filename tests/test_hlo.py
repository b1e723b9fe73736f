"""The reader of scheduled programs: against a recorded one, and by hand-checkable text."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from evatok_jax import tpu
from evatok_jax.compile_check import price
from evatok_jax.hlo import Program, size_of

# Compiled for v5e:2x2 by libtpu 0.0.42, and shortened: x [4096, 4096] by w, bf16, both in quarters
# or halves, seven times in a scan in the scopes "loop" and "inner", then the sum of all.
RECORDED = Path(__file__).parent / "fixtures" / "scan_v5e.hlo"
V5E = tpu.CHIPS["v5e"]


def cost(work):
    return work.cycles


def recorded():
    return Program(RECORDED.read_text()).work(cost)


def test_cycles_of_a_loop_count_as_often_as_it_turns():
    work = [w for w in recorded() if w.kind == "compiled"]
    assert [(w.times, w.cycles) for w in work] == [(7, 92288), (7, 270172), (1, 59204)]
    assert "/inner/" in work[1].scope and "reduce_sum" in work[2].scope
    assert "/loop/" in work[0].scope, "a copy that the compiler inserted belongs to its loop"


def test_a_large_product_is_priced_near_the_peak():
    (product,) = [w for w in recorded() if w.cycles == 270172]
    seconds = price(product, V5E)
    assert seconds == pytest.approx(2 * 1024 * 4096 * 4096 / V5E.flops, rel=0.06)


def test_collectives_count_by_what_a_chip_sends():
    """Two chips gather w, 4096 x 4096 in bf16; four add up one number."""
    gather, reduce = (w for w in recorded() if w.kind == "collective")
    whole = 2 * 4096**2
    assert (gather.name, gather.times, gather.bytes, gather.sent) == (
        *("all-gather", 7, whole),
        whole / 2,
    )
    assert (reduce.name, reduce.times, reduce.bytes, reduce.sent) == ("all-reduce", 1, 4, 6)
    assert price(gather, V5E) == whole / 2 / V5E.axis


def wrapped(body: str, before: str = "") -> Program:
    """A program with these lines; `%x` is f32[8], and what `before` defines may be called."""
    head = "HloModule test, is_scheduled=true, num_partitions=8\n"
    entry = "ENTRY %main (x: f32[8]) -> f32[8] {\n  %x = f32[8]{0} parameter(0)\n"
    return Program(f"{head}{before}\n{entry}{body}\n}}\n")


def timed(name: str, cycles: int, root: str = "") -> str:
    config = f'backend_config={{"window_config":{{"estimated_cycles":"{cycles}"}}}}'
    return f"  {root}%{name} = f32[8]{{0}} negate(%x), {config}\n"


def computation(name: str, lines: str) -> str:
    return f"%{name} (x: f32[8]) -> f32[8] {{\n  %x = f32[8]{{0}} parameter(0)\n{lines}}}\n"


def test_of_two_branches_the_dearer_counts():
    before = computation("cheap", timed("a", 10, "ROOT ")) + computation(
        "dear", timed("b", 300, "ROOT ") + timed("c", 5)
    )
    line = (
        "  ROOT %d = f32[8]{0} conditional(%p, %x, %x), branch_computations={%cheap, %dear}, "
        'metadata={op_name="jit(f)/part/cond"}'
    )
    program = wrapped(line, before)
    assert sorted(w.cycles for w in program.work(cost)) == [5, 300]
    assert {w.scope for w in program.work(cost)} == {"jit(f)/part/cond"}
    assert program.notes == {"of a conditional's branches only the dearest counts"}


@pytest.mark.parametrize(
    ("groups", "members"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
        ("replica_groups=[4,2]<=[8]", 2),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", 4),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([2,4]T(1,0)) {'a','b'}", 8),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}", 2),
        ("replica_groups={}", 8),
    ],
)
def test_every_way_to_write_groups(groups, members):
    (work,) = wrapped(f"  ROOT %r = f32[8]{{0}} all-reduce(%x), {groups}, to_apply=%a").work(cost)
    assert work.sent == 2 * 32 * (members - 1) / members


def test_a_started_collective_counts_once_at_its_size():
    """By what it makes, without the operands and marks that its tuple carries along."""
    lines = (
        "  %s = (f32[8]{0}, f32[64]{0}) all-gather-start(%x), replica_groups=[1,8]<=[8]\n"
        "  %d = f32[64]{0} all-gather-done(%s)\n"
        "  %t = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%x), "
        "source_target_pairs={{0,1}}\n"
        "  ROOT %e = f32[8]{0} collective-permute-done(%t)"
    )
    gather, permute = wrapped(lines).work(cost)
    assert (gather.name, gather.bytes, gather.sent) == ("all-gather", 256, 224)
    assert (permute.name, permute.bytes, permute.sent) == ("collective-permute", 32, 32)


@pytest.mark.parametrize(("flops", "moved"), [(10**12, 10), (1, 10**9)])
def test_a_kernel_takes_the_longer_of_its_products_and_its_transfers(flops, moved):
    line = (
        '  ROOT %k = f32[8]{0} custom-call(%x), custom_call_target="tpu_custom_call", '
        'backend_config={"custom_call_config": {"body": "AAAA", "cost_estimate": '
        f'{{"flops": {flops}, "transcendentals": 0, "bytes_accessed": {moved}}}}}}}'
    )
    program = wrapped(line)
    (work,) = program.work(cost)
    assert (work.kind, work.flops, work.bytes) == ("kernel", flops, moved)
    assert price(work, V5E) == max(flops / (V5E.flops / 2), moved / V5E.bandwidth)
    assert not program.notes
    program = wrapped(line.replace("cost_estimate", "other"))
    (work,) = program.work(cost)
    assert (work.flops, work.bytes) == (0, 64) and program.notes


def test_sizes():
    assert size_of("bf16[8,128]{1,0:T(8,128)(2,1)S(1)}") == 2048
    assert size_of("(f32[], (pred[3]{0}, s4[10]{0}), /*index=2*/u32[2,2]{1,0}, token[])") == 28


def test_loops_as_this_machine_compiles_them():
    """Nested scans, one that starts late, and one that a value may end."""

    def nested(x):
        def outer(x, _):
            return jax.lax.scan(lambda x, _: (jnp.sin(x @ x), None), x, length=3)[0], None

        x, _ = jax.lax.scan(outer, x, length=5)
        x = jax.lax.fori_loop(2, 9, lambda i, x: jnp.cos(x @ x), x)
        going = jax.lax.while_loop(lambda c: (c[0] < 4) & (c[1][0, 0] > 0), _step, (0, x))
        return jax.lax.while_loop(lambda c: c[0] < 10, _step, going)

    program = Program(jax.jit(nested).lower(jnp.ones((64, 64))).compile().as_text())
    turns = {w.times for w in program.work(cost) if "dot_general" in w.scope}
    assert turns == {15, 7, 4, 6}, "the last loop goes on from where the one before ends"
    assert "a loop that may end early counts to its bound" in program.notes


def _step(carry):
    count, x = carry
    return count + 1, jnp.tanh(x @ x)
