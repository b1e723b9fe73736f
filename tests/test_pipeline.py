"""The pipeline: stopping and continuing; every stage in a row on the embedded clips."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from needs import needs_assets

from evatok_jax.config import load_config
from evatok_jax.pipeline import pipeline
from evatok_jax.workdir import read_json
from evatok_jax.writers import read_metrics

PIPELINE = """
from ml_collections import ConfigDict

def get_config(arg=None):
    job = dict(name="toy", config="{toy}:1000000", set=dict())
    return ConfigDict(dict(job="pipeline", name="pipeline", jobs=[job]))
"""


def test_sigterm_reaches_the_job_and_ends_with_zero(tmp_path):
    """The job saves its state, nothing is left running, and the exit code is 0."""
    tests = Path(__file__).parent
    config = tmp_path / "pipeline.py"
    config.write_text(PIPELINE.format(toy=tests / "toy_stage.py"))
    command = [sys.executable, "-m", "evatok_jax.main", f"--config={config}"]
    command.append(f"--workdir={tmp_path / 'run'}")
    environment = os.environ | {"PYTHONPATH": f"{tests}:{tests.parent}"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    toy = tmp_path / "run" / "toy"
    while len(read_metrics(toy)) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "start the same command again" in out
    last = read_metrics(toy)[-1]["step"]
    assert (toy / "checkpoints" / str(last)).is_dir()


@pytest.mark.all
@needs_assets("samples", "lpips_vgg", "lpips_alex", "i3d")
def test_every_stage_and_the_report(tmp_path):
    """All jobs end, the page is there, and a second start does nothing again."""
    config = load_config("configs/pipeline.py:scale=test")
    pipeline(config, tmp_path)
    curves = read_json(tmp_path / "evaluate-curves" / "curves.json")
    assert {"uniform", "router", "max_proxy_reward", "max_proxy_reward_vgg"} <= set(
        curves["curves"]
    )
    assert 0.0 <= curves["percentiles"]["router"] <= 1.0
    assert len(read_json(tmp_path / "evaluate-final" / "final.json")["rows"]) == 2
    assert (tmp_path / "report.html").stat().st_size > 10_000
    began = time.time()
    pipeline(config, tmp_path)
    assert time.time() - began < 30
