"""Sections of the report on what stands beside the accuracy: frozen features, other test sets, reconstructions."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

import pandas as pd

from analysis import page, style
from analysis.arms import several
from analysis.page import Column
from analysis.tables import VARIANTS, Tables
from analysis.variants import without_variants
from scaling.rundir import INFERENCE, PICTURES, read_json

SHEET = "reconstruction.png"
SHEETS_SHOWN = 8
CELL = ("strategy", "encoder", "size", "stage")
PIXELS = Column("resolution", "Pixels", page.count)
TABLE = (
    *(Column(name, name.capitalize(), page.text, numeric=False) for name in CELL),
    PIXELS,
    Column("protocol", "Evaluated by", page.text, numeric=False),
    Column("dataset", "Data set", page.text, numeric=False),
    Column("weights", "Weights", page.text, numeric=False),
    Column("top1", "Top-1, mean", page.percent),
    Column("lowest", "lowest", page.percent),
    Column("highest", "highest", page.percent),
    Column("runs", "Runs", page.count),
)

INFERENCE_TABLE = (
    *(Column(name, name.capitalize(), page.text, numeric=False) for name in (*CELL, "output")),
    PIXELS,
    Column("batch", "Batch", page.count),
    Column("precision", "Precision", page.text, numeric=False),
    Column("device", "Device", page.text, numeric=False),
    Column("rate", "Images per second", page.count),
    Column("runs", "Runs", page.count),
)


def parts(tables: Tables) -> list[tuple[str, str, str]]:
    """(anchor, heading, HTML) of the sections that have something to show."""
    found = (
        ("other", "Frozen features and other test sets", other_evaluations(tables)),
        ("inference", "Inference", inference(tables)),
        ("reconstructions", "Reconstructions", reconstructions(tables)),
    )
    return [part for part in found if part[2]]


def other_evaluations(tables: Tables) -> str:
    """Accuracies at the end of completed runs that are not the run's own top-1; "" where there are none."""
    own = without_variants(tables.completed)[["study", "run", *CELL, "total_images_seen", "protocol"]]
    own = own.rename(columns={"protocol": "protocol_of_run"})
    rows = tables.evaluations[tables.evaluations["top1"].notna()].merge(own, on=["study", "run"])
    last = rows.groupby(["study", "run"])["step"].transform("max")
    other = rows["dataset"].astype(str).str.startswith(VARIANTS)
    rows = rows[(rows["step"] == last) & ((rows["protocol"] != rows["protocol_of_run"]) | other)]
    if not len(rows):
        return ""
    by = [*CELL, "resolution", "protocol", "dataset", "weights"]
    longest = rows.groupby(by, dropna=False)["total_images_seen"].transform("max")
    rows = rows[rows["total_images_seen"].isna() | (rows["total_images_seen"] >= longest)]
    found = rows.groupby(by, as_index=False, dropna=False).agg(
        top1=("top1", "mean"), lowest=("top1", "min"), highest=("top1", "max"), runs=("top1", "size")
    )
    columns = [column for column in TABLE if column is not PIXELS or several(found, column.field)]
    return f"""<p>A frozen encoder's features, judged without training it: by the labels of the nearest training images
(knn) and by a linear classifier on top (linear_probe). Other test sets (imagenet-...) ask the same classifier again.
Of several lengths of training the longest stands here. None of these numbers enters a curve above.</p>
{page.table(style.reading_order(found, by), columns)}"""


def inference(tables: Tables) -> str:
    """How fast finished modules answer, as the evaluator `throughput` found; "" where it was not asked for."""
    runs = tables.completed.merge(tables.sources, on=["study", "run"])
    read = [read_json(Path(str(folder)) / INFERENCE) for folder in runs["folder"]]
    rows = [dict(zip(CELL, cell, strict=True)) | found
            for cell, found in zip(runs[list(CELL)].to_numpy(), read, strict=True) if found]  # fmt: skip
    if not rows:
        return ""
    by = [*CELL, "output", "resolution", "batch", "precision", "device"]
    rate = "images_per_second"
    table = pd.DataFrame(rows).groupby(by, as_index=False).agg(rate=(rate, "median"), runs=(rate, "size"))
    return f"""<p>One device answers again and again for a batch that it holds already: medians over passes, and over
runs where there are several. Pretrained modules give features, classifiers logits.</p>
{page.table(style.reading_order(table, by), INFERENCE_TABLE)}"""


def reconstructions(tables: Tables) -> str:
    """The sheets that pretrainings left in their folders, one a cell of the study; "" where none can be read."""
    runs = tables.completed.merge(tables.sources, on=["study", "run"])
    figures: list[str] = []
    for _, rows in runs.groupby(list(CELL), sort=False):
        sheet = next((path for path in map(_sheet, rows.sort_values("seed")["folder"]) if path.is_file()), None)
        if sheet is None or len(figures) == SHEETS_SHOWN:
            continue
        first = rows.iloc[0]
        title = escape(f"{style.strategy_name(first['strategy'])}, {first['encoder']}, {first['size']}")
        image = base64.b64encode(sheet.read_bytes()).decode("ascii")
        figures.append(
            f"<figure class=wide><h3>{title}</h3>"
            f'<img alt="{title}: reconstructions" src="data:image/png;base64,{image}">'
            f"<figcaption><code>{escape(sheet.parents[1].name)}</code></figcaption></figure>"
        )
    if not figures:
        return ""
    return f"""<p>Test images and what a pretrained model makes of them. Autoregressive: every group of patches
predicted from the true ones before it; the first is given and left out. Masked: what the encoder sees, and the same
with the gaps filled in. Each patch is predicted up to its own brightness and contrast, which are the true ones.</p>
<div class="figures">{"".join(figures)}</div>"""


def _sheet(folder: object) -> Path:
    return Path(str(folder)) / PICTURES / SHEET
