"""The pipeline: jobs one after another, each in a process and a folder of its own.

A job that is done is not run again and one that was interrupted continues, so a pipeline that was
stopped is simply started again. At the end stand a table of seconds and the report.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from ml_collections import ConfigDict

from evatok_jax import workdir as workdirs
from evatok_jax.report import write_report


def pipeline(config: ConfigDict, workdir: Path) -> None:
    """Runs the jobs that the config lists; raises ChildProcessError where one fails."""
    workdirs.claim(workdir, config)
    timing = workdir / "timing.json"
    seconds = {row["name"]: row["seconds"] for row in read_timing(timing)}
    for number, job in enumerate(config.jobs, 1):
        folder = workdir / job["name"]
        if workdirs.finished(folder) is None:
            print(f"[{number}/{len(config.jobs)}] {job['name']}", flush=True)
            began = time.time()
            run(job, folder, workdir)
            seconds[job["name"]] = seconds.get(job["name"], 0.0) + time.time() - began
            rows = [
                {"name": n, "seconds": round(s, 1), "status": "done"} for n, s in seconds.items()
            ]
            workdirs.write_json(timing, rows)
    workdirs.write_json(workdir / "done.json", {"jobs": len(config.jobs)})
    began = time.time()
    page = write_report(workdir)
    seconds["report"] = time.time() - began
    print(table(seconds))
    print(f"report: {page.resolve()}")


def run(job, folder: Path, workdir: Path) -> None:
    """One job in a process of its own; its memory is free again when it ends."""

    def fill(value):
        if isinstance(value, str):
            return value.replace("{workdir}", str(workdir))
        return [fill(v) for v in value] if isinstance(value, (tuple, list)) else value

    command = [sys.executable, "-m", "evatok_jax.main"]
    command += [f"--config={fill(job['config'])}", f"--workdir={folder}"]
    command += [f"--set={key}={json.dumps(fill(value))}" for key, value in job["set"].items()]
    # Jobs share many programs (metric networks, encoders): what one compiled, the next one loads.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(workdir.resolve() / "compiled")}
    ended = subprocess.run(command, check=False, env=cache | os.environ)
    if ended.returncode:
        raise ChildProcessError(
            f"job {job['name']!r} ended with {ended.returncode}; its message is above. Start the "
            "same command again to continue after it is mended"
        )
    if workdirs.finished(folder) is None:
        raise ChildProcessError(f"job {job['name']!r} was stopped; start again to continue")


def read_timing(path: Path) -> list[dict]:
    """Seconds by job so far, those of earlier starts included."""
    return workdirs.read_json(path) if path.exists() else []


def table(seconds: dict[str, float]) -> str:
    """Where the seconds went."""
    lines = [f"{name:24s} {value:8.1f} s" for name, value in seconds.items()]
    return "\n".join([*lines, f"{'together':24s} {sum(seconds.values()):8.1f} s"])
