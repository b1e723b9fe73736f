"""The job that builds a data set, so that a pipeline can begin with it."""

from pathlib import Path

from ml_collections import ConfigDict

from evatok_jax import workdir as workdirs
from evatok_jax.data.builders import source
from evatok_jax.data.builders.build import build


def build_dataset(config: ConfigDict, workdir: Path) -> None:
    """Builds `config.source` over the folder `config.videos` into workdir/clips."""
    workdirs.claim(workdir, config)
    videos = source(config.source, config.videos or None)
    manifest = build(videos, workdir / "clips", shards=config.shards, max_bad=config.max_bad)
    done = {"splits": manifest["splits"], "skipped": sum(manifest["skipped"].values())}
    workdirs.write_json(workdir / "done.json", done)
