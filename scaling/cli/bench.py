"""armscale bench scan | step | loader."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from scaling.errors import UserError

app = typer.Typer(no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure on this machine: medians with spread, and ratios against named baselines."""


def _names(value: str) -> list[str]:
    return [name for name in value.split(",") if name]


def _device(value: str) -> Any:
    import torch

    if value not in ("cpu", "cuda") or (value == "cuda" and not torch.cuda.is_available()):
        raise UserError("--device", value, ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
    return torch.device(value)


def _save(report: dict[str, Any], output: Path | None) -> None:
    from scaling.files import write_json

    if output is not None:
        write_json(output, report)
        typer.echo(f"written to {output}")


@app.command()
def scan(
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    batch: int = 8,
    length: int = 128,
    channels: Annotated[int, typer.Option(help="of one direction")] = 768,
    state: int = 16,
    directions: Annotated[int, typer.Option(help="scan directions in one call")] = 1,
    dtype: Annotated[str, typer.Option(help="of the tokens: float32 or bfloat16")] = "float32",
    backend: Annotated[str, typer.Option(help="names with commas; all usable ones if empty")] = "",
    baseline: Annotated[str, typer.Option(help="names with commas: parallel, reference")] = "parallel",
    rounds: int = 9,
    threads: Annotated[int, typer.Option(help="of the CPU")] = 1,
    compile_only: Annotated[
        str, typer.Option(help="an architecture such as sm_90: compile the Triton kernels and describe their code")
    ] = "",
    output: Annotated[Path | None, typer.Option(help="FILE.json")] = None,
) -> None:
    """Time the selective scan, forward and with backward.

    Example: armscale bench scan --baseline parallel,reference --output scan.json
    """
    if compile_only:
        from scaling.bench import compile_only as compiled

        report = compiled.report(compile_only)
        _print_kernels(report)
        _save(report, output)
        return
    import torch

    from scaling.bench.scan import Case
    from scaling.bench.scan import bench as measure

    if dtype not in ("float32", "bfloat16"):
        raise UserError("--dtype", dtype, ["float32", "bfloat16"])
    for name, value in {"batch": batch, "length": length, "channels": channels, "state": state}.items():
        if value < 1:
            raise UserError(f"--{name}", value, "a whole number from 1")
    if directions < 1 or rounds < 1 or threads < 1:
        raise UserError("--directions, --rounds, --threads", (directions, rounds, threads), "whole numbers from 1")
    torch.set_num_threads(threads)
    case = Case(batch, length, channels, state, directions)
    report = measure(case, _device(device), getattr(torch, dtype), _names(backend), _names(baseline), rounds)
    _print_scan(report)
    _save(report, output)


@app.command()
def loader(
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    images: Annotated[int, typer.Option(help="pictures in the temporary folder")] = 256,
    rounds: Annotated[int, typer.Option(min=1)] = 7,
    threads: Annotated[int, typer.Option(min=1, help="of the CPU")] = 1,
    output: Annotated[Path | None, typer.Option(help="FILE.json")] = None,
) -> None:
    """Time reading, decoding and augmenting by stage, against a Pillow chain over an image folder.

    Example: armscale bench loader --rounds 9 --output loader.json
    """
    import torch

    from scaling.bench.loader import LoaderCase, loader_bench

    torch.set_num_threads(threads)
    report = loader_bench(LoaderCase(images=images), _device(device), rounds)
    _print_loader(report)
    _save(report, output)


@app.command()
def step(
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    strategy: Annotated[str, typer.Option(help="ar, mae, supervised or scratch")] = "ar",
    encoder: Annotated[str, typer.Option(help="mamba or vit")] = "mamba",
    size: Annotated[str, typer.Option(help="a name on the ladder")] = "base",
    stage: Annotated[str, typer.Option(help="pretrain or finetune")] = "pretrain",
    engine: Annotated[str, typer.Option(help="single, ddp, fsdp or deepspeed, on one rank")] = "single",
    precision: Annotated[str, typer.Option(help="fp32 or bf16; bf16 on cuda and fp32 on cpu if empty")] = "",
    micro_batch: Annotated[int, typer.Option(help="images a forward")] = 8,
    accumulation: Annotated[int, typer.Option(help="forwards a step")] = 1,
    checkpointing: Annotated[bool, typer.Option(help="of activations")] = False,
    backend: Annotated[str, typer.Option(help="of the scan, names with commas; the device's own if empty")] = "",
    mode: Annotated[str, typer.Option(help="eager, compiled, or both with a comma")] = "eager",
    baseline: Annotated[str, typer.Option(help="official-loop, or empty for none")] = "official-loop",
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    threads: Annotated[int, typer.Option(min=1, help="of the CPU")] = 1,
    output: Annotated[Path | None, typer.Option(help="FILE.json")] = None,
) -> None:
    """Time whole train steps on resident data, against the official recipe's loop.

    Example: armscale bench step --device cuda --micro-batch 256 --mode eager,compiled --output step.json
    """
    import torch

    from scaling.bench.step import step_bench
    from scaling.bench.trainer import StepCase

    torch.set_num_threads(threads)
    place = _device(device)
    case = StepCase(
        strategy=strategy,
        encoder=encoder,
        size=size,
        stage=stage,
        engine=engine,
        precision=precision or ("bf16" if device == "cuda" else "fp32"),
        micro_batch=micro_batch,
        accumulation=accumulation,
        checkpointing=checkpointing,
    )
    report = step_bench(case, place, _names(backend), _names(mode), _names(baseline), rounds)
    print_step(report)
    _save(report, output)


def print_step(report: dict[str, Any]) -> None:
    """The table of a step bench."""
    from rich.console import Console
    from rich.table import Table

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


def _print_loader(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

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


def _print_kernels(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Triton kernels compiled for {report['compile_only']}, counts a state step of the inner loop")
    for heading in report["kernels"][0]:
        table.add_column(heading.replace("_", " "), justify="left" if heading == "kernel" else "right")
    for row in report["kernels"]:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=max(120, Console().width)).print(table)


def _print_scan(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

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
