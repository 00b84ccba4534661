"""The sections of the report: what each says, in words and tables, of the numbers that there are."""

from __future__ import annotations

from html import escape

import pandas as pd

from analysis import control, page, style, variants
from analysis.arms import ARM, several
from analysis.figures import accuracies, at_full_length
from analysis.page import Column
from analysis.runfolder import SUPERSEDED, TRIAL
from analysis.settings import NEEDED, by_arm
from analysis.tables import Tables

STRATEGIES = {
    "ar": "The encoder first learns without labels: it reads an image as a sequence of square groups of patches and "
    "predicts each next group from those before it. Then it is finetuned to classify.",
    "mae": "The encoder first learns without labels: most patches are hidden and it fills them in from the few that "
    "are left (masked autoencoding). Then it is finetuned to classify.",
    "supervised": "No pretraining: the classifier is trained with labels from random weights.",
    "scratch": "The control: the finetuning stage alone, from random weights. What pretraining added is the distance "
    "to this line.",
}
RUN_TABLE = (
    Column("run", "Run", page.code, numeric=False),
    Column("state", "State", page.state, numeric=False),
    Column("protocol", "Evaluated by", page.text, numeric=False),
    Column("top1", "Top-1", page.percent),
    Column("final_loss", "Last training loss", page.number),
    Column("parameters", "Parameters", page.count),
    Column("images_seen", "Images", page.count),
    Column("total_images_seen", "Images, with ancestors", page.count),
    Column("total_train_flops", "FLOPs, with ancestors", page.flops),
    Column("gpu_seconds", "Device time", page.duration),
    Column("global_batch", "Batch", page.count),
    Column("config.train.lr", "Learning rate", page.number),
    Column("config.train.base_lr", "Base learning rate", page.number),
    Column("config.train.image_size", "Pixels", page.count),
    Column("precision", "Precision", page.text, numeric=False),
    Column("engine", "Engine", page.text, numeric=False),
    Column("device", "Device", page.text, numeric=False),
    Column("devices", "Devices", page.count),
    Column("seed", "Seed", page.count),
    Column("attempt", "Attempts", page.count),
    Column("notes", "Notes", page.sentence, numeric=False),
)
CELL = tuple(
    Column(name, name.capitalize(), page.text, numeric=False) for name in ("strategy", "encoder", "size", "stage")
)
PUBLISHED_TABLE = (
    Column("model", "Model", page.text, numeric=False),
    Column("strategy", "Strategy", page.strategy, numeric=False),
    Column("parameters", "Parameters", page.count),
    Column("top1", "Top-1", page.percent),
    Column("protocol", "Protocol", page.sentence, numeric=False),
    Column("source", "Source", page.sentence, numeric=False),
)
EXCLUDED_TABLE = (
    Column("run", "Run", page.code, numeric=False),
    *CELL,
    Column("seed", "Seed", page.count),
    Column("state", "State", page.state, numeric=False),
    Column("reason", "Why it is left out", page.sentence, numeric=False),
)


def trained(tables: Tables) -> str:
    """What the study is: strategies, words, and which of its runs are done."""
    present = style.strategy_order(tables.runs["strategy"].dropna())
    glossary = "".join(
        f'<dt><span class="dot" style="background:{style.hue(name)}"></span>{escape(style.strategy_name(name))}</dt>'
        f"<dd>{escape(STRATEGIES.get(name, ''))}</dd>"
        for name in present
    )
    missing = unfinished(tables)
    warning = (
        f'<p class="note">This study is not finished: {number_of(missing, "run")} of it '
        f"{'is' if missing == 1 else 'are'} missing from the pictures (see "
        '<a href="#left-out">what was left out</a>). Everything below is provisional.</p>'
        if missing
        else ""
    )
    return f"""{warning}<p>Each strategy trains the encoder in another way. One colour stands for one strategy in
every picture of this page.</p><dl>{glossary}</dl>
<p>The words: a <b>run</b> is one stage of training in one folder; <b>top-1</b> is the share of test images whose class
the model names first; <b>FLOPs</b> are the arithmetic operations of training, pretraining included;
an <b>image seen</b> is one image in one training step, so one image counts each time it returns.</p>
{_grid(tables)}"""


