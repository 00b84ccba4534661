"""The report of a study: one page that someone who has seen nothing else can read, its figures and their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import benches, evaluated, page, sections, sections_laws, sections_speed, style
from analysis.collect import update_tables
from analysis.figures import study_pictures
from analysis.figures_compare import exponents, loss_to_accuracy, rollout
from analysis.figures_laws import VARIABLES, laws
from analysis.figures_planes import contours, isoflop
from analysis.figures_speed import resources, scaling_efficiency, speed, step_parts, step_rates
from analysis.published import read_published
from analysis.sections_laws import Laws, fit_study
from analysis.style import Picture
from analysis.tables import Tables, read_tables
from analysis.throughput import both_efficiencies, speeds
from analysis.tuning import tuning_section
from scaling.files import write_text
from scaling.rundir import REPORT, STUDY, TABLES

INDEX = "index.html"
FIGURES = "figures"
THROUGHPUT = "throughput"


@dataclass(frozen=True)
class Wishes:
    """What a report may be asked for: benches' files, published numbers, a target accuracy, a price per GPU-hour."""

    benches: Sequence[Path] = ()
    published: Path | None = None
    target: float | None = None
    price: float = 0.0


@dataclass(frozen=True)
class Content:
    """Everything a page is made of."""

    tables: Tables
    laws: Laws
    speeds: pd.DataFrame
    published: pd.DataFrame | None
    efficiency: pd.DataFrame
    steps: pd.DataFrame
    wishes: Wishes
    tuning: str


def write_report(source: Path, output: Path | None = None, workers: int = 1, wishes: Wishes | None = None) -> Path:
    """Writes index.html and figures/ and returns the page's path.

    `source` is a study folder, which is collected first into its tables/, or a folder that `collect` wrote. The
    default output is report/ inside `source`.
    """
    wishes = wishes or Wishes()
    reports = benches.read_benches(wishes.benches)
    published = read_published(wishes.published) if wishes.published else None
    tables = update_tables(source, source / TABLES, workers) if (source / STUDY).is_file() else read_tables(source)
    rates = speeds(tables)
    content = Content(
        tables, fit_study(tables), rates, published, _efficiency(rates, reports), benches.steps(reports), wishes,
        tuning_section(source),
    )  # fmt: skip
    output = output or source / REPORT
    pictures = draw(content)
    for picture in pictures:
        picture.save(output / FIGURES)
    write_text(output / INDEX, render(content, pictures))
    return output / INDEX


def _efficiency(rates: pd.DataFrame, reports: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Of the runs and of the benches together."""
    parts = [both_efficiencies(rates), benches.efficiencies(reports)]
    kept = [part for part in parts if len(part)]
    return pd.concat(kept, ignore_index=True) if kept else parts[1]


def draw(content: Content) -> list[Picture]:
    """Every picture that the content allows."""
    tables, found = content.tables, content.laws
    provisional = sections.unfinished(tables) > 0
    with style.drawing():
        drawn = [
            *(laws(fits, against, provisional) for against, fits in found.fits.items()),
            *(exponents(found.fits[against], found.differences[against], against) for against in VARIABLES),
            isoflop(tables),
            contours(found.planes),
            rollout(tables, found.rollouts),
            loss_to_accuracy(tables),
            speed(tables),
            step_parts(tables),
            resources(tables),
            step_rates(content.steps),
            scaling_efficiency(content.efficiency),
        ]
    return study_pictures(tables, content.published) + [picture for picture in drawn if picture is not None]


def render(content: Content, pictures: list[Picture]) -> str:
    """The page as HTML: accuracy first, or, of a study of throughput, speed first."""
    by_name = {picture.name: picture for picture in pictures}

    def drawn(*names: str) -> str:
        return page.figures([by_name[name] for name in names if name in by_name])

    tables, found, wishes = content.tables, content.laws, content.wishes
    of_accuracy = [
        ("accuracy", "Accuracy", sections.accuracy(tables) + drawn(*(f"accuracy_{name}" for name in VARIABLES))
         + sections.published(content.published)),
        ("ranking", "Ranking", drawn("ranking")),
        *((f"laws-{name}", f"Scaling over {label}", drawn(f"law_{name}", f"exponents_{name}")
           + sections_laws.exponents(found, name)) for name, (_, label) in VARIABLES.items()),
        ("plane", "Size and images together", drawn("contours", "isoflop") + sections_laws.planes(found)),
        ("trust", "How far the laws can be trusted", drawn("rollout") + sections_laws.trust(tables, found)
         + sections_laws.note(found)),
        ("transfer", "Loss and accuracy", drawn("loss_to_accuracy")),
        ("cost", "Cost", drawn("cost", "accuracy_speed")
         + sections_speed.target_cost(tables, wishes.target, wishes.price)),
    ]  # fmt: skip
    of_speed = [
        ("speed", "Speed", drawn("throughput") + sections_speed.speed(tables, content.speeds)),
        (
            "parts",
            "Where the time goes",
            drawn("step_parts") + sections_speed.bench_steps(content.steps) + drawn("step_rates"),
        ),
        ("resources", "MFU and memory", drawn("resources")),
        ("efficiency", "More devices", drawn("efficiency") + sections_speed.efficiency(content.efficiency)),
    ]
    parts = [
        ("trained", "What was trained", sections.trained(tables)),
        *(of_speed + of_accuracy if is_throughput(tables) else of_accuracy + of_speed),
        ("losses", "Loss curves", drawn("loss_pretraining", "loss_finetuning")),
        *evaluated.parts(tables),
        ("tuning", "Tuning", content.tuning),
        ("runs", "Runs and settings", sections.runs_and_settings(tables)),
        ("left-out", "What was left out", sections.left_out(tables)),
    ]
    if not pictures:
        parts.insert(1, ("pictures", "Pictures", "<p>No picture can be drawn yet.</p>"))
    studies = sorted(tables.runs["study"].dropna().unique()) or sorted(tables.excluded["study"].dropna().unique())
    title = f"Study {studies[0]}" if len(studies) == 1 else f"{len(studies)} studies"
    return page.page(f"Throughput: {title[0].lower()}{title[1:]}" if is_throughput(tables) else title, _lead(tables),
                     _facts(tables), [part for part in parts if part[2]])  # fmt: skip


def is_throughput(tables: Tables) -> bool:
    """Whether every run was made to measure speed."""
    purpose = tables.runs.get("config.purpose")
    return purpose is not None and len(purpose) > 0 and bool((purpose == THROUGHPUT).all())


def _lead(tables: Tables) -> str:
    runs = tables.runs
    sizes = style.size_order(runs[runs["size"].notna()])
    strategies = [style.strategy_name(name) for name in style.strategy_order(runs["strategy"].dropna())]
    data = ", ".join(sorted(runs["data"].dropna().unique())) or "its data set"
    if not strategies:
        return "No run of this study can be read yet."
    shown = (
        "how fast the training ran and where its time went"
        if is_throughput(tables)
        else "how accurate they became, what the training cost, and how fast it ran"
    )
    return escape(
        f"Image classifiers of {sections.number_of(len(sizes), 'size')} were trained on {data} in "
        f"{sections.number_of(len(strategies), 'way')}: {sections.listing(strategies)}. This page shows {shown}."
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
    seeds = tables.runs["seed"].nunique()
    if seeds:
        facts.append((str(seeds), "random seeds a cell" if seeds > 1 else "random seed a cell"))
    seconds = tables.completed["gpu_seconds"].sum()
    if seconds > 0:
        facts.append((page.duration(seconds), "device time"))
    return facts
