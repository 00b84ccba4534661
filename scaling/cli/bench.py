"""armscale bench scan | step | loader | scaling | gpu."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from scaling.cli import bench_tables
from scaling.cli.outputs import output_file
from scaling.errors import UserError

app = typer.Typer(epilog="Example: armscale bench scan --output scan.json", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure on this machine: medians with spread, and ratios against named baselines.

    What cannot run is a row with its error; the exit status is 1 where nothing else is left.
    """


def _names(value: str) -> list[str]:
    return [name for name in value.split(",") if name]


def _device(value: str) -> Any:
    import torch

    if value not in ("cpu", "cuda") or (value == "cuda" and not torch.cuda.is_available()):
        raise UserError("--device", value, ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
    return torch.device(value)


def _save(report: dict[str, Any], output: Path | None) -> None:
    """To `output`, if any; ends with exit status 1 where nothing was measured."""
    from scaling.files import write_json

    if output is not None:
        write_json(output, report)
        typer.echo(f"written to {output}")
    if not _measured(report.get("results", [report])):
        raise typer.Exit(1)


def _measured(rows: list[dict[str, Any]]) -> bool:
    """Whether any row, or row of a report among them, is more than an error."""
    return any(_measured(row["results"]) if "results" in row else "error" not in row for row in rows)


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
    output: Annotated[Path | None, typer.Option(help="FILE.json", callback=output_file)] = None,
) -> None:
    """Time the selective scan, forward and with backward.

    Example: armscale bench scan --baseline parallel,reference --output scan.json
    """
    if compile_only:
        from scaling.bench import compile_only as compiled

        report = compiled.report(compile_only)
        bench_tables.print_kernels(report)
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
    bench_tables.print_scan(report)
    _save(report, output)


@app.command()
def loader(
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    images: Annotated[int, typer.Option(help="pictures in the temporary folder")] = 256,
    rounds: Annotated[int, typer.Option(min=1)] = 7,
    threads: Annotated[int, typer.Option(min=1, help="of the CPU")] = 1,
    output: Annotated[Path | None, typer.Option(help="FILE.json", callback=output_file)] = None,
) -> None:
    """Time reading, decoding and augmenting by stage, against a Pillow chain over an image folder.

    Example: armscale bench loader --rounds 9 --output loader.json
    """
    import torch

    from scaling.bench.loader import LoaderCase, loader_bench

    torch.set_num_threads(threads)
    report = loader_bench(LoaderCase(images=images), _device(device), rounds)
    bench_tables.print_loader(report)
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
    micro_batch: Annotated[int, typer.Option(min=1, help="images a forward")] = 8,
    accumulation: Annotated[int, typer.Option(min=1, help="forwards a step")] = 1,
    checkpointing: Annotated[bool, typer.Option(help="of activations")] = False,
    zero_stage: Annotated[int, typer.Option(help="of --engine deepspeed: 1, 2 or 3")] = 2,
    backend: Annotated[str, typer.Option(help="of the scan, names with commas; the device's own if empty")] = "",
    mode: Annotated[str, typer.Option(help="eager, compiled, or both with a comma")] = "eager",
    baseline: Annotated[str, typer.Option(help="official-loop, or empty for none")] = "official-loop",
    loop: Annotated[int, typer.Option(min=0, help="steps of the whole training loop, for its own overhead")] = 0,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    threads: Annotated[int, typer.Option(min=1, help="of the CPU")] = 1,
    output: Annotated[Path | None, typer.Option(help="FILE.json", callback=output_file)] = None,
) -> None:
    """Time whole train steps on resident data, against the official recipe's loop.

    Example: armscale bench step --device cuda --micro-batch 256 --mode eager,compiled --output step.json
    """
    import torch

    from scaling.bench.loop import loop_bench
    from scaling.bench.step import step_bench
    from scaling.bench.trainer import StepCase
    from scaling.config import DeepSpeedConfig

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
        deepspeed=DeepSpeedConfig(zero_stage),
    )
    report = step_bench(case, place, _names(backend), _names(mode), _names(baseline), rounds)
    bench_tables.print_step(report)
    if loop:
        report["loop"] = loop_bench(case, place, (_names(backend) or ["auto"])[0], loop)
        bench_tables.print_loop(report["loop"])
    _save(report, output)


