"""armscale data pack | verify | info."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scaling.cli.outputs import output_file, packed_folder

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

MOST_CLASSES = 20

app = typer.Typer(
    help="Pack images into shards, verify and describe them.",
    epilog="Example: armscale data pack fashion-mnist shards/fashion-mnist",
    no_args_is_help=True,
)


@app.command()
def pack(
    source: Annotated[str, typer.Argument(help="fashion-mnist[:DIR], cifar10[:DIR], imagefolder:DIR or imagenet:DIR")],
    output: Annotated[Path, typer.Argument(help="folder to fill, one folder a split inside", callback=packed_folder)],
    seed: Annotated[int, typer.Option(help="of the shuffle across classes")] = 0,
    shard_samples: Annotated[int, typer.Option(help="images a shard, at most")] = 1000,
    resize: Annotated[int, typer.Option(help="scale larger images to this short side; 0 keeps the files' bytes")] = 0,
    workers: Annotated[int, typer.Option(help="processes")] = 1,
    max_bad: Annotated[float, typer.Option(help="part of a split that may be unreadable and left out")] = 0.001,
) -> None:
    """Packs SOURCE into WebDataset shards with an index. A killed packing goes on where it was.

    Example: armscale data pack fashion-mnist shards/fashion-mnist
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from data.pack import pack as pack_source

    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def show(split: str, done: int, total: int) -> None:
            if split not in tasks:
                tasks[split] = bars.add_task(split, total=total, completed=done, rate="")
            speed = bars.tasks[tasks[split]].speed
            bars.update(tasks[split], completed=done, rate=f"{speed:,.0f} images/s" if speed else "")

        packing = pack_source(
            source,
            output,
            seed=seed,
            shard_samples=shard_samples,
            resize=resize,
            workers=workers,
            max_bad=max_bad,
            progress=show,
        )
    for split, index in packing.indexes.items():
        size = sum(shard.bytes for shard in index.shards) / 1e6
        state = "already there, nothing to do" if packing.unchanged else f"fingerprint {index.fingerprint}"
        console.print(
            f"{output / split}: {index.samples:,} images, {len(index.classes)} classes, "
            f"{len(index.shards)} shards, {size:,.1f} MB; {state}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        for item in index.left_out:
            console.print(f"  left out {item['key']}: {item['reason']}", highlight=False, markup=False)


@app.command()
def verify(
    shards: Annotated[Path, typer.Argument(help="output of pack, or one split in it")],
    decode: Annotated[bool, typer.Option("--decode", help="also decode every image")] = False,
    workers: Annotated[int, typer.Option(help="processes")] = 1,
) -> None:
    """Checks every shard against its index; names shard and key of each fault; exit status 1 when there is one.

    Example: armscale data verify shards/fashion-mnist --decode
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    from data.describe import split_folders
    from data.verify import verify as verify_split

    console = Console(soft_wrap=True, highlight=False)
    wrong = 0
    for folder in split_folders(shards):
        with Progress(console=console, transient=True) as bars:
            task = bars.add_task(escape(str(folder)))

            def show(done: int, total: int, task: TaskID = task, bars: Progress = bars) -> None:
                bars.update(task, completed=done, total=total)

            faults = verify_split(folder, decode_images=decode, workers=workers, progress=show)
        wrong += len(faults)
        console.print(f"{folder}: {len(faults)} faults" if faults else f"{folder}: nothing wrong", markup=False)
        for fault in faults:
            console.print(f"  {fault}", markup=False)
    if wrong:
        raise typer.Exit(1)


@app.command()
def info(
    shards: Annotated[Path, typer.Argument(help="output of pack, or one split in it")],
    sheet: Annotated[
        Path | None, typer.Option(help="write a PNG with images of each class here", callback=output_file)
    ] = None,
) -> None:
    """Says what shards hold: classes, counts, sizes; --sheet draws some images of each class.

    Example: armscale data info shards/fashion-mnist --sheet sheet.png
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from data.describe import contact_sheet, describe, split_folders

    console = Console(highlight=False)
    folders = split_folders(shards)
    for folder in folders:
        facts = describe(folder)
        table = Table(title=escape(str(folder)), show_header=False, title_justify="left")
        classes = facts.pop("classes")
        facts["bytes"] = f"{facts['bytes'] / 1e6:,.1f} MB"
        facts["images"] = f"{facts['images']:,}"
        for name in ("width", "height"):
            low, high = facts[name]
            facts[name] = f"{low} px" if low == high else f"{low} to {high} px"
        facts["formats"] = ", ".join(f"{count:,} {name}" for name, count in facts["formats"].items())
        shown = [f"{name} {count:,}" for name, count in list(classes.items())[:MOST_CLASSES]]
        more = f", and {len(classes) - MOST_CLASSES} more" if len(classes) > MOST_CLASSES else ""
        facts["classes"] = f"{len(classes)}: " + ", ".join(shown) + more
        for name, value in facts.items():
            table.add_row(name.replace("_", " "), escape(str(value)))
        console.print(table)
    if sheet is not None:
        contact_sheet(folders[0], sheet)
        console.print(f"contact sheet of {folders[0]}: {sheet}", markup=False, soft_wrap=True)
