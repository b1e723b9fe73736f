"""The report: one HTML file of everything that a pipeline measured, to look at on any screen.

The page holds its style and pictures itself, runs no script and asks for nothing: its content
security policy forbids it to.
"""

from datetime import UTC, datetime
from pathlib import Path

from evatok_jax.atomic import replacing
from evatok_jax.report.markup import Html, document, join, tag
from evatok_jax.report.quality import curves_section, final_section, headline
from evatok_jax.report.results import Results, read_results
from evatok_jax.report.sections import (
    generation_section,
    protocol_section,
    strips_section,
    timing_section,
    training_section,
)

SECTIONS = (
    ("curves", "Quality and cost", curves_section),
    ("final", "Final tokenizers", final_section),
    ("strips", "Reconstructions", strips_section),
    ("generated", "Generated clips", generation_section),
    ("training", "Training", training_section),
    ("time", "Where the seconds went", timing_section),
    ("protocols", "Protocols", protocol_section),
)


def write_report(workdir: Path, out: Path | None = None) -> Path:
    """Writes the report of a pipeline's workdir and returns its path.

    Parts of the pipeline that have not run yet are named as such, so a report can be asked for at
    any time. An older report is replaced in one move.

    Args:
      workdir: folder with one folder a job, or that of a single job.
      out: the HTML file; `workdir/report.html` by default.

    Raises FileNotFoundError if there is no such folder, and ValueError, naming the file, for
    content that is not what evaluation writes.
    """
    workdir = Path(workdir)
    out = workdir / "report.html" if out is None else Path(out)
    page = render(read_results(workdir))
    with replacing(out, "w") as file:
        file.write(page)
    return out


def render(run: Results) -> str:
    """The page as text."""
    name = run.workdir.resolve().name
    top = _masthead(run, name), headline(run), _care(run), _jobs(run)
    sections = [(key, title, make(run)) for key, title, make in SECTIONS]
    return document(f"EVATok report: {name}", top, sections)


def _masthead(run: Results, name: str) -> Html:
    """What this run is, in one line."""
    facts = []
    for job in run.jobs:
        model, data = job.config.get("model") or {}, job.config.get("data") or {}
        if job.kind == "tokenizer" or (not facts and model.get("geometry")):
            path = str(data.get("path", "")).rstrip("/").rpartition("/")[2]
            facts = [
                f"data {path}" if path else None,
                f"geometry {model['geometry']}" if "geometry" in model else None,
                f"size {model['size']}" if "size" in model else None,
                f"seed {job.config['seed']}" if "seed" in job.config else None,
            ]
            break
    times = [
        path.stat().st_mtime
        for path in (*run.workdir.glob("*/*.json*"), *run.workdir.glob("*.json*"))
    ]
    if times:
        when = datetime.fromtimestamp(max(times), UTC)
        facts.append(f"as of {when:%Y-%m-%d %H:%M} UTC")
    return join(
        tag("p", "EVATok report", class_="kicker"),
        tag("h1", name),
        tag("p", "Video as as few discrete tokens as its content needs.", class_="lead"),
        tag("p", " · ".join(fact for fact in facts if fact), class_="facts"),
    )


def _care(run: Results) -> Html | None:
    """The notes of all protocols, where nobody can miss them."""
    notes = {
        str(note): None
        for evaluation in run.evaluations.values()
        for note in (evaluation.get("protocol") or {}).get("notes", [])
    }
    if not notes:
        return None
    items = tag("ul", (tag("li", note) for note in notes))
    return tag("aside", tag("b", "Read the numbers with care"), items, class_="care")


def _jobs(run: Results) -> Html:
    """Every job and how far it got."""
    if not run.jobs:
        return tag("p", "No job has begun here yet.", class_="missing")
    items = (
        tag(
            "li", job.name, tag("small", job.state), class_="done" if job.done is not None else None
        )
        for job in run.jobs
    )
    return tag("ul", items, class_="jobs")
