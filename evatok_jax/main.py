"""The door for jobs.

python -m evatok_jax.main --config=configs/proxy.py:data=DIR,size=mini --workdir=runs/proxy
"""

import importlib
import logging as pylogging
import os
import sys
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict

from evatok_jax.config import load_config, nearest, override

CONFIG = flags.DEFINE_string("config", None, "configs/X.py:key=value,key=value", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "folder of this job", required=True)
SET = flags.DEFINE_multi_string("set", [], "section.key=value, on top of the config")

# A config names its job; a job is a function of (config, workdir).
JOBS = {
    "data": "evatok_jax.data.job:build_dataset",
    "train": "evatok_jax.train:train",
    "curate": "evatok_jax.curate:curate",
    "evaluate": "evatok_jax.evaluate:evaluate",
    "pipeline": "evatok_jax.pipeline:pipeline",
}


def quiet_libraries() -> None:
    """Libraries speak from warnings on; what this package logs stays."""
    own = logging.get_absl_logger()
    own.addFilter(lambda record: record.levelno > pylogging.INFO or "evatok_jax" in record.pathname)
    for name in ("jax", "orbax", "tensorflow_datasets"):
        pylogging.getLogger(name).setLevel(pylogging.WARNING)


def connect() -> None:
    """Joins the job's other processes where the environment says that there are some.

    TPU pods and the schedulers that JAX knows need nothing more; elsewhere each process gets
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    """
    if not {"JAX_COORDINATOR_ADDRESS", "TPU_WORKER_HOSTNAMES"} & set(os.environ):
        return
    place = (os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    count, index = (None if value is None else int(value) for value in place)
    jax.distributed.initialize(num_processes=count, process_id=index)


def start_job(config: ConfigDict, workdir: Path) -> None:
    """Runs the job that a config names, to its end; ValueError for one that is not known."""
    if config.job not in JOBS:
        raise ValueError(f"unknown job {config.job!r}: {nearest(config.job, JOBS)}")
    module, _, name = JOBS[config.job].partition(":")
    getattr(importlib.import_module(module), name)(config, workdir)


def run(argv) -> None:
    """Reads the config and runs its job; user errors end in one message and exit code 2."""
    del argv
    logging.set_verbosity(logging.INFO)
    quiet_libraries()
    connect()
    try:
        config = load_config(CONFIG.value)
        override(config, SET.value)
        start_job(config, Path(WORKDIR.value))
    except (ValueError, FileNotFoundError, FloatingPointError, ChildProcessError) as error:
        logging.debug("", exc_info=error)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def main() -> None:
    """Entry point."""
    app.run(run)


if __name__ == "__main__":
    main()