def published(table: pd.DataFrame | None) -> str:
    """The published numbers in the pictures, each with its source and protocol."""
    if table is None:
        return ""
    rows = table.sort_values(["parameters", "model"], kind="stable")
    note = "<p>Published numbers, not measured here, and in none of the fits.</p>"
    return "<h3>Published for comparison</h3>" + note + page.table(rows, PUBLISHED_TABLE)


def unfinished(tables: Tables) -> int:
    """How many planned runs are not in the pictures."""
    ended = len(tables.completed) + int(tables.runs["state"].isin((TRIAL, SUPERSEDED)).sum())
    return len(tables.runs) - ended + int((tables.excluded["state"] == "missing").sum())


def _grid(tables: Tables) -> str:
    """Strategy by size: how many of the planned runs are complete."""
    planned = pd.concat([tables.runs, tables.excluded[tables.excluded["state"] == "missing"]], ignore_index=True)
    planned = planned[
        planned["strategy"].notna() & planned["size"].notna() & ~planned["state"].isin((TRIAL, SUPERSEDED))
    ]
    sizes = style.size_order(planned)
    rows = []
    for (strategy, encoder), part in planned.groupby(["strategy", "encoder"], dropna=False):
        cells = {size: _cell_state(part.loc[part["size"] == size, "state"]) for size in sizes}
        rows.append({"strategy": style.strategy_name(str(strategy)), "encoder": encoder, "key": strategy, **cells})
    if not rows:
        return ""
    order = style.strategy_order(str(row["key"]) for row in rows)
    table = pd.DataFrame(rows).sort_values("key", key=lambda column: column.map(order.index), kind="stable")
    columns = [Column("strategy", "Strategy", page.text, False), Column("encoder", "Encoder", page.text, False)]
    columns += [Column(size, size, str, False) for size in sizes]
    return "<h3>State of the study</h3>" + page.table(table, columns)


def _cell_state(states: pd.Series) -> str:
    if states.empty:
        return "<small>not planned</small>"
    counts = states.value_counts().sort_index()
    if list(counts.index) == ["completed"]:
        return f'<span class="state completed">{number_of(int(counts.iloc[0]), "run")} completed</span>'
    return " ".join(
        f'<span class="state {escape(str(name))}">{number} {escape(str(name))}</span>'
        for name, number in counts.items()
    )


def accuracy(tables: Tables) -> str:
    """Top-1 by strategy and size, and how far differences may be read."""
    data = accuracies(tables)
    if data.empty:
        return "<p>No completed run has an accuracy yet.</p>"
    data = at_full_length(data)
    sizes = style.size_order(data)
    rows = []
    for place, part in data.groupby(["protocol", *ARM], dropna=False):
        cells = {size: _mean(part.loc[part["size"] == size, "top1"]) for size in sizes}
        names = dict(zip(["protocol", *ARM], place, strict=True))
        rows.append({"key": names["strategy"], **names, **cells})
    order = style.strategy_order(data["strategy"])
    table = pd.DataFrame(rows).sort_values("key", key=lambda column: column.map(order.index), kind="stable")
    columns = [
        Column("protocol", "Evaluated by", page.text, False),
        Column("strategy", "Strategy", page.strategy, False),
        Column("encoder", "Encoder", page.text, False),
        *(column for column in control.MEASURED if several(data, column.field)),
        *(Column(size, size, str) for size in sizes),
    ]
    return page.table(table, columns) + f"<p>{_caution(data)}</p>" + control.section(tables) + variants.section(tables)


def _mean(values: pd.Series) -> str | None:
    if values.empty:
        return None
    if len(values) == 1:
        return page.percent(values.iloc[0])
    return f"{page.percent(values.mean())} <small>± {100 * values.std():.1f} ({len(values)})</small>"


