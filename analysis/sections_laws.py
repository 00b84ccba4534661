"""What the report says of laws: exponents, differences, crossings, forms, and how far a law could be trusted."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from html import escape

import pandas as pd

from analysis import page, style
from analysis.compare import choose_form, find_crossing
from analysis.figures_compare import differences, rollouts
from analysis.figures_laws import VARIABLES, study_fits
from analysis.figures_planes import ERROR, along, finetuned, plane_fits
from analysis.fit import Fit
from analysis.page import Column
from analysis.sections import listing
from analysis.tables import Tables

FORMS = ("power", "power-floor", "m3", "shifted-power", "m4", "broken-power")
STRATEGY = Column("strategy", "Strategy", page.strategy, numeric=False)
WARNINGS = Column("warnings", "Warnings", page.sentence, numeric=False)
PAIR = (Column("first", "Strategy", page.strategy, False), Column("second", "against", page.strategy, False))
EXPONENT_TABLE = (
    STRATEGY,
    Column("n", "Runs", page.count),
    Column("c", "Exponent", page.number),
    Column("low", "95 % from", page.number),
    Column("high", "to", page.number),
    WARNINGS,
)
DIFFERENCE_TABLE = (
    *PAIR,
    Column("difference", "Difference", page.number),
    Column("low", "95 % from", page.number),
    Column("high", "to", page.number),
    Column("p_holm", "p (Holm)", page.number),
    Column("compared", "Compared", page.text, numeric=False),
)
CROSSING_TABLE = (
    *PAIR,
    Column("at", "Cross at", page.text),
    Column("interval", "95 % interval", page.text),
    Column("searched", "looked for between", page.text),
)
PLANE_TABLE = (
    STRATEGY,
    *(Column(name, name, page.text) for name in ("E", "A", "B", "alpha", "beta", "a")),
)
ROLLOUT_TABLE = (
    STRATEGY,
    Column("fitted_to", "Fitted up to", page.count),
    Column("x", "Predicted at", page.count),
    Column("predicted", "Predicted error", page.percent),
    Column("low", "95 % from", page.percent),
    Column("high", "to", page.percent),
    Column("y", "Measured error", page.percent),
)


@dataclass(frozen=True)
class Laws:
    """Everything fitted for a report, by variable (see VARIABLES) where there are several."""

    fits: dict[str, dict[str, Fit]]
    refused: dict[str, dict[str, str]]
    differences: dict[str, pd.DataFrame]
    planes: dict[str, Fit]
    planes_refused: dict[str, str]
    rollouts: pd.DataFrame


def fit_study(tables: Tables) -> Laws:
    """All fits of the report, each made once."""
    fits, refused, between = {}, {}, {}
    for against, (column, _) in VARIABLES.items():
        fits[against], refused[against] = study_fits(tables, column)
        between[against] = differences(tables, column)
    planes, planes_refused = plane_fits(tables)
    return Laws(fits, refused, between, planes, planes_refused, rollouts(tables))


def exponents(laws: Laws, against: str) -> str:
    """Exponents over one variable, their differences and crossings, and every warning."""
    label, fits = VARIABLES[against][1], laws.fits[against]
    rows = [
        (name, fits[name].n, c.value, *(c.interval_95 or (None, None)), "; ".join(fits[name].warnings) or None)
        for name, c in ((name, fits[name].parameters["c"]) for name in style.strategy_order(fits))
    ]
    parts = []
    if rows:
        table = pd.DataFrame(rows, columns=["strategy", "n", "c", "low", "high", "warnings"])
        parts.append(f"<h3>Exponents over {label}</h3>{page.table(table, EXPONENT_TABLE)}")
    between = laws.differences[against]
    if len(between):
        told = between.assign(
            compared=[f"paired, {row.pairs} pairs" if row.paired else "as independent" for row in between.itertuples()]
        )
        parts.append(f"<h3>Differences of exponents over {label}</h3>{page.table(told, DIFFERENCE_TABLE)}")
    if len(fits) > 1:
        parts.append(_crossings(fits, against))
    reasons = laws.refused[against]
    for why in dict.fromkeys(reasons.values()):
        names = [style.strategy_name(name) for name in style.strategy_order(reasons) if reasons[name] == why]
        parts.append(f"<p>No law over {label} for {escape(listing(names))}: {escape(why)}.</p>")
    return "".join(parts)


def _crossings(fits: dict[str, Fit], against: str) -> str:
    """Where the curves of two strategies meet."""
    number = page.flops if against == "flops" else page.count
    rows = []
    for first, second in itertools.combinations(style.strategy_order(fits), 2):
        if fits[first].units is None or fits[second].units is None:
            continue
        found = find_crossing(fits[first], fits[second])
        searched = " and ".join(number(end) for end in found.searched)
        if found.at is None or found.interval_95 is None:
            rows.append((first, second, "nowhere", "", searched))
            continue
        low, high = found.interval_95
        ends = f"{'below' if low == 0 else number(low)} to {'beyond' if math.isinf(high) else number(high)}"
        rows.append((first, second, number(found.at), "open on both sides" if low == 0 and math.isinf(high) else ends,
                     searched))  # fmt: skip
    if not rows:
        return ""
    table = pd.DataFrame(rows, columns=["first", "second", "at", "interval", "searched"])
    if (table["at"] == "nowhere").all():
        return (
            f"<p>No two strategies cross over {VARIABLES[against][1]}, from the smallest fitted value to ten times the "
            "largest.</p>"
        )
    return f"<h3>Where two strategies cross over {VARIABLES[against][1]}</h3>{page.table(table, CROSSING_TABLE)}"


def planes(laws: Laws) -> str:
    """The parameters of L(N, D) with intervals, or why there is none."""
    parts, rows = [], []
    for name in style.strategy_order(laws.planes):
        fit = laws.planes[name]
        cells = {key: _with_interval(estimate.value, estimate.interval_95) for key, estimate in fit.parameters.items()}
        rows.append({"strategy": name, **cells})
    if rows:
        parts.append(
            "<h3>error = E + A/N<sup>alpha</sup> + B/D<sup>beta</sup>, with 95 % intervals</h3>"
            + page.table(pd.DataFrame(rows), PLANE_TABLE)
        )
    for name in style.strategy_order(laws.planes):
        if laws.planes[name].warnings:
            warnings = "; ".join(laws.planes[name].warnings)
            parts.append(f"<p><b>{escape(style.strategy_name(name))}</b>: {escape(warnings)}.</p>")
    for why in dict.fromkeys(laws.planes_refused.values()):
        names = [style.strategy_name(name) for name, reason in laws.planes_refused.items() if reason == why]
        parts.append(f"<p>No law of size and images together for {escape(listing(sorted(names)))}: {escape(why)}.</p>")
    return "".join(parts)


def _with_interval(value: float, interval: tuple[float, float] | None) -> str:
    low, high = interval or (math.nan, math.nan)
    ends = [page.number(end) if math.isfinite(end) else "open" for end in (low, high)]
    return f"{page.number(value)} ({ends[0]} to {ends[1]})"


def trust(tables: Tables, laws: Laws) -> str:
    """Forms by their error on the largest size, and the rollout's numbers."""
    rows = []
    for name, part in along(finetuned(tables), "parameters").groupby("label"):
        sizes = part["parameters"]
        if sizes.nunique() >= 4:
            held = f"parameters >= {float(sizes.max())!r}"
            rows.append(choose_form(part, FORMS, "parameters", ERROR, held, delta=math.inf).assign(strategy=str(name)))
    parts = [_forms(pd.concat(rows, ignore_index=True))] if rows else []
    if len(laws.rollouts):
        heading = "<h3>Every rollout of the power law over parameters</h3>"
        parts.append(heading + page.table(laws.rollouts, ROLLOUT_TABLE, tall=True))
    return "".join(parts)


