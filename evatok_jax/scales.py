"""The pipeline at several scales: which jobs, in which order, with which settings."""

from ml_collections import ConfigDict

from evatok_jax.geometry import geometry
from evatok_jax.names import nearest

SCALES = {
    # For tests: everything is there, nothing is learnt.
    "test": dict(
        geometry="nano",
        tokenizer="tiny",
        router="tiny",
        generator="tiny",
        batch=4,
        strata=1,
        sizes=1,
        proxy_steps=3,
        final_steps=2,
        router_steps=2,
        generator_steps=2,
        router_batch=4,
        generator_batch=1,
        w_q=(1.2,),
        score_windows=(3, 2),
        score_vgg=True,
        level=16,
        samples=2,
        final_windows=0,
    ),
    # A quarter of an hour on two cores; docs/quickstart.md has the table.
    "quick": dict(
        geometry="nano",
        tokenizer="tiny",
        router="tiny",
        generator="tiny",
        batch=8,
        strata=3,
        sizes=2,
        proxy_steps=540,
        final_steps=260,
        router_steps=100,
        generator_steps=80,
        router_batch=16,
        generator_batch=4,
        w_q=(1.6,),
        score_windows=(0, 0),
        score_vgg=False,
        level=16,
        samples=8,
        final_windows=0,
    ),
    "mini64": dict(
        geometry="mini64",
        tokenizer="mini",
        router="tiny",
        generator="mini",
        batch=4,
        strata=5,
        sizes=8,
        proxy_steps=3600,
        final_steps=500,
        router_steps=300,
        generator_steps=400,
        router_batch=16,
        generator_batch=2,
        w_q=(0.8, 1.2, 1.6, 2.0),
        score_windows=(288, 64),
        score_vgg=True,
        level=32,
        samples=128,
        final_windows=120,
    ),
}


CLASSES = {"samples": 1, "ucf_mini": 11, "ucf101": 101}


def pipeline_jobs(scale: str, source: str, videos: str, classes: int = 0) -> list[dict]:
    """The jobs in order: {"name", "config", "set"}; {workdir} stands for the pipeline's folder.

    Raises ValueError for an unknown scale, or where the classes of a source are not known.
    """
    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r}: {nearest(scale, SCALES)}")
    classes = classes or CLASSES.get(source, 0)
    if not classes:
        raise ValueError(f"give classes=N: how many folders of source={source!r} are classes")
    s = ConfigDict(SCALES[scale])
    data = "{workdir}/data/clips"
    proxy, final = "{workdir}/proxy/export", "{workdir}/final/export"
    common = f"data={data},geometry={s.geometry}"
    train = f"{common},size={s.tokenizer},batch={s.batch},lr=1.5e-3"
    routers = [f"router-{w_q}" for w_q in s.w_q]
    # The paper's weights decide the final tokenizer's lengths, or the only ones that there are.
    chosen = 1.2 if 1.2 in s.w_q else s.w_q[0]
    jobs = []

    def job(name: str, config: str, **settings):
        jobs.append({"name": name, "config": f"configs/{config}", "set": settings})

    job("data", f"data.py:source={source},videos={videos}")
    # Every static size is a compilation, of 20 seconds on two cores.
    sizes = {"lengths.multiple": geometry(s.geometry).max_length // s.sizes}
    job("proxy", f"proxy.py:{train},strata={s.strata},steps={s.proxy_steps}", **sizes)
    searches = [
        (split, "alex", n) for split, n in zip(("train", "test"), s.score_windows, strict=True)
    ]
    if s.score_vgg:  # what the search finds when it looks for what the page shows
        searches.append(("test", "vgg", s.score_windows[1]))
    for split, net, windows in searches:
        job(
            f"scores-{split}" + "-vgg" * (net == "vgg"),
            f"scores.py:data={data},split={split},tokenizer={proxy},windows={windows},net={net}",
        )
    for w_q, name in zip(s.w_q, routers, strict=True):
        job(
            name,
            f"router.py:{common},scores={{workdir}}/scores-train/table,w_q={w_q},size={s.router},"
            f"batch={s.router_batch},steps={s.router_steps},lr=5e-4,temperature=0.25",
        )
    router = f"{{workdir}}/router-{chosen}/export"
    # From the proxy, not from scratch as in the paper: minutes must do.
    start = f"{train},steps={s.final_steps},init_from={proxy}"
    job("final", f"final.py:{start},router={router}", **sizes)
    job("uniform", f"final.py:{start},level={s.level}", **sizes)
    for split in ("train", "test"):
        flip = "true" if split == "train" else "false"
        job(f"tokens-{split}", f"tokens.py:data={data},split={split},tokenizer={final},flip={flip}")
    job(
        "generator",
        f"generator.py:tokenizer={final},tokens={{workdir}}/tokens-train/table,classes={classes},"
        f"size={s.generator},batch={s.generator_batch},steps={s.generator_steps},lr=1e-3",
    )
    job(
        "evaluate-curves",
        f"evaluate.py:task=curves,data={data}",
        tokenizer=proxy,
        w_q=s.w_q,
        routers=tuple(f"{{workdir}}/{name}/export" for name in routers),
        scores_train="{workdir}/scores-train/table",
        scores_test="{workdir}/scores-test/table",
        scores_vgg="{workdir}/scores-test-vgg/table" if s.score_vgg else "",
    )
    job(
        "evaluate-final",
        f"evaluate.py:task=final,data={data},windows={s.final_windows}",
        tokenizer=final,
        names=("final, routed", "uniform twin"),
        exports=(final, "{workdir}/uniform/export"),
        fixed=(0, s.level),
        router=router,
        tokens_train="{workdir}/tokens-train/table",
    )
    job(
        "evaluate-generation",
        f"evaluate.py:task=generation,data={data},split=train",
        generator="{workdir}/generator/export",
        tokens_train="{workdir}/tokens-train/table",
        tokens_test="{workdir}/tokens-test/table",
        samples=s.samples,
        fvd=classes > 1,  # file names are no classes worth a gFVD
    )
    return jobs
