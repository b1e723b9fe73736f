"""The training loop: the only one, for every stage that learns.

A run starts from, in this order: the newest checkpoint of its own workdir; `run.resume` (the whole
state of another workdir); `run.init_from` (parameters of an export); scratch. The log says which.
Random numbers come from (seed, step) and, per sample, from the record's key; batches from the
global record index. A run that was killed therefore continues to the bit on the same machine and
versions.
"""

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from evatok_jax import sharding
from evatok_jax import workdir as workdirs
from evatok_jax.checkpoint import Checkpoints, compare_trees
from evatok_jax.interrupt import Interrupt
from evatok_jax.names import nearest
from evatok_jax.stages.stage import Stage, load_stage
from evatok_jax.storage.export import load_export, save_export
from evatok_jax.writers import MetricWriter

OPTIMISER = "optimiser"  # the scope of updates and averages


@flax.struct.dataclass
class TrainState:
    """The whole state of a run.

    Attributes:
      step: int32, steps done.
      params, opt, ema: by group; state: the stage's own; updates: int32 count by group.
    """

    step: Any  # arrays, or their shapes
    params: dict
    opt: dict
    ema: dict
    state: Any
    updates: dict


def init_state(stage: Stage, optimizers, rng, batch) -> TrainState:
    """A fresh state from a batch of the shapes that will come."""
    params, state = stage.init(rng, batch)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt={group: optimizers[group].init(tree) for group, tree in params.items()},
        ema={group: params[group] for group in stage.ema},
        state=state,
        updates={group: jnp.zeros((), jnp.int32) for group in params},
    )


def make_step(
    stage: Stage,
    optimizers,
    groups: tuple[str, ...],
    static,
    accumulate: int = 1,
    waiting: tuple[str, ...] = (),
):
    """One step in which `groups` learn: (state, frozen, batch, rng) -> (state, metrics).

    Each group's gradient is of its own loss; groups that rest are arguments only, so their backward
    pass is not paid, and groups that are `waiting` for their start need not be looked at.
    """

    def gradients(params, state, frozen, batch, rng):
        def total(active):
            losses, new, metrics = stage.losses(
                {**params, **active},
                *(state, frozen, batch, rng),
                groups=groups,
                waiting=waiting,
                static=static,
            )
            # One backward pass for all: the stage stops gradients between groups, so the sum's
            # gradient by a group is that of its own loss.
            return sum(losses[group] for group in groups), (losses, new, metrics)

        active = {group: params[group] for group in groups}
        grads, (losses, new, metrics) = jax.grad(total, has_aux=True)(active)
        return grads, new, {**metrics, **{f"loss/{g}": losses[g] for g in groups}}

    def accumulated(params, state, frozen, batch, rng):
        def micro(carry, one):
            grads, new, metrics = gradients(params, carry, frozen, *one)
            return new, (grads, metrics)

        def split(x):  # every k-th row, so that each part lies on all devices as the batch does
            return x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1)

        parts = jax.tree.map(split, batch)
        rngs = jnp.broadcast_to(rng, (accumulate, *rng.shape))
        state, (grads, metrics) = jax.lax.scan(micro, state, (parts, rngs))
        grads, metrics = jax.tree.map(lambda x: x.mean(axis=0), (grads, metrics))
        return grads, state, metrics

    def step_fn(ts: TrainState, frozen, batch, rng):
        rng = jax.random.fold_in(rng, ts.step)
        work = gradients if accumulate == 1 else accumulated
        grads, state, metrics = work(ts.params, ts.state, frozen, batch, rng)
        params, opt, ema, updates = dict(ts.params), dict(ts.opt), dict(ts.ema), dict(ts.updates)
        for group in groups:
            with jax.named_scope(OPTIMISER):
                change, opt[group] = optimizers[group].update(
                    grads[group], ts.opt[group], ts.params[group]
                )
                params[group] = optax.apply_updates(ts.params[group], change)
                updates[group] = ts.updates[group] + 1
                metrics[f"grad_norm/{group}"] = optax.tree.norm(grads[group])
                if group in ema:
                    # Early averages follow closely: the decay grows with the number of updates.
                    count = updates[group].astype(jnp.float32)
                    decay = jnp.minimum(stage.ema[group], (1.0 + count) / (10.0 + count))
                    ema[group] = jax.tree.map(
                        lambda e, p, d=decay: d * e + (1.0 - d) * p, ts.ema[group], params[group]
                    )
        ts = ts.replace(
            step=ts.step + 1, params=params, opt=opt, ema=ema, state=state, updates=updates
        )
        return stage.after_update(ts, metrics), metrics

    return step_fn