@app.command()
def scaling(
    ranks: Annotated[int, typer.Option(min=1, help="the most; 1, 2, 4 .. are measured too")] = 2,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    engine: Annotated[str, typer.Option(help="names with commas: ddp, fsdp, deepspeed")] = "ddp,fsdp",
    kind: Annotated[
        str, typer.Option(help="weak (micro-batch a rank), strong (over all ranks), or both")
    ] = "weak,strong",
    strategy: str = "ar",
    encoder: str = "mamba",
    size: str = "pico",
    stage: str = "pretrain",
    precision: Annotated[str, typer.Option(help="fp32 or bf16; bf16 on cuda and fp32 on cpu if empty")] = "",
    micro_batch: Annotated[int, typer.Option(min=1, help="images a forward; strong: over all ranks")] = 8,
    zero_stage: Annotated[int, typer.Option(help="of deepspeed: 1, 2 or 3")] = 2,
    mode: Annotated[str, typer.Option(help="eager or compiled")] = "eager",
    passes: Annotated[int, typer.Option(min=1, help="over all world sizes")] = 2,
    threads: Annotated[int, typer.Option(min=1, help="of the CPU, a rank")] = 1,
    output: Annotated[Path | None, typer.Option(help="FILE.json", callback=output_file)] = None,
) -> None:
    """Time train steps on 1 to N ranks, which the command starts itself: weak and strong scaling by engine.

    Example: armscale bench scaling --ranks 8 --device cuda --size large --micro-batch 128 --mode compiled
    """
    from scaling.bench.scaling import scaling_bench
    from scaling.bench.trainer import StepCase
    from scaling.config import DeepSpeedConfig

    _device(device)
    if mode not in ("eager", "compiled"):
        raise UserError("--mode", mode, ["eager", "compiled"])
    case = StepCase(
        strategy=strategy,
        encoder=encoder,
        size=size,
        stage=stage,
        precision=precision or ("bf16" if device == "cuda" else "fp32"),
        micro_batch=micro_batch,
        deepspeed=DeepSpeedConfig(zero_stage),
    )
    compiled = mode == "compiled"
    report = scaling_bench(
        case, device, _names(engine), _names(kind), ranks, compile=compiled, passes=passes, threads=threads
    )
    bench_tables.print_scaling(report)
    _save(report, output)


@app.command()
def gpu(
    output: Annotated[Path, typer.Option(help="FILE.json, written after every row", callback=output_file)],
    device: Annotated[str, typer.Option(help="cuda, or cpu to try the command at its smallest sizes")] = "cuda",
    only: Annotated[str, typer.Option(help="sections with commas; all if empty")] = "",
    ranks: Annotated[int, typer.Option(help="of the sections on several GPUs; all GPUs if 0")] = 0,
    limit: Annotated[float, typer.Option(help="seconds for a section on several GPUs")] = 240.0,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
) -> None:
    """Measure all that only GPUs can tell: correctness, kernels, whole steps, sharding, weak scaling, checkpoints.

    Example: armscale bench gpu --only correctness,kernels --output kernels.json
    """
    import torch

    from scaling.bench.gpu import Machine, gpu_bench

    place = _device(device)
    machine = Machine(place, ranks or max(1, torch.cuda.device_count()), limit, rounds)
    report = gpu_bench(machine, _names(only), output, bench_tables.show_row)
    typer.echo(f"written to {output}")
    if not all(section["complete"] and _measured(section["rows"]) for section in report["sections"].values()):
        raise typer.Exit(1)
