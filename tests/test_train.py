"""The loop: resuming, killing, separation of groups, accumulation, identity of a workdir."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from needs import needs_assets
from toy_stage import ToyStage, toy_config

from evatok_jax import train as training
from evatok_jax.checkpoint import Checkpoints, compare_trees
from evatok_jax.presets import run_section
from evatok_jax.storage.export import load_export
from evatok_jax.writers import read_metrics

OWN = ("clips_per_second", "compiled_steps")  # of a process, not of the run


def metrics(workdir):
    """What is logged of a run."""
    return [{k: v for k, v in row.items() if k not in OWN} for row in read_metrics(workdir)]


def leaves(workdir):
    """Every array of the last checkpoint and of the export, and the logged metrics."""
    checkpoints = Checkpoints(workdir)
    stage = ToyStage(toy_config())
    batch = next(stage.batches(0))
    optimizers = stage.optimizers(12)
    like = jax.eval_shape(
        lambda rng: training.init_state(stage, optimizers, rng, batch), jax.random.key(0)
    )
    state = checkpoints.restore(checkpoints.latest, like)
    rows = metrics(workdir)
    export = load_export(workdir / "export").params
    return [np.asarray(x) for x in jax.tree.leaves((state, export))], rows


def assert_same(a, b):
    assert a[1] == b[1]
    for x, y in zip(a[0], b[0], strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run of 12 steps that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    training.train(toy_config(), workdir)
    return workdir


def test_stopped_by_a_signal_and_resumed(undisturbed, tmp_path, monkeypatch):
    """A run stopped twice, between checkpoints, ends like one that never stopped."""
    for stop_at in (4, 8):
        stop = type("Stop", (), {"__call__": lambda self, step, at=stop_at: step == at})
        monkeypatch.setattr(training, "Interrupt", stop)
        training.train(toy_config(), tmp_path)
        assert not (tmp_path / "done.json").exists()
    monkeypatch.undo()
    training.train(toy_config(), tmp_path)
    assert_same(leaves(undisturbed), leaves(tmp_path))
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 13))


TOY = f"--config={Path(__file__).parent / 'toy_stage.py'}"


def launch(workdir, *arguments, **more):
    """A job in a process of its own, through the real door; `more` are environment variables."""
    tests = Path(__file__).parent
    command = [sys.executable, "-m", "evatok_jax.main", f"--workdir={workdir}", *arguments]
    environment = os.environ | {"PYTHONPATH": f"{tests}:{tests.parent}"} | more
    return subprocess.Popen(
        command, env=environment, cwd=tests.parent, stderr=subprocess.PIPE, text=True
    )


def test_sigterm_saves_and_exits_zero(tmp_path):
    """SIGTERM: the state of that step is saved and the exit code is 0."""
    process = launch(tmp_path, f"{TOY}:1000000")
    while len(read_metrics(tmp_path)) < 5:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0, process.stderr.read()
    process.stderr.close()
    last = read_metrics(tmp_path)[-1]["step"]
    assert Checkpoints(tmp_path).latest == last


def kill_and_compare(tmp_path, arguments, steps: int, seconds: float, **more):
    """SIGKILL at five random moments, restarted each time: parameters to the bit, logs whole."""
    rng, straight, killed = random.Random(0), tmp_path / "straight", tmp_path / "killed"
    assert launch(straight, *arguments, **more).wait(600) == 0
    for _ in range(5):
        process, before = launch(killed, *arguments, **more), len(read_metrics(killed))
        while process.poll() is None and len(read_metrics(killed)) <= before:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, seconds))
        process.kill()
        process.wait()
        process.stderr.close()
    assert launch(killed, *arguments, **more).wait(600) == 0
    ends = [load_export(path / "export") for path in (straight, killed)]
    assert ends[0].digest == ends[1].digest
    logs = [metrics(path) for path in (straight, killed)]
    assert logs[0] == logs[1]
    assert [row["step"] for row in logs[1]] == list(range(1, steps + 1))


def test_killed_at_random_moments(tmp_path):
    """Two groups with periods of their own."""
    kill_and_compare(tmp_path, [f"{TOY}:400"], 400, 0.3)


@pytest.mark.all
@needs_assets("samples", "lpips_vgg")
def test_a_tokenizer_killed_at_random_moments(tmp_path):
    """The real stage on real clips: random lengths, static sizes, LPIPS, EMA."""
    assert launch(tmp_path / "data", "--config=configs/data.py").wait(600) == 0
    settings = ["run.log_every=1", "run.checkpoint_every=4", "lengths.multiple=64"]
    config = f"configs/proxy.py:data={tmp_path / 'data' / 'clips'},geometry=nano,size=tiny"
    arguments = [f"--config={config},batch=2,steps=60,lr=1e-3"]
    arguments += [f"--set={setting}" for setting in settings]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    kill_and_compare(tmp_path, arguments, 60, 3.0, **cache)


def grads_after_one_step(**changes):
    """Parameters after one step in which both groups learn."""
    stage = ToyStage(toy_config(**changes))
    optimizers = stage.optimizers(12)
    batch = jax.tree.map(jnp.asarray, next(stage.batches(0)))
    state = training.init_state(stage, optimizers, jax.random.key(0), batch)
    step = training.make_step(
        stage, optimizers, ("model", "critic"), (), changes.get("accumulate", 1)
    )
    return jax.jit(step)(state, {}, batch, jax.random.key(1))


def test_groups_do_not_touch_each_other():
    """Scaling one group's loss, or a NaN in it, leaves the other's update unchanged to the bit."""
    base, _ = grads_after_one_step()
    for changes, other in (
        ({"critic_weight": 2.0}, "model"),
        ({"critic_weight": float("nan")}, "model"),
        ({"model_weight": 2.0}, "critic"),
        ({"model_weight": float("nan")}, "critic"),
    ):
        changed, _ = grads_after_one_step(**changes)
        for x, y in zip(
            jax.tree.leaves((base.params[other], base.opt[other])),
            jax.tree.leaves((changed.params[other], changed.opt[other])),
            strict=True,
        ):
            np.testing.assert_array_equal(x, y)


def test_accumulation_is_the_mean_over_parts():
    """Four micro-batches give the step of the whole batch where the loss is a mean over samples."""
    whole, _ = grads_after_one_step()
    parts, _ = grads_after_one_step(accumulate=4)
    for x, y in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_a_group_learns_in_its_period_only(undisturbed):
    """The critic, with period 2, has half the updates of the model."""
    state = [np.asarray(x) for x in leaves(undisturbed)[0]]
    assert state  # the counts are part of the checkpoint
    checkpoints = Checkpoints(undisturbed)
    stage = ToyStage(toy_config())
    batch = next(stage.batches(0))
    like = jax.eval_shape(
        lambda rng: training.init_state(stage, stage.optimizers(12), rng, batch), jax.random.key(0)
    )
    updates = checkpoints.restore(12, like).updates
    assert int(updates["model"]) == 12 and int(updates["critic"]) == 6
    assert json.loads((undisturbed / "done.json").read_text())["compiled_steps"] == 2


def test_another_config_is_refused(undisturbed):
    """A workdir has one identity; run settings may change."""
    other = toy_config(critic_weight=3.0)
    with pytest.raises(ValueError, match=r"weights\.critic: 1\.0 -> 3\.0"):
        training.train(other, undisturbed)
    training.train(toy_config(log_every=5), undisturbed)


def test_restore_names_what_does_not_fit():
    """Missing, extra and misshapen leaves, each by name."""
    expected = {"a": np.zeros(2), "b": np.zeros((2, 3))}
    found = {"b": np.zeros((2, 4)), "c": np.zeros(1)}
    assert compare_trees(expected, found) == [
        "extra: c (1,)",
        "misshapen: b is (2, 4), expected (2, 3)",
        "missing: a (2,)",
    ]


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    """Nothing is saved after it, and the message names the step and the loss."""
    with pytest.raises(FloatingPointError, match=r"step 1: .*loss/model"):
        training.train(toy_config(model_weight=float("nan")), tmp_path)
    assert Checkpoints(tmp_path).latest is None


def test_a_gradient_that_is_no_number_is_not_saved(tmp_path, monkeypatch):
    """Even where the loss was still finite: a checkpoint must not hold what follows from it."""
    real = ToyStage.losses

    def losses(self, params, *args, **kwargs):
        found, state, metrics = real(self, params, *args, **kwargs)
        steep = jnp.sqrt(jnp.abs(params["model"]["bias"]).sum() * 0.0)  # 0, of infinite slope
        return {name: loss + steep for name, loss in found.items()}, state, metrics

    monkeypatch.setattr(ToyStage, "losses", losses)
    with pytest.raises(FloatingPointError, match=r"step 1: grad_norm/model"):
        training.train(toy_config(checkpoint_every=1), tmp_path)
    assert Checkpoints(tmp_path).latest is None


def test_more_steps_continue_a_finished_run(undisturbed, tmp_path):
    """The number of steps may change: a finished run goes on to a larger one."""
    training.train(toy_config(steps=6), tmp_path)
    training.train(toy_config(steps=8), tmp_path)
    assert json.loads((tmp_path / "done.json").read_text())["step"] == 8
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 9))


def test_resume_takes_no_position_in_other_data(undisturbed, tmp_path):
    """A data position means nothing where batches or seed differ."""
    config = toy_config(resume=str(undisturbed))
    config.batch_size = 16
    with pytest.raises(ValueError, match="batch_size: 8 -> 16"):
        training.train(config, tmp_path)


def test_several_devices_change_nothing():
    """In a process of its own: see `on_devices.py`."""
    tests = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{tests}:{tests.parent}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(tests / "on_devices.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_group_that_rests_is_logged_and_guarded(tmp_path):
    """The critic learns in every second step, which the fourth is; a NaN of it is not saved."""
    training.train(toy_config(log_every=4), tmp_path / "sound")
    rows = read_metrics(tmp_path / "sound")
    assert [row["step"] for row in rows] == [4, 8, 12]
    assert all("loss/critic" in row and "grad_norm/critic" in row for row in rows)
    with pytest.raises(FloatingPointError, match=r"step 3: .*loss/critic"):
        training.train(toy_config(log_every=4, critic_weight=float("nan")), tmp_path / "ill")
    assert Checkpoints(tmp_path / "ill").latest is None


@pytest.mark.parametrize("steps", [700, 4321, 400_000])
def test_logged_steps_are_those_of_a_discriminator(steps):
    assert run_section(steps).log_every % 5 == 0


def test_two_processes_are_as_one(undisturbed, tmp_path):
    """Parameters of a run on two processes, and both stop at one step when they are asked to."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"

    def both(workdir, steps):
        shared = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
        return [
            launch(workdir, f"{TOY}:{steps}", **shared, JAX_PROCESS_ID=str(index))
            for index in range(2)
        ]

    for process in both(tmp_path / "whole", 12):
        assert process.wait(120) == 0, process.stderr.read()
        process.stderr.close()
    ends = [load_export(path / "export").params for path in (undisturbed, tmp_path / "whole")]
    for x, y in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)
    pair = both(tmp_path / "stopped", 1_000_000)
    while len(read_metrics(tmp_path / "stopped")) < 5:
        assert pair[0].poll() is None, pair[0].stderr.read()
        time.sleep(0.05)
    for process in pair:
        process.send_signal(signal.SIGTERM)
    for process in pair:
        assert process.wait(60) == 0, process.stderr.read()
        process.stderr.close()
    last = read_metrics(tmp_path / "stopped")[-1]["step"]
    assert Checkpoints(tmp_path / "stopped").latest == last