def _forms(chosen: pd.DataFrame) -> str:
    """A row a form, a column a strategy, and why forms are missing."""
    errors = chosen.pivot_table(index="law", columns="strategy", values="log_rmse")
    errors = errors.loc[errors.mean(axis=1).sort_values(kind="stable").index].reset_index()
    order = style.strategy_order(chosen["strategy"])
    columns = [Column("law", "Form", page.text, False)]
    columns += [Column(name, style.strategy_name(name), page.percent) for name in order]
    missing = chosen[chosen["refused"] != ""].drop_duplicates("law")
    reasons = [f"{law} (needs {why.split('Valid: ')[-1].split(' for ')[0]})" for law, why in
               zip(missing["law"], missing["refused"], strict=True)]  # fmt: skip
    return (
        "<h3>Which form predicts the largest size</h3><p>Each form was fitted without the largest size and scored on "
        "it: the root mean square of its relative error, best form first. <b>nearest point</b> is the trivial guess, "
        "the largest size that was fitted; a form that does not beat it predicts nothing.</p>"
        + page.table(errors, columns)
        + (f"<p>Not fitted, for want of sizes: {escape(listing(reasons))}.</p>" if reasons else "")
    )


def note(laws: Laws) -> str:
    """How to read the intervals."""
    if not any(laws.fits.values()):
        return ""
    return (
        "<p>Intervals take sizes as the units, not runs: with few sizes they are wide, and that is the finding. "
        "p (Holm) is the probability of a difference this large by chance, corrected for the number of pairs. Paired: "
        "only runs whose size and seed the other strategy has too, so that what a seed does to both cancels.</p>"
    )
