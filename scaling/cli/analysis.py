"""armscale collect | fit | report | plan-next."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from scaling.cli.outputs import output_file, output_folder

MAP = typer.Option("--map", help="NAME=COLUMN or NAME=EXPR: a column that the table lacks (a pandas expression).")
Map = Annotated[list[str] | None, MAP]


def collect(
    runs: Annotated[
        Path, typer.Argument(help="A root of studies, a study folder or a run folder; or a csv of another program.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the tables.", callback=output_folder)],
    map_: Map = None,
) -> None:
    """Gather run folders into tables: runs, metrics, evaluations, and what was left out and why (parquet and csv).

    Only folders that changed since the last call are read again.

    Example: armscale collect runs/quickstart --output tables
    Example: armscale collect points.csv --map parameters=N --map 'top1=accuracy / 100' --output tables
    """
    from analysis.collect import update_tables
    from analysis.foreign import parse_mapping

    tables = update_tables(runs, output, os.cpu_count() or 1, parse_mapping(map_ or ()))
    print(f"{len(tables.completed)} completed runs of {len(tables.runs)}, {len(tables.excluded)} left out: {output}")


def report(
    folder: Annotated[Path, typer.Argument(help="A study folder (collected first) or a folder that collect wrote.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder for the page.", show_default="FOLDER/report", callback=output_folder)
    ] = None,
    bench: Annotated[
        list[Path] | None, typer.Option(help="A file of `bench step`, `bench scaling` or `bench gpu`; repeat it.")
    ] = None,
    published: Annotated[
        str | None, typer.Option(help="Overlay published numbers: imagenet (shipped), or a csv of your own.")
    ] = None,
    target: Annotated[
        float | None, typer.Option(help="Top-1 (0 to 1) whose cost to show.", show_default="the median")
    ] = None,
    price: Annotated[float, typer.Option(min=0, help="Of a GPU-hour, for the cost of the target.")] = 0.0,
) -> None:
    """Write figures, their numbers and one self-contained HTML page.

    Example: armscale report runs/quickstart --target 0.8
    """
    from analysis.published import SHIPPED
    from analysis.report import Wishes, write_report
    from scaling.errors import UserError

    if target is not None and not 0 < target < 1:
        raise UserError("--target", target, "a top-1 between 0 and 1")
    overlay = SHIPPED if published == "imagenet" else Path(published) if published else None
    wishes = Wishes(tuple(bench or ()), overlay, target, price)
    print(write_report(folder, output, workers=os.cpu_count() or 1, wishes=wishes))


def fit(
    table: Annotated[Path, typer.Argument(help="A csv or parquet file, as collect writes it or anybody else.")],
    law: Annotated[
        str,
        typer.Option(
            help="power, power-floor, m3, m4, shifted-power, broken-power, chinchilla, sigmoid, isoflop or envelope."
        ),
    ],
    x: Annotated[str, typer.Option(help="Column, or columns in the law's order with commas between.")],
    y: Annotated[str, typer.Option(help="Column to explain: a loss or an error.")],
    map_: Map = None,
    group: Annotated[str | None, typer.Option(help="Fit each value of this column on its own.")] = None,
    exclude: Annotated[str | None, typer.Option(help="Pandas query: rows to leave out.")] = None,
    hold_out: Annotated[str | None, typer.Option(help="Pandas query: rows to score, not to fit.")] = None,
    delta: Annotated[float, typer.Option(help="Huber threshold on log residuals; inf gives least squares.")] = 1e-3,
    bootstrap: Annotated[int, typer.Option(help="Draws; 0 uses the small-sample intervals.")] = 0,
    resample_by: Annotated[str | None, typer.Option(help="Column whose values the bootstrap draws, not rows.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    output: Annotated[Path | None, typer.Option(help="FILE.json for the result.", callback=output_file)] = None,
) -> None:
    """Fit a scaling law, with intervals that hold for few sizes and seeds.

    Example: armscale fit tables/runs.csv --law power-floor --x parameters --y top1_error --group strategy
    Example: armscale fit points.csv --law chinchilla --map 'D=flops / (6 * N)' --x N,D --y loss
    """
    from analysis.fit import fit_groups, fit_law
    from analysis.foreign import parse_mapping, read_table
    from scaling.files import write_json

    frame = read_table(table, parse_mapping(map_ or ()))
    columns = [name.strip() for name in x.split(",")]
    options: dict[str, Any] = {"exclude": exclude, "hold_out": hold_out, "delta": delta, "bootstrap": bootstrap,
               "resample_by": resample_by, "seed": seed}  # fmt: skip
    if group:
        fits = fit_groups(frame, group, law, columns, y, **options)
        for value, result in fits.items():
            print(f"{group} = {value}\n{result}\n")
        if output:
            write_json(output, {"groups": {value: result.as_json() for value, result in fits.items()}})
        return
    result = fit_law(frame, law, columns, y, **options)
    print(result)
    if output:
        write_json(output, result.as_json())


def plan_next(
    table: Annotated[Path, typer.Argument(help="The table of runs that collect wrote (csv or parquet).")],
    budget: Annotated[float, typer.Option(help="GPU-hours to spend.")],
    output: Annotated[Path | None, typer.Option(help="FILE.json for the plan.", callback=output_file)] = None,
    map_: Map = None,
) -> None:
    """Say which size, images and strategy the fitted laws expect to be best for a budget, and which runs to add.

    Example: armscale plan-next tables/runs.csv --budget 500
    """
    from analysis.foreign import parse_mapping, read_table
    from analysis.plan_next import plan_next as plan
    from scaling.files import write_json

    result = plan(read_table(table, parse_mapping(map_ or ())), budget)
    print(result)
    if output:
        write_json(output, result.as_json())
