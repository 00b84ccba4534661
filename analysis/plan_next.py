"""What to run next: the size, images and arm that fitted laws expect to be best for a budget, and how surely."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from analysis.arms import labels
from analysis.fit import Fit, fit_law
from analysis.intervals import Interval, Units, at
from analysis.laws import LAWS, Array, Quantity
from analysis.tables import RUN_COLUMNS
from analysis.variants import without_variants
from scaling.errors import UserError

X = ("parameters", "total_images_seen")
REACH = 3.0
"""How far beyond the largest and smallest fitted size a plan may go: a factor."""
GRID = 61


@dataclass(frozen=True)
class Plan:
    """The best use of a budget by the laws of one arm (see analysis.arms), which `strategy` names.

    Sizes from low to high are not told apart from the best.
    """

    strategy: str
    parameters: float
    images: float
    top1: float
    top1_95: Interval
    parameters_low: float
    parameters_high: float
    extrapolates: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Proposal:
    """One more run, what it costs, and by how much it narrows the interval of the plan's accuracy."""

    parameters: float
    images: float
    gpu_hours: float
    narrows_by: float


@dataclass(frozen=True)
class NextRuns:
    """Plans by expected accuracy, best first; runs that help the best one most; arms without a plan, and why."""

    budget_gpu_hours: float
    plans: list[Plan]
    proposals: list[Proposal]
    refused: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """Plain numbers and text; an open end of an interval is null."""
        result = asdict(self)
        for plan in result["plans"]:
            plan["top1_95"] = [end if np.isfinite(end) else None for end in plan["top1_95"]]
        return result

    def __str__(self) -> str:
        """A summary for people."""
        lines = [f"Budget {self.budget_gpu_hours:g} GPU-hours"]
        for plan in self.plans:
            low, high = plan.top1_95
            lines.append(
                f"  {plan.strategy:<12} {plan.parameters:.3g} parameters, {plan.images:.3g} images: "
                f"top-1 {100 * plan.top1:.1f} % (95 % {100 * low:.1f} to {100 * high:.1f}); sizes from "
                f"{plan.parameters_low:.3g} to {plan.parameters_high:.3g} are not told apart"
                + ("; beyond what was measured" if plan.extrapolates else "")
            )
            lines += [f"    warning: {warning}" for warning in plan.warnings]
        lines += [f"  no plan for {arms}: {why}" for arms, why in _by_reason(self.refused)]
        if self.proposals:
            lines.append(f"Runs of {self.plans[0].strategy} that would narrow its interval most:")
            lines += [
                f"  {run.parameters:.3g} parameters, {run.images:.3g} images, {run.gpu_hours:.3g} GPU-hours: "
                f"narrower by {100 * run.narrows_by:.0f} %"
                for run in self.proposals
            ]
        return "\n".join(lines)


def plan_next(runs: pd.DataFrame, budget: float, delta: float = float("inf")) -> NextRuns:
    """Fits L(N, D) of the finetuned error and the cost of a run for each arm, and spends `budget` GPU-hours.

    `runs` is the collected table; arms and their runs are those of the report's laws. Every arm needs runs of several
    lengths at each size; those without are refused with the reason, and UserError is raised if none is left.
    """
    if not budget > 0:
        raise UserError("budget", budget, "GPU-hours above 0")
    needed = ["strategy", "protocol", "top1_error", "total_gpu_seconds", *X]
    missing = [name for name in needed if name not in runs]
    if missing:
        raise UserError("table", missing[0], f"the collected table of runs, with {', '.join(needed)}")
    plans, fits, refused = [], {}, {}
    for name, part in _by_arm(runs):
        try:
            fit = fit_law(part, "chinchilla", X, "top1_error", delta=delta)
            cost = fit_cost(part)
            plans.append(best_use(name, fit, cost, budget))
            fits[name] = (fit, cost)
        except UserError as error:
            refused[name] = str(error)
    if not plans:
        why = "\n".join(f"{arms}: {reason}" for arms, reason in _by_reason(refused)) or "no finetuned runs"
        valid = "finetuned runs of several sizes and several lengths each"
        raise UserError("table", "no strategy can be planned", valid, why=why)
    plans.sort(key=lambda plan: -plan.top1)
    fit, cost = fits[plans[0].strategy]
    return NextRuns(budget, plans, propose(plans[0], fit, cost, budget), refused)


