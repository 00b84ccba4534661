"""What the benches print: one table each."""

from __future__ import annotations

import json
from typing import Any

import typer
from rich.console import Console
from rich.table import Table


def show_row(section: str, row: dict[str, Any]) -> None:
    """A row of `bench gpu` as it comes."""
    if row.get("bench") == "step":
        print_step(row)
    else:
        typer.echo(f"{section}: {json.dumps(row)}")


def print_scaling(report: dict[str, Any]) -> None:
    """By kind, engine and number of ranks."""
    case = report["case"]
    table = Table(
        title=f"{case['strategy']} {case['encoder']} {case['size']} {case['stage']}, {case['precision']}, "
        f"{'compiled' if report['compile'] else 'eager'}, {report['passes']} pass(es)"
    )
    for heading in ("scaling", "engine"):
        table.add_column(heading)
    for heading in ("ranks", "images a rank", "images/s", "images/s a rank", "efficiency", "peak memory"):
        table.add_column(heading, justify="right")
    for row in report["results"]:
        head = (row["kind"], row["engine"], str(row["ranks"]))
        if "error" in row:
            table.add_row(*head, f"[red]{row['error']}")
            continue
        table.add_row(
            *head,
            str(row["micro_batch"]),
            f"{row['images_per_second']:,.1f}",
            f"{row['images_per_second_per_device']:,.1f}",
            "" if row["efficiency"] is None else f"{row['efficiency']:.1%}",
            f"{row['peak_memory_bytes'] / 2**30:.2f} GiB",
        )
    Console(width=max(120, Console().width)).print(table)


def print_step(report: dict[str, Any]) -> None:
    """By contender; one that failed shows its error."""
    case, rows = report["case"], report["results"]
    baselines = [row["name"] for row in rows if row["name"].startswith("baseline ") and "error" not in row]
    table = Table(
        title=f"{case['strategy']} {case['encoder']} {case['size']} {case['stage']} at {report['image_size']} px on "
        f"{report['device']}, {report['threads']} thread(s), {case['engine']}, {case['precision']}: "
        f"{case['micro_batch']} x {case['accumulation']} images a step"
    )
    table.add_column("contender")
    for heading in ("ms a step", "quartiles", "images/s", "MFU", "peak memory", "scan's share"):
        table.add_column(heading, justify="right")
    for name in baselines:
        table.add_column(f"x {name.removeprefix('baseline ')}", justify="right")
    for row in rows:
        if "error" in row:
            table.add_row(row["name"], f"[red]{row['error']}")
            continue
        share, mfu = row["scan_share"], row["mfu"]
        table.add_row(
            row["name"],
            f"{row['step']['median'] * 1e3:,.1f}",
            f"{row['step']['low'] * 1e3:,.1f} .. {row['step']['high'] * 1e3:,.1f}",
            f"{row['images_per_second']:,.2f}",
            "" if mfu is None else f"{mfu:.1%}",
            f"{row['peak_memory_bytes'] / 2**30:.2f} GiB",
            "" if share is None else f"{share['median']:.1%}",
            *(f"{row['times_faster_than'][name]['median']:.2f}" for name in baselines),
        )
    Console(width=max(130, Console().width)).print(table)


def print_loop(report: dict[str, Any]) -> None:
    """The loop's step, the bare ones, and what the loop adds."""
    table = Table(title=f"the training loop, logged every step, over {report['steps']} steps")
    table.add_column("")
    for heading in ("ms a step", "quartiles", "the loop takes more"):
        table.add_column(heading, justify="right")
    shares = {"bare": "overhead_share", "bare_without_norm": "overhead_share_without_norm"}
    for name in ("loop", *shares):
        row = report[name]
        share = f"{report[shares[name]]['median']:.1%}" if name in shares else ""
        quartiles = f"{row['low'] * 1e3:,.1f} .. {row['high'] * 1e3:,.1f}"
        table.add_row(name.replace("_", " "), f"{row['median'] * 1e3:,.1f}", quartiles, share)
    Console().print(table)


def print_loader(report: dict[str, Any]) -> None:
    """By stage of the loader, then the ratios."""
    case = report["case"]
    table = Table(
        title=f"{case['width']} x {case['height']} JPEGs to {case['image_size']} px, "
        f"{report['threads']} thread(s), to {report['device']}"
    )
    table.add_column("stage")
    for heading in ("images/s", "ms an image"):
        table.add_column(heading, justify="right")
    for row in report["results"]:
        table.add_row(row["name"], f"{row['images_per_second']:,.0f}", f"{row['seconds_an_image'] * 1e3:.3f}")
    console = Console()
    console.print(table)
    for name, row in report["ratios"].items():
        console.print(f"{name}: {row['median']:.2f} (quartiles {row['low']:.2f} to {row['high']:.2f})", highlight=False)


def print_kernels(report: dict[str, Any]) -> None:
    """What the compiled kernels are made of."""
    table = Table(title=f"Triton kernels compiled for {report['compile_only']}, counts a state step of the inner loop")
    for heading in report["kernels"][0]:
        table.add_column(heading.replace("_", " "), justify="left" if heading == "kernel" else "right")
    for row in report["kernels"]:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=max(120, Console().width)).print(table)


def print_scan(report: dict[str, Any]) -> None:
    """By contender, with its ratio to each baseline."""
    case = report["case"]
    baselines = [row["name"] for row in report["results"] if row["name"].startswith("baseline ")]
    table = Table(
        title=f"selective scan on {report['device']}, {report['threads']} thread(s), {report['dtype']}: batch "
        f"{case['batch']}, length {case['length']}, {case['directions']} x {case['channels']} channels"
    )
    table.add_column("contender")
    for heading in ("forward ms", "forward + backward ms", "quartiles", *(f"x {name[9:]}" for name in baselines)):
        table.add_column(heading, justify="right")
    table.add_column("of memory / flop / exp ceiling", justify="right")
    for row in report["results"]:
        both = row["forward_backward"]
        shares = [row[f"share_of_{name}_ceiling"] for name in ("memory", "flop", "exponential")]
        table.add_row(
            row["name"],
            f"{row['forward']['median'] * 1e3:.3f}",
            f"{both['median'] * 1e3:.3f}",
            f"{both['low'] * 1e3:.3f} .. {both['high'] * 1e3:.3f}",
            *(f"{row['times_faster_than'][name]['median']:.1f}" for name in baselines),
            " / ".join(f"{share:.1%}" for share in shares),
        )
    Console(width=max(120, Console().width)).print(table)