def _caution(data: pd.DataFrame) -> str:
    """What differences may be read into the numbers, from the numbers themselves."""
    cells = data.groupby(["protocol", *ARM, "size"], dropna=False)["seed"]
    width = data["half_width"].max()
    sampling = (
        f"The finite test split alone makes each accuracy uncertain by up to ±{100 * width:.1f} points (95 %). "
        if width == width
        else ""
    )
    if cells.size().max() <= 1:
        return (
            "Every number is the last evaluation of one run, never the best of several. "
            + sampling
            + "With one seed a "
            "cell the page cannot tell how much of a difference is due to chance, so small differences rank nothing."
        )
    over = "seeds" if (cells.size() == cells.nunique()).all() else "runs that may differ in more than their seed"
    return (
        f"Every number is a mean over {over}, of each run's last evaluation; ± is the standard deviation, in brackets "
        "the number of runs. Of several lengths of training the longest stands here. " + sampling
    )


def runs_and_settings(tables: Tables) -> str:
    """Every run, what all share and what differs."""
    runs = tables.runs.sort_values(["study", "stage", "strategy", "encoder", "parameters", "seed"], kind="stable")
    shown = {column.field for column in RUN_TABLE} | {"config.run", "config.parent"}
    settings = []
    for stage, part in runs.groupby("stage"):
        own = part[[name for name in part if str(name).startswith("config.") and part[name].notna().any()]]
        shared = {str(name): own[name].iloc[0] for name in own if own[name].nunique(dropna=False) == 1}
        varying = ", ".join(f"<code>{escape(str(name)[7:])}</code>" for name in own if name not in (*shared, *shown))
        rows = pd.DataFrame(
            {"field": [name[7:] for name in shared], "value": [str(value) for value in shared.values()]}
        )
        columns = (Column("field", "Setting", page.code, False), Column("value", "Value", page.code, False))
        settings.append(
            f"<details><summary>Settings that all {number_of(len(part), f'{stage} run')} share</summary>"
            f"{page.table(rows, columns, tall=True)}"
            f"<p>Differing between them: {varying or 'none beyond the table'}.</p></details>"
        )
    note = "<p>Pretraining losses of different strategies are different quantities and must not be compared.</p>"
    return page.table(runs, RUN_TABLE, tall=True) + note + _settings_by_arm(runs) + "".join(settings)


def _settings_by_arm(runs: pd.DataFrame) -> str:
    """Resolution, scans, augmentation and average of every stage and arm, what differs between arms marked."""
    configs = [
        {str(name)[7:]: value for name, value in row.items() if str(name).startswith("config.")}
        for row in runs.to_dict("records")
    ]
    rows = by_arm(config for config in configs if all(config.get(name) is not None for name in NEEDED))
    if not rows:
        return ""
    told = [
        {"stage": row.stage, "arm": row.arm}
        | {name: f"{value} ≠" if name in row.differing and value else value for name, value in row.values.items()}
        for row in rows
    ]
    columns = [Column(name, name.capitalize() if name.islower() else name, page.text, False) for name in told[0]]
    note = (
        "<p>≠ marks what differs between the arms that have this stage: more than the strategy was changed there.</p>"
    )
    return page.table(pd.DataFrame(told), columns, tall=True) + note


def left_out(tables: Tables) -> str:
    """Every exclusion with its reason."""
    lost = int(tables.runs["lost_records"].sum())
    torn = int(tables.runs["torn_lines"].sum())
    words = []
    if lost:
        words.append(f"{number_of(lost, 'logged record')} of work that was repeated after a restart")
    if torn:
        words.append(f"{number_of(torn, 'line')} torn by an interruption")
    text = f"<p>From the runs above, {listing(words)} left out.</p>" if words else ""
    if tables.excluded.empty:
        return text + "<p>No run was left out: every planned run is complete and in the pictures.</p>"
    return page.table(tables.excluded, EXCLUDED_TABLE, tall=True) + text


def number_of(value: int, thing: str) -> str:
    """Three runs, one run, 12 runs."""
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return f"{words[value] if value < len(words) else value} {thing}{'' if value == 1 else 's'}"


def listing(words: list[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
