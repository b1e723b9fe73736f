"""What scheduled programs cost: against recorded ones, and by hand-checkable text."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from evatok_jax import tpu
from evatok_jax.costs import LATENCY, Program, group, price
from evatok_jax.hlo import size_of

# Compiled for v5e:2x2 by libtpu 0.0.42, and shortened: x [4096, 4096] by w, bf16, both in quarters
# or halves, seven times in a scan in the scopes "loop" and "inner", then the sum of all.
FIXTURES = Path(__file__).parent / "fixtures"
RECORDED = FIXTURES / "scan_v5e.hlo"
# The same of a sum over four chips, f32 [1024, 4096] on each, that they keep in quarters.
SCATTERED = FIXTURES / "reduce_scatter_v5e.hlo"
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
    assert price(gather, V5E) == LATENCY + whole / 2 / (2 * V5E.link)
    assert price(gather, tpu.linked("v5e", "8x8")) == LATENCY + whole / 2 / V5E.link


def test_a_permute_sends_over_one_link():
    line = "  ROOT %p = f32[8]{0} collective-permute(%x), source_target_pairs={{0,1}}"
    (work,) = wrapped(line).work(cost)
    assert price(work, V5E) == LATENCY + 32 / V5E.link


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


def counting(first="constant(2)", after="add(%i, %one)", ends="compare(%i, %nine), direction=LT"):
    """A program with a loop that counts in an entry of its state; a turn takes 5 cycles, its
    condition 3.
    """
    state = "(s32[], s32[], f32[8])"
    entries = (
        f"  %s = {state} parameter(0)\n"
        "  %i = s32[] get-tuple-element(%s), index=0\n"
        "  %j = s32[] get-tuple-element(%s), index=1\n"
        "  %x = f32[8]{0} get-tuple-element(%s), index=2\n"
    )
    before = (
        "%sum (p: s32[], q: s32[]) -> s32[] {\n  %p = s32[] parameter(0)\n"
        "  %q = s32[] parameter(1)\n  ROOT %t = s32[] add(%q, %p)\n}\n"
        f"%body (s: {state}) -> {state} {{\n{entries}  %one = s32[] constant(1)\n"
        f"  %next = s32[] {after}\n{timed('y', 5)}"
        f"  ROOT %r = {state} tuple(%next, %j, %y)\n}}\n"
        f"%condition (s: {state}) -> pred[] {{\n{entries}  %nine = s32[] constant(9)\n"
        f"{timed('z', 3)}  ROOT %c = pred[] {ends}\n}}\n"
    )
    return wrapped(
        f"  %one = s32[] constant(1)\n  %unknown = s32[] negate(%one)\n  %first = s32[] {first}\n"
        f"  %copied = {state} tuple(%first, %one, %x)\n"
        f"  %w = {state} while(%copied), condition=%condition, body=%body\n"
        "  ROOT %o = f32[8]{0} get-tuple-element(%w), index=2",
        before,
    )


@pytest.mark.parametrize(
    ("changes", "turns", "note"),
    [
        ({}, 7, "may end early"),
        ({"after": "add(%one, %i)", "ends": "compare(%nine, %i), direction=GE"}, 8, "may end"),
        ({"after": "fusion(%i, %one), kind=kLoop, calls=%sum"}, 7, "may end early"),
        ({"first": "copy(%unknown)"}, 9, "begins at an unknown number"),
        ({"after": "add(%i, %i)"}, 1, "unknown length"),
        ({"after": "multiply(%i, %one)"}, 1, "unknown length"),
        ({"after": "add(%j, %one)"}, 1, "unknown length"),
        ({"ends": "compare(%j, %nine), direction=LT"}, 1, "unknown length"),
    ],
)
def test_a_loop_turns_as_its_counter_goes(changes, turns, note):
    """Only an entry that the body adds a number to is a counter; what is guessed is noted.

    The condition is asked once more than the loop turns.
    """
    program = counting(**changes)
    work = program.work(cost)
    assert {w.cycles: w.times for w in work if w.kind == "compiled"} == {5: turns, 3: turns + 1}
    assert any(note in each for each in program.notes)


def test_an_inner_loop_may_begin_at_a_number_of_the_outer_state():
    """As the compiler leaves it when it hoists constants: the inner one counts from 2 to 9."""
    state = "(s32[], s32[], f32[8])"
    entries = (
        f"  %s = {state} parameter(0)\n"
        "  %i = s32[] get-tuple-element(%s), index=0\n"
        "  %j = s32[] get-tuple-element(%s), index=1\n"
        "  %x = f32[8]{0} get-tuple-element(%s), index=2\n"
        "  %one = s32[] constant(1)\n  %nine = s32[] constant(9)\n"
    )

    def part(name, kind, lines):
        return f"%{name} (s: {state}) -> {kind} {{\n{entries}{lines}}}\n"

    before = part("going", "pred[]", "  ROOT %c = pred[] compare(%i, %nine), direction=LT\n")
    before += part(
        "inner",
        state,
        f"  %next = s32[] add(%i, %one)\n{timed('y', 5)}  ROOT %r = {state} tuple(%next, %j, %y)\n",
    )
    before += part(
        "outer",
        state,
        f"  %next = s32[] add(%i, %one)\n  %init = {state} tuple(%j, %j, %x)\n"
        f"  %w = {state} while(%init), condition=%going, body=%inner\n"
        f"  %y = f32[8]{{0}} get-tuple-element(%w), index=2\n"
        f"  ROOT %r = {state} tuple(%next, %j, %y)\n",
    )
    program = wrapped(
        "  %three = s32[] constant(3)\n  %two = s32[] constant(2)\n"
        f"  %init = {state} tuple(%three, %two, %x)\n"
        f"  %w = {state} while(%init), condition=%going, body=%outer\n"
        "  ROOT %o = f32[8]{0} get-tuple-element(%w), index=2",
        before,
    )
    assert [w.times for w in program.work(cost) if w.cycles == 5] == [6 * 7]
    assert not program.notes


TURNED = [0, 2, 4, 6, 1, 3, 5, 7]


@pytest.mark.parametrize(
    ("groups", "members"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", [0, 1, 2, 3]),
        ("replica_groups=[4,2]<=[8]", [0, 1]),
        ("replica_groups=[4,2]<=[2,4]T(1,0), use_global_device_ids=true", [0, 4]),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", [0, 1, 2, 3]),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([2,4]T(1,0)) {'a'}", [0, 2]),
        (
            "replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a','b'}",
            [0, 2, 4, 6, 1, 3, 5, 7],
        ),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}", [0, 2]),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}", [0, 1]),
        ("replica_groups={}", list(range(8))),
    ],
)
def test_every_way_to_write_groups(groups, members):
    assert group(groups, 8) == members
    (work,) = wrapped(f"  ROOT %r = f32[8]{{0}} all-reduce(%x), {groups}, to_apply=%a").work(cost)
    assert work.sent == 2 * 32 * (len(members) - 1) / len(members)


def test_a_group_sends_along_all_axes_in_which_its_chips_differ():
    """Eight chips as 4 x 2: four along one axis take twice as long as all along both would."""
    places = [(chip % 4, chip // 4) for chip in range(8)]
    for groups, axes in (("{{0,1,2,3},{4,5,6,7}}", 1), ("{{0,4},{1,5}}", 1), ("{}", 2)):
        line = f"  ROOT %r = f32[8]{{0}} all-reduce(%x), replica_groups={groups}, to_apply=%a"
        program = wrapped(line)
        program.places = places
        (work,) = program.work(cost)
        assert work.axes == axes
        assert price(work, V5E) == LATENCY + work.sent / (V5E.links * axes * V5E.link)


REDUCE = "  ROOT %r = f32[8]{0} all-reduce(%x), channel_id=7, replica_groups={}, to_apply=%a\n"


def test_pieces_of_a_collective_are_one():
    """What runs beside a computation is in several fusions; others may share its channel."""
    sizes = {"fused": 8, "async_collective_fusion.1": 8, "async_collective_fusion.2": 8, "last": 16}
    made = ""
    for name, size in sizes.items():
        made += computation(name, REDUCE.replace("[8]", f"[{size}]"))
    calls = [f"%f.{name} = f32[8]{{0}} fusion(%x), calls=%{name}" for name in sizes]
    work = wrapped("  " + "\n  ".join(calls).replace("%f.last", "ROOT %f.last"), made).work(cost)
    assert sorted(one.bytes for one in work) == [32, 64]


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


def test_a_reduce_scatter_sends_half_of_an_all_reduce():
    """libtpu prints it as a fusion, which has no estimate but is not listed as without one."""
    summed, scattered = Program(SCATTERED.read_text()).work(cost)
    assert (summed.kind, summed.cycles) == ("compiled", 44557)
    assert (scattered.kind, scattered.name) == ("collective", "reduce-scatter")
    whole = 4 * 1024 * 4096
    assert (scattered.bytes, scattered.sent) == (whole, whole * 3 / 4)
    assert scattered.scope == "jit(f)/reduce_sum"


def test_what_runs_beside_counts_once():
    """Of what is started and ended apart, all but copies is what it would be at once."""
    before = computation("held", timed("h", 7, "ROOT ")) + computation(
        "kept", "  ROOT %k = f32[8]{0} negate(%x)\n"
    )
    config = 'backend_config={"window_config":{"estimated_cycles":"11"}}'
    lines = (
        "  %a = ((f32[8]{0}), f32[8]{0}, s32[]) call-start(%x), to_apply=%held\n"
        "  %b = f32[8]{0} call-done(%a)\n"
        "  %c = ((f32[8]{0}), f32[8]{0}, s32[]) async-start(%x), calls=%held\n"
        "  %d = ((f32[8]{0}), f32[8]{0}, s32[]) async-update(%c), calls=%held\n"
        "  %e = f32[8]{0} async-done(%d), calls=%held\n"
        f"  %f = ((f32[8]{{0}}), f32[8]{{0}}) fusion-start(%x), kind=kLoop, calls=%kept, {config}\n"
        "  %g = f32[8]{0} fusion-done(%f)\n"
        "  %h = (f32[8]{0}, f32[8]{0}, u32[]) copy-start(%x)\n"
        "  %i = f32[8]{0} copy-done(%h)\n"
        "  ROOT %j = f32[8]{0} dynamic-update-slice(%i, %x)"
    )
    work = wrapped(lines, before).work(cost)
    assert [w.cycles for w in work] == [7, 7, 11, 0]
    assert (work[-1].kind, work[-1].name) == ("unpriced", "dynamic-update-slice")


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
