"""The pipeline: jobs one after another, each in a process and a folder of its own.

A job that is done is not run again and one that was interrupted continues, so a pipeline that was
stopped is simply started again. At the end stand a table of seconds and the report.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ml_collections import ConfigDict

from evatok_jax import workdir as workdirs
from evatok_jax.report import write_report


def pipeline(config: ConfigDict, workdir: Path) -> None:
    """Runs the jobs that the config lists; raises ChildProcessError where one fails."""
    workdir = workdir.resolve()  # the jobs' configs name paths in it, however it is spelt today
    workdirs.claim(workdir, config)
    timing = workdir / "timing.json"
    seconds = seconds_before() | {row["name"]: row["seconds"] for row in read_timing(timing)}
    for number, job in enumerate(config.jobs, 1):
        folder = workdir / job["name"]
        if workdirs.finished(folder) is None:
            print(f"[{number}/{len(config.jobs)}] {job['name']}", flush=True)
            began = time.time()
            ended = run(job, folder, workdir)
            seconds[job["name"]] = seconds.get(job["name"], 0.0) + time.time() - began
            rows = [{"name": n, "seconds": round(s, 1)} for n, s in seconds.items()]
            rows = [row | {"status": "done"} for row in rows]
            rows[-1]["status"] = "done" if ended else "stopped"
            workdirs.write_json(timing, rows)
            if not ended:
                print("stopped; start the same command again to continue", flush=True)
                return
    workdirs.write_json(workdir / "done.json", {"jobs": len(config.jobs)})
    began = time.time()
    page = write_report(workdir)
    seconds["report"] = time.time() - began
    print(table(seconds))
    print(f"report: {page}")


def run(job, folder: Path, workdir: Path) -> bool:
    """One job in a process of its own; False where it was asked to stop before its end.

    Raises ChildProcessError where it fails.
    """

    def fill(value):
        if isinstance(value, str):
            return value.replace("{workdir}", str(workdir))
        return [fill(v) for v in value] if isinstance(value, (tuple, list)) else value

    command = [sys.executable, "-m", "evatok_jax.main"]
    command += [f"--config={fill(job['config'])}", f"--workdir={folder}"]
    command += [f"--set={key}={json.dumps(fill(value))}" for key, value in job["set"].items()]
    # Jobs share many programs (metric networks, encoders): what one compiled, the next one loads.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(workdir / "compiled")}
    job_process = subprocess.Popen(command, env=cache | os.environ)
    asked = False

    def stop(*_):
        """Jobs that learn save when they are asked to stop: pass it on, and wait for them."""
        nonlocal asked
        asked = True
        job_process.terminate()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        code = job_process.wait()
    except KeyboardInterrupt:  # the terminal has told the job as well
        asked, code = True, job_process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
    if code and not asked:
        raise ChildProcessError(
            f"job {job['name']!r} ended with {code}; its message is above. Start the same command "
            "again to continue after it is mended"
        )
    return workdirs.finished(folder) is not None


def seconds_before() -> dict[str, float]:
    """What the launch script did before, from the environment: "install=60 assets=20"."""
    parts = os.environ.get("EVATOK_BEFORE", "").split()
    return {name: float(value) for name, value in (part.split("=") for part in parts)}


def read_timing(path: Path) -> list[dict]:
    """Seconds by job so far, those of earlier starts included."""
    return workdirs.read_json(path) if path.exists() else []


def table(seconds: dict[str, float]) -> str:
    """Where the seconds went."""
    lines = [f"{name:24s} {value:8.1f} s" for name, value in seconds.items()]
    return "\n".join([*lines, f"{'together':24s} {sum(seconds.values()):8.1f} s"])
