"""The paper's experiments, `runlocal`: five steps of each on real clips, all losses and metrics."""

from pathlib import Path

import jax
import numpy as np
import pytest
from needs import needs_assets

from evatok_jax import train as training
from evatok_jax.checkpoint import Checkpoints
from evatok_jax.config import load_config
from evatok_jax.main import start_job
from evatok_jax.stages.stage import load_stage
from evatok_jax.writers import read_metrics

# What each experiment stands on: name -> its arguments, in an order in which they can be run.
# "@x" is the export of x, "#x" its table.
CHAIN = {
    "webvid_proxy": {},
    "webvid_scores": {"tokenizer": "@webvid_proxy"},
    "webvid_router": {"scores": "#webvid_scores"},
    "k600_tokens": {"tokenizer": "@webvid_proxy", "router": "@webvid_router"},
    "gpt_l_plus_k600": {"tokenizer": "@webvid_proxy", "tokens": "#k600_tokens"},
}
REST = {
    "webvid_routed_videomae": {"router": "@webvid_router"},
    "webvid_routed": {"router": "@webvid_router"},
    "webvid_uniform": {},
    "webvid_uniform_videomae": {},
    "ucf_k600_proxy": {},
    "ucf_k600_routed": {"router": "@webvid_router"},
    "ucf_k600_uniform": {},
    "ucf_k600_uniform_neither": {},
    "ucf_k600_uniform_no_videomae": {},
    "ucf_k600_uniform_no_vjepa2": {},
    "gpt_b_k600": CHAIN["gpt_l_plus_k600"],
    "gpt_l_k600": CHAIN["gpt_l_plus_k600"],
    "tokens": {"tokenizer": "@webvid_routed_videomae"},
    "gpt_b_ucf": {"tokenizer": "@webvid_routed_videomae", "tokens": "#tokens"},
    "gpt_l_ucf": {"tokenizer": "@webvid_routed_videomae", "tokens": "#tokens"},
    "gpt_l_plus_ucf": {"tokenizer": "@webvid_routed_videomae", "tokens": "#tokens"},
    "imagenet_proxy": {},
    "imagenet_scores": {"tokenizer": "@imagenet_proxy"},
    "imagenet_router": {"scores": "#imagenet_scores"},
    "imagenet_routed": {"router": "@imagenet_router"},
    "imagenet_uniform": {},
    "tokens.images": {"tokenizer": "@imagenet_routed"},
    "gpt_b_imagenet": {"tokenizer": "@imagenet_routed", "tokens": "#tokens.images"},
}
ADVERSARY = {"adversarial", *(f"adversary/{n}" for n in ("real", "fake", "accuracy", "lecam"))}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("experiments")


def run(name: str, needs: dict, home):
    """Runs one experiment, unless it has been; its config."""
    places = {"@": "export", "#": "table"}
    given = {key: home / value[1:] / places[value[0]] for key, value in needs.items()}
    if not name.startswith("gpt"):
        given["data"] = home / "data" / "clips"
    if not name.startswith("tokens"):
        given["runlocal"] = "true"
    spec = ",".join(f"{key}={value}" for key, value in given.items())
    config = load_config(f"configs/{name.partition('.')[0]}.py:{spec}")
    if name in CHAIN and "adversary" in config:
        config.adversary.every = 1  # of the two kinds of steps the short suite compiles one
    start_job(config, home / name)
    return config


def check(name: str, config, home):
    """Five steps, every number finite, and the metrics that the config promises."""
    if config.job != "train":
        return
    check_spec(load_stage(config))
    rows = read_metrics(home / name)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    wanted = set()
    if "adversary" in config:
        wanted |= {"l1", "lpips", "codebook", "commitment", "entropy", "psnr", "code_usage_window"}
        wanted |= {"alignment"} if config.alignment.weight else set()
        wanted |= ADVERSARY if config.adversary.kind != "none" else set()
    wanted |= {f"grad_norm/{group}" for group in config.optim}
    assert wanted <= set(rows[-1])  # the fifth, in which the discriminator learns


def check_spec(stage):
    """What is compiled without data is what the data are."""
    batch, size = stage.prepare(stage.load_frozen(), next(stage.batches(0)), jax.random.key(0))
    spec = stage.batch_spec()
    assert spec == jax.eval_shape(lambda x: x, {name: batch[name] for name in spec})
    assert size() in stage.static_sizes()
    assert jax.eval_shape(lambda x: x, stage.load_frozen()) == stage.frozen_spec()


@needs_assets("samples", "lpips_vgg", "lpips_alex")
def test_one_experiment_of_each_stage(home):
    """Proxy, scores, router, tokens and generator, each on what those before have made."""
    start_job(load_config("configs/data.py:source=samples"), home / "data")
    for name, needs in CHAIN.items():
        check(name, run(name, needs, home), home)


@pytest.mark.all
@needs_assets("samples", "lpips_vgg")
@pytest.mark.parametrize("name", ["webvid_proxy", "webvid_uniform_videomae"])
def test_stopped_between_two_moves_of_the_discriminator(home, tmp_path, monkeypatch, name):
    """The run ends to the bit like one that never stopped, LeCam's averages and all."""
    data = home / "data"
    start_job(load_config("configs/data.py:source=samples"), data)
    config = load_config(f"configs/{name}.py:data={data / 'clips'},runlocal,steps=8")
    config.adversary.every, config.run.log_every = 3, 1
    ends = []
    for stops, workdir in (((), tmp_path / "straight"), ((2, 5), tmp_path / "stopped")):
        for at in stops:
            stop = type("Stop", (), {"__call__": lambda self, step, at=at: step == at})
            monkeypatch.setattr(training, "Interrupt", stop)
            start_job(config, workdir)
            monkeypatch.undo()
        start_job(config, workdir)
        ends.append(jax.tree.leaves(Checkpoints(workdir).restore(8, state_shapes(config))))
    for a, b in zip(*ends, strict=True):
        np.testing.assert_array_equal(a, b)
    own = ("clips_per_second", "compiled_steps")  # of a process, not of the run
    moves = [{k: v for k, v in row.items() if k not in own} for row in logs(tmp_path)]
    assert moves[:8] == moves[8:]
    assert [row["step"] for row in moves[:8] if "adversary/lecam" in row] == [3, 6]


def state_shapes(config):
    """Of the whole state of a run."""
    stage = load_stage(config)
    optimizers, batch = stage.optimizers(config.run.steps), next(stage.batches(0))
    return jax.eval_shape(
        lambda batch: training.init_state(stage, optimizers, jax.random.key(0), batch), batch
    )


def logs(folder):
    return [row for name in ("straight", "stopped") for row in read_metrics(folder / name)]


@pytest.mark.all
@needs_assets("samples", "lpips_vgg", "lpips_alex")
@pytest.mark.parametrize("name", REST)
def test_every_other_experiment(home, name):
    """After the test above, whose exports these stand on."""
    check(name, run(name, REST[name], home), home)


def test_every_experiment_is_among_them():
    configs = Path(__file__).parent.parent / "configs"
    found = {
        path.stem for path in configs.glob("*.py") if "evatok_jax.experiments" in path.read_text()
    }
    assert found == (CHAIN.keys() | REST.keys()) - {"tokens", "tokens.images"}
