"""Configs are strict: unknown keys and wrong types name what was meant; every config builds."""

from pathlib import Path

import pytest

from evatok_jax.config import differences, load_config, override, parse_arguments
from evatok_jax.describe import describe_config

CONFIGS = Path(__file__).parent.parent / "configs"
NAMES = sorted(p.stem for p in CONFIGS.glob("*.py") if p.stem[0] != "_")
TRAINED = [name for name in NAMES if load_config(f"configs/{name}.py").job == "train"]


def test_unknown_argument_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown config argument 'sise': did you mean 'size'"):
        parse_arguments("sise=L", size="S", steps=3)


def test_values_take_the_type_of_the_default():
    args = parse_arguments("steps=5,fast", size="S", steps=3, fast=False, lr=0.1)
    assert (args.steps, args.fast, args.lr, args.size) == (5, True, 0.1, "S")
    with pytest.raises(ValueError, match="steps=many: expected a value of type int"):
        parse_arguments("steps=many", steps=3)


def test_override_is_strict():
    config = load_config("configs/proxy.py:size=tiny,geometry=nano")
    override(config, ["loss.l1=2.5", "run.steps=7"])
    assert config.loss.l1 == 2.5 and config.run.steps == 7
    with pytest.raises(ValueError, match="did you mean 'lpips'"):
        override(config, ["loss.lpip=1"])
    with pytest.raises(ValueError, match="expected a value of type"):
        override(config, ["run.steps=soon"])


def test_only_shipped_names_fall_back_to_the_shipped_configs(tmp_path, monkeypatch):
    """From any folder; a file that is missing in a folder of one's own is missing."""
    monkeypatch.chdir(tmp_path)
    for path in ("configs/proxy.py", "./configs/proxy.py", "proxy.py"):
        assert load_config(path).name == "proxy"
    for path in ("mine/proxy.py", f"{tmp_path}/configs/proxy.py", "../configs/proxy.py"):
        with pytest.raises(FileNotFoundError, match="no config file"):
            load_config(path)


def test_unknown_geometry_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'mini64'"):
        load_config("configs/proxy.py:geometry=mini46")


def test_unknown_config_lists_the_known():
    with pytest.raises(FileNotFoundError, match="did you mean 'proxy'"):
        load_config("configs/proxi.py")


def test_differences_name_every_leaf():
    old, new = {"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3, "d": 4}}
    assert differences(old, new) == ["b.c: 2 -> 3", "b.d: (absent) -> 4"]


@pytest.mark.parametrize("name", NAMES)
def test_every_config_loads(name):
    """Every config file builds with its defaults, and says what to run in its docstring."""
    config = load_config(f"configs/{name}.py")
    assert config.job and config.name
    assert "python -m evatok_jax.main" in (CONFIGS / f"{name}.py").read_text() or name == "evaluate"


# Parameters in millions, by the paper or by the arithmetic of its ancestors' shapes.
SIZES = {"tokenizer": 144.3, "router": 20.2, "GPT-B": 99.2, "GPT-L": 327.3, "GPT-L-plus": 633.3}
FROZEN = {"lpips": 14.7, "videomae": 87.4, "vjepa2": 303.9, "dinov3": 85.7, "router": 20.2}
# One block of images: fewer positions, GigaTok's CNN (its 232M count phi's 14.2M too), 8 levels.
IMAGES = {"tokenizer": 218.6, "router": 19.4, "GPT-B": 111.3}


@pytest.mark.parametrize("name", TRAINED)
def test_full_size_builds_without_weights(name):
    """The paper's sizes, from the default arguments, with no file at hand."""
    config = load_config(f"configs/{name}.py")
    info = describe_config(config)
    images = "imagenet" in name
    assert (info["assignments"], info["longest"]) == ((8, 512) if images else (625, 2048))
    (group,) = info["parameters"].keys() & {"tokenizer", "router", "generator"}
    wanted = (IMAGES if images else SIZES)[config.model.size if group == "generator" else group]
    # UCF + K600 has half the codebook, frame prediction has positions for the given frames.
    assert info["parameters"][group] / 1e6 == pytest.approx(wanted, rel=5e-3)
    for network, count in info["frozen"].items():
        own = IMAGES if images and network == "router" else FROZEN
        assert count / 1e6 == pytest.approx(own[network], rel=5e-3)
