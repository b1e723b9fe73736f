"""Workers give all results in order, whatever the items do to them."""

import multiprocessing
import os
import subprocess
import sys

import pytest
from misbehaving import act

from evatok_jax.data.builders.workers import Workers
from evatok_jax.data.container import BadVideo

GOOD = [f"good {number}" for number in range(30)]


def results(items, count, patience=60.0):
    with Workers(act, count, patience) as workers:
        found = list(workers.map(items))
    assert [item for item, _ in found] == list(items)
    return [result for _, result in found]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_results_come_in_order(count):
    items = [*GOOD[:20], "bad 1", *GOOD[20:]]
    found = results(items, count)
    assert isinstance(found[20], BadVideo)
    assert (str(found[20]), found[20].cause) == ("number 1", "bad")
    found[20] = "bad 1"
    assert found == items
    assert not multiprocessing.active_children()


def test_crashes_hangs_and_greed_cost_one_item_each():
    items = ["crash", *GOOD[:5], "hang", "slow", *GOOD[5:], "exit", "greedy", "crash"]
    found = results(items, 2, patience=2.0)
    causes = {item: r.cause for item, r in zip(items, found, strict=True) if r != item}
    assert causes == {"crash": "crash", "exit": "crash", "hang": "time limit", "greedy": "memory"}
    said = [str(result) for result in found]
    assert said[0] == said[-1] == "the decoder crashed (SIGSEGV)"
    assert "the decoder crashed (exit code 3)" in said
    assert "the decoder did not get on for 2 s" in said
    assert "it needs more than 4 GiB of memory" in said
    assert not multiprocessing.active_children()


def test_other_errors_end_the_job():
    with pytest.raises(PermissionError, match=r"Permission denied: '7\.mp4'"):
        results([*GOOD, "forbidden 7", *GOOD], 1)
    with pytest.raises(RuntimeError, match="KeyError: '7'"):
        results([*GOOD, "error 7", *GOOD], 1)
    assert not multiprocessing.active_children()


def test_workers_that_do_not_start_are_an_error(tmp_path):
    """As those of a script that does not guard its main part."""
    script = tmp_path / "script.py"
    script.write_text(
        "from misbehaving import act\n"
        "from evatok_jax.data.builders.workers import Workers\n"
        "with Workers(act, 1, 60.0) as workers: list(workers.map(['good']))\n"
    )
    paths = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, script], env=os.environ | {"PYTHONPATH": paths}, capture_output=True
    )
    assert b"ChildProcessError: a worker process did not start (the decoder" in done.stderr
    assert b'must do so below `if __name__ == "__main__":`' in done.stderr
