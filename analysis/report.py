"""The report of a study: one page that someone who has seen nothing else can read, its figures and their numbers."""

from __future__ import annotations

from html import escape
from pathlib import Path

from analysis import evaluated, page, sections, style
from analysis.collect import update_tables
from analysis.figures import study_pictures
from analysis.figures_laws import VARIABLES, exponents, laws, study_fits
from analysis.style import Picture
from analysis.tables import Tables, read_tables
from analysis.tuning import tuning_section
from scaling.files import write_text
from scaling.rundir import REPORT, STUDY, TABLES

INDEX = "index.html"
FIGURES = "figures"

PICTURES_OF = {
    "accuracy": ("accuracy_parameters", "accuracy_flops"),
    "laws": ("law_parameters", "law_flops", "exponents_parameters", "exponents_flops"),
    "speed": ("throughput",),
    "cost": ("cost",),
    "losses": ("loss_pretraining", "loss_finetuning"),
}


def write_report(source: Path, output: Path | None = None, workers: int = 1) -> Path:
    """Writes index.html and figures/ and returns the page's path.

    `source` is a study folder, which is collected first into its tables/, or a folder that `collect` wrote. The
    default output is report/ inside `source`.
    """
    tables = update_tables(source, source / TABLES, workers) if (source / STUDY).is_file() else read_tables(source)
    output = output or source / REPORT
    fits = {against: study_fits(tables, column) for against, (column, _) in VARIABLES.items()}
    pictures = study_pictures(tables) + law_pictures(fits, provisional=sections.unfinished(tables) > 0)
    for picture in pictures:
        picture.save(output / FIGURES)
    write_text(output / INDEX, render(tables, pictures, fits, tuning_section(source)))
    return output / INDEX


def law_pictures(fits: sections.Fits, provisional: bool) -> list[Picture]:
    """The pictures of the laws that could be fitted."""
    with style.drawing():
        drawn = [laws(found, against, provisional) for against, (found, _) in fits.items()]
        drawn += [exponents(found, against) for against, (found, _) in fits.items()]
    return [picture for picture in drawn if picture is not None]


def render(tables: Tables, pictures: list[Picture], fits: sections.Fits, tuning: str = "") -> str:
    """The page as HTML. `tuning` is the section on what was tuned, where anything was."""
    by_name = {picture.name: picture for picture in pictures}

    def drawn(topic: str) -> str:
        found = [by_name[name] for name in PICTURES_OF[topic] if name in by_name]
        return page.figures(found) if found else "<p>No picture can be drawn yet.</p>"

    studies = sorted(tables.runs["study"].dropna().unique()) or sorted(tables.excluded["study"].dropna().unique())
    parts = [
        ("trained", "What was trained", sections.trained(tables)),
        ("accuracy", "Accuracy", sections.accuracy(tables) + drawn("accuracy")),
        ("laws", "Scaling laws", drawn("laws") + sections.laws(fits)),
        ("cost", "Cost", drawn("cost")),
        ("speed", "Speed", drawn("speed") + sections.speed(tables)),
        ("losses", "Loss curves", drawn("losses")),
        *evaluated.parts(tables),
        *([("tuning", "Tuning", tuning)] if tuning else []),
        ("runs", "Runs and settings", sections.runs_and_settings(tables)),
        ("left-out", "What was left out", sections.left_out(tables)),
    ]
    title = f"Study {studies[0]}" if len(studies) == 1 else f"{len(studies)} studies"
    return page.page(title, _lead(tables), _facts(tables), parts)


def _lead(tables: Tables) -> str:
    runs = tables.runs
    sizes = style.size_order(runs[runs["size"].notna()])
    strategies = [style.strategy_name(name) for name in style.strategy_order(runs["strategy"].dropna())]
    data = ", ".join(sorted(runs["data"].dropna().unique())) or "its data set"
    if not strategies:
        return "No run of this study can be read yet."
    return escape(
        f"Image classifiers of {sections.number_of(len(sizes), 'size')} were trained on {data} in "
        f"{sections.number_of(len(strategies), 'way')}: {sections.listing(strategies)}. "
        "This page shows how accurate they became, what the training cost, and how fast it ran."
    )


def _facts(tables: Tables) -> list[tuple[str, str]]:
    done = len(tables.completed)
    planned = done + sections.unfinished(tables)
    facts = [(f"{done} of {planned}", "runs completed"), (str(tables.runs["size"].nunique()), "model sizes")]
    finished = tables.completed
    parameters = finished.loc[finished["top1"].notna(), "parameters"].dropna()
    if len(parameters):
        span = (page.count(parameters.min()), page.count(parameters.max()))
        facts.append((" – ".join(dict.fromkeys(span)), "parameters"))
    facts.append((str(tables.runs["seed"].nunique()), "random seeds a cell" if tables.runs["seed"].nunique() > 1 else
                  "random seed a cell"))  # fmt: skip
    seconds = tables.completed["gpu_seconds"].sum()
    if seconds > 0:
        facts.append((page.duration(seconds), "device time"))
    return facts
