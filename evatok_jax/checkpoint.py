"""Checkpoints: every call to Orbax stands here.

One checkpoint is the whole state of a run: parameters by group, EMA, optimisers, stage state, step,
and the data position as a global record index. Saves are atomic (Orbax writes beside and renames)
and asynchronous; a run that is killed at any moment finds the last complete one.
"""

from pathlib import Path

import jax
from orbax.checkpoint import v1 as ocp


class Checkpoints:
    """The checkpoints of one workdir, or, with `own` false, of another's, only to be read."""

    def __init__(self, workdir: Path, keep: int = 2, own: bool = True):
        self._inner = ocp.training.Checkpointer(
            (workdir / "checkpoints").absolute(),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=own,
        )

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        found = self._inner.latest
        return None if found is None else found.step

    def save(self, step: int, state) -> None:
        """Starts saving a pytree of arrays; returns before it is on disk."""
        if self.latest != step:
            # Forced: when to save is the loop's decision, and a step is never silently left out.
            self._inner.save_checkpointables_async(step, {"state": state}, force=True)

    def restore(self, step: int, like, shardings=None):
        """The state at `step`, in the shapes, types and shardings of `like`.

        Raises ValueError that names what the checkpoint lacks, has too much or holds in another
        shape.
        """
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like)
        found = self._inner.checkpointables_metadata(step).metadata["state"]
        mismatch = compare_trees(like, found)
        if mismatch:
            raise ValueError(
                f"the checkpoint at step {step} in {self._inner.directory} does not fit this "
                "config:\n  " + "\n  ".join(mismatch)
            )
        if shardings is not None:
            like = jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like, shardings
            )
        return self._inner.load_checkpointables(step, {"state": like})["state"]

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._inner.close()


def compare_trees(expected, found) -> list[str]:
    """What is missing, extra or misshapen in `found`, one line each."""

    def flat(tree):
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        names = [
            "/".join(str(getattr(k, "key", getattr(k, "name", k))) for k in p) for p, _ in leaves
        ]
        return dict(zip(names, (leaf for _, leaf in leaves), strict=True))

    want, have = flat(expected), flat(found)
    lines = [f"missing: {name} {want[name].shape}" for name in want if name not in have]
    lines += [f"extra: {name} {tuple(have[name].shape)}" for name in have if name not in want]
    lines += [
        f"misshapen: {name} is {tuple(have[name].shape)}, expected {want[name].shape}"
        for name in want
        if name in have and tuple(have[name].shape) != tuple(want[name].shape)
    ]
    return sorted(lines)