class Steps:
    """Compiled steps, one for each set of learning and waiting groups and static sizes."""

    def __init__(self, stage: Stage, optimizers, shardings, accumulate: int = 1):
        self._stage, self._optimizers = stage, optimizers
        self._shardings, self._accumulate = shardings, accumulate
        self._compiled = {}

    def groups(self, step: int) -> tuple[str, ...]:
        """Who learns in step number `step`, counted from 1: a group of period k in every k-th."""
        starts = self._stage.starts
        return tuple(
            group
            for group, every in self._stage.periods.items()
            if step % every == 0 and step > starts.get(group, 0)
        )

    def __call__(self, step: int, static):
        """The step number `step`."""
        groups = self.groups(step)
        waiting = tuple(group for group, start in self._stage.starts.items() if step <= start)
        key = (groups, waiting, static)
        if key not in self._compiled:
            fn = make_step(self._stage, self._optimizers, groups, static, self._accumulate, waiting)
            self._compiled[key] = jax.jit(
                fn, donate_argnums=0, out_shardings=(self._shardings, None)
            )
        return self._compiled[key]

    def __len__(self):
        return len(self._compiled)


def abstract_state(stage: Stage, optimizers, mesh, rng, batch) -> TrainState:
    """Shapes of a run's state, and on which devices each lies; `rng` and `batch` may be shapes."""
    like = jax.eval_shape(partial(init_state, stage, optimizers), rng, batch)
    return sharding.placed(like, sharding.param_shardings(like, mesh))