def _by_arm(runs: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The finetuned runs of each arm; variants, which only a collected table can tell, are left out."""
    if set(RUN_COLUMNS) <= set(runs):
        runs = without_variants(runs[runs["state"] == "completed"])
    runs = runs[runs["protocol"] == "finetune"]
    for label, part in runs.groupby(labels(runs)):
        yield str(label), part


def _by_reason(refused: dict[str, str]) -> list[tuple[str, str]]:
    """The arms that share a reason under one name, with that reason; an arm may have commas in its own name."""
    reasons = dict.fromkeys(refused.values())
    return [("; ".join(arm for arm, why in refused.items() if why == reason), reason) for reason in reasons]


def fit_cost(runs: pd.DataFrame) -> Array:
    """(constant, exponent): GPU-hours = exp(constant) N^exponent D, by least squares in logs."""
    usable = runs[(runs["total_gpu_seconds"] > 0) & (runs[X[0]] > 0) & (runs[X[1]] > 0)]
    if usable[X[0]].nunique() < 2:
        raise UserError("total_gpu_seconds", "too few runs", "the cost of runs of at least two sizes")
    log_n, log_d = np.log(usable[X[0]].to_numpy(dtype=float)), np.log(usable[X[1]].to_numpy(dtype=float))
    log_hours = np.log(usable["total_gpu_seconds"].to_numpy(dtype=float) / 3600)
    slope, constant = np.polyfit(log_n, log_hours - log_d, 1)
    return np.array([constant, slope])


def best_use(strategy: str, fit: Fit, cost: Array, budget: float) -> Plan:
    """The size at which the budget, spent on one run, gives the lowest error."""
    sizes = fit.points[X[0]].to_numpy(dtype=float)
    log_n = np.linspace(np.log(sizes.min() / REACH), np.log(sizes.max() * REACH), GRID)
    log_d = np.log(budget) - cost[0] - cost[1] * log_n
    law, places = LAWS["chinchilla"], np.stack([log_n, log_d], axis=1)
    best = int(law.curve(fit.theta, places)[0].argmin())
    assert fit.units is not None
    same = [
        index for index in range(GRID)
        if index == best or fit.units.p_value(_ratio(places[index], places[best]), 0.0) >= 0.05
    ]  # fmt: skip
    row = fit.predict({X[0]: [np.exp(log_n[best])], X[1]: [np.exp(log_d[best])]}).iloc[0]
    if row["y"] >= 1:
        why = f"at {np.exp(log_d[best]):.3g} images the law says an error of {row['y']:.0%}"
        raise UserError("budget", budget, "GPU-hours for runs like those that were fitted", why)
    images = fit.points[X[1]]
    outside = best in (0, GRID - 1) or not images.min() <= np.exp(log_d[best]) <= images.max()
    outside = outside or not sizes.min() <= np.exp(log_n[best]) <= sizes.max()
    warnings = [*fit.warnings]
    if best in (0, GRID - 1):
        warnings.append("the best size lies at the edge of what may be planned from these runs")
    return Plan(strategy, float(np.exp(log_n[best])), float(np.exp(log_d[best])), float(1 - row["y"]),
                (float(1 - row["high"]), float(1 - row["low"])), float(np.exp(log_n[min(same)])),
                float(np.exp(log_n[max(same)])), bool(outside), tuple(warnings))  # fmt: skip


def _ratio(first: Array, second: Array) -> Quantity:
    """log of y at one x over y at another."""

    def of(theta: Array) -> tuple[float, Array]:
        (one, by_one), (two, by_two) = (at(LAWS["chinchilla"], x).of(theta) for x in (first, second))
        return one - two, by_one - by_two

    return Quantity(of)


def propose(plan: Plan, fit: Fit, cost: Array, budget: float, wanted: int = 3) -> list[Proposal]:
    """The runs, each within the budget, after which the interval of the plan's accuracy is narrowest.

    By the linearised design: variance g'(J'J)^-1 g at the plan, with the candidate's row added to J, and the t quantile
    of one more degree of freedom.
    """
    law, units = LAWS["chinchilla"], fit.units
    assert units is not None
    goal = np.log([[plan.parameters, plan.images]])
    now = _half_width(units, law.curve(units.theta, goal)[1][0], None)
    sizes, images = fit.points[X[0]].to_numpy(dtype=float), fit.points[X[1]].to_numpy(dtype=float)
    found = []
    for size in np.geomspace(sizes.min() / REACH, sizes.max() * REACH, 7):
        for seen in np.geomspace(images.min() / REACH, images.max() * REACH, 7):
            hours = float(np.exp(cost[0]) * size ** cost[1] * seen)
            if hours <= budget:
                row = law.curve(units.theta, np.log([[size, seen]]))[1][0]
                then = _half_width(units, law.curve(units.theta, goal)[1][0], row)
                found.append(Proposal(float(size), float(seen), hours, 1 - then / now))
    return sorted(found, key=lambda run: -run.narrows_by)[:wanted]


def _half_width(units: Units, gradient: Array, more: Array | None) -> float:
    _, jacobian = units.problem.residuals(units.theta)
    normal, freedom = jacobian.T @ jacobian, units.freedom
    if more is not None:
        normal, freedom = normal + np.outer(more, more), freedom + 1
    variance = float(gradient @ np.linalg.pinv(normal) @ gradient)
    return float(np.sqrt(variance) * special.stdtrit(freedom, 0.975))