def abstract_step(stage: Stage, mesh, step: int = 0, static=None):
    """A step as `train` compiles it, and its arguments as shapes: (step, arguments, who learns).

    Neither weights nor data are read. By default it is the dearest: a step in which every group
    learns, of the largest static size.
    """
    config, period = stage.config, math.lcm(*stage.periods.values())
    step = step or period * (max([0, *stage.starts.values()]) // period + 1)
    optimizers = stage.optimizers(config.run.steps)
    rng, batch = jax.eval_shape(lambda: jax.random.key(config.seed)), stage.batch_spec()
    state = abstract_state(stage, optimizers, mesh, rng, batch)
    steps = Steps(stage, optimizers, jax.tree.map(lambda x: x.sharding, state), config.accumulate)
    whole, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    frozen = sharding.placed(stage.frozen_spec(), whole)
    arguments = state, frozen, sharding.placed(batch, rows), rng
    static = stage.static_sizes()[-1] if static is None else static
    return steps(step, static), arguments, steps.groups(step)


def start(config: ConfigDict, checkpoints: Checkpoints, fresh, like, shardings) -> TrainState:
    """The state a run begins with; `fresh()` makes one from scratch."""
    run = config.run
    if checkpoints.latest is not None:
        logging.info("start: checkpoint of this workdir, step %d", checkpoints.latest)
        return checkpoints.restore(checkpoints.latest, like, shardings)
    if run.resume:
        other = Checkpoints(Path(run.resume), own=False)
        if other.latest is None:
            raise FileNotFoundError(f"run.resume={run.resume}: no checkpoint there")
        workdirs.check_same_data(Path(run.resume), config)
        logging.info("start: run.resume=%s, step %d", run.resume, other.latest)
        return other.restore(other.latest, like, shardings)
    state = fresh()
    if run.init_from:
        export = load_export(run.init_from)
        shared = [group for group in state.params if group in export.params]
        group = run.init_group or next(iter(shared), next(iter(state.params)))
        if group not in state.params:
            raise ValueError(f"run.init_group={group!r}: {nearest(group, state.params)}")
        mismatch = compare_trees(state.params[group], export.params.get(group, {}))
        if mismatch:
            raise ValueError(
                f"run.init_from={run.init_from} does not fit {group}:\n  " + "\n  ".join(mismatch)
            )
        logging.info("start: parameters of %s from run.init_from=%s", group, run.init_from)
        params = jax.device_put(export.params[group], shardings.params[group])
        state = state.replace(params={**state.params, group: params})
        if group in state.ema:
            state = state.replace(ema={**state.ema, group: jax.tree.map(jnp.copy, params)})
        return state
    logging.info("start: from scratch")
    return state


def train(config: ConfigDict, workdir: Path) -> None:
    """Runs the stage that the config names until `run.steps`, or until a signal asks to stop."""
    run, began = config.run, time.time()
    stage = load_stage(config)
    workdirs.claim(workdir, config, stage.inputs())
    stage.workdir = workdir
    done = workdirs.finished(workdir)
    if done and done["step"] >= run.steps:
        logging.info("%s is finished", workdir)
        return
    optimizers = stage.optimizers(run.steps)
    rng = jax.random.key(config.seed)
    mesh = sharding.make_mesh(run.mesh.data, run.mesh.fsdp)
    frozen = jax.device_put(stage.load_frozen(), sharding.replicated(mesh))

    def complete(batch, step):
        """The batch on the devices with what the stage adds to it, and a call for its sizes."""
        batch = sharding.put_batch(batch, mesh)
        batch, sizes = stage.prepare(frozen, batch, jax.random.fold_in(rng, step))
        return jax.device_put(batch, sharding.batch_sharding(mesh)), sizes

    with jax.set_mesh(mesh):
        example, _ = complete(next(iter(stage.batches(0))), 0)
        like = abstract_state(stage, optimizers, mesh, rng, example)
        shardings = jax.tree.map(lambda x: x.sharding, like)
        fresh = jax.jit(partial(init_state, stage, optimizers, rng), out_shardings=shardings)
        checkpoints = Checkpoints(workdir, run.keep)
        state = start(config, checkpoints, lambda: fresh(example), like, shardings)
        step = int(state.step)
        steps = Steps(stage, optimizers, shardings, config.accumulate)
        writer = MetricWriter(workdir, step) if jax.process_index() == 0 else None
        interrupt = Interrupt()
        batches = stage.batches(step * config.batch_size)
        pending = None  # metrics of the step before: fetched late, so that logging never waits
        newest = {}  # of each metric, those of groups that rest at present included
        last_save = time.time()
        bar = tqdm(total=run.steps, initial=step, unit="step", dynamic_ncols=True, desc=config.name)
        upcoming = complete(next(batches), step)
        while step < run.steps:
            (batch, static), step = upcoming, step + 1
            key = static()
            # Queued before the step, so that its sizes are known while the step still runs.
            upcoming = complete(next(batches), step) if step < run.steps else None
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = steps(step, key)(state, frozen, batch, rng)
            newest |= metrics
            report(pending, writer, bar, config, began)
            metrics = metrics | {"compiled_steps": len(steps)}
            pending = (step, metrics) if step % run.log_every == 0 or step == run.steps else None
            bar.update()
            stopping = interrupt(step)
            due = time.time() - last_save > 60 * run.checkpoint_minutes
            if (
                stopping
                or step == run.steps
                or (due and jax.process_count() == 1)
                or (step % run.checkpoint_every == 0)
            ):
                report(pending, writer, bar, config, began)
                pending = None
                guard(newest, step)
                checkpoints.save(step, state)
                last_save = time.time()
            if stopping:
                break
        bar.close()
        checkpoints.close()
        if writer:
            writer.close()
    if step < run.steps:
        logging.info("stopped by a signal after step %d; start again to continue", step)
        return
    finish(stage, state, mesh, workdir, time.time() - began, len(steps))


def guard(metrics, step: int) -> None:
    """Refuses to go on, or to save, once a loss or a gradient is no number."""
    bad = [
        name
        for name, v in metrics.items()
        if ("loss" in name or "grad" in name) and not np.isfinite(v)
    ]
    if bad:
        raise FloatingPointError(
            f"step {step}: {', '.join(bad)} is not finite. The last checkpoint is from before; "
            "lower the learning rate or the clipping norm of that group."
        )


def report(pending, writer, bar, config, began) -> None:
    """Writes the metrics of an earlier step."""
    if pending is None:
        return
    step, metrics = pending
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    guard(values, step)
    rate = bar.format_dict["rate"] or (step - bar.initial) / max(time.time() - began, 1e-9)
    values["clips_per_second"] = rate * values.get("clips", config.batch_size)
    if writer:
        writer.write(step, values)
    losses = {n.removeprefix("loss/"): f"{v:.4g}" for n, v in values.items() if "loss/" in n}
    bar.set_postfix(losses | {"clips/s": f"{values['clips_per_second']:.3g}"}, refresh=False)


def finish(stage, state, mesh, workdir, seconds: float, compilations: int) -> None:
    """Exports the averaged parameters and marks the workdir as done."""
    params = sharding.to_host({**state.params, **state.ema}, mesh)
    kind, description, tree, notes = stage.export(params)
    if jax.process_index() == 0:
        save_export(workdir / "export", kind, description, tree, notes)
        workdirs.write_json(
            workdir / "done.json",
            {
                "step": int(state.step),
                "seconds_of_last_run": round(seconds, 1),
                "compiled_steps": compilations,
            },
        )
