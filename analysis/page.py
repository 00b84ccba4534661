"""The pieces of the HTML page: tables, figures, numbers as people write them. Everything inline, nothing fetched."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

import pandas as pd

from analysis.style import Picture, compact, scientific, strategy_name

TEMPLATE = Path(__file__).resolve().parent / "templates" / "report.html"
PIXELS_PER_INCH = 96  # of a page, by the rules of CSS
ROWS_SHOWN = 400
"""Rows of a table on the page; the rest stands in its csv."""

Format = Callable[[object], str]


@dataclass(frozen=True)
class Column:
    """One column of a table on the page."""

    field: str
    title: str
    format: Format
    numeric: bool = True


def page(title: str, lead: str, facts: Sequence[tuple[str, str]], sections: Sequence[tuple[str, str, str]]) -> str:
    """The whole document. `facts` are (number, what it counts); `sections` are (anchor, heading, HTML)."""
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(title),
        lead=lead,
        facts="".join(f"<li><b>{escape(number)}</b><span>{escape(label)}</span></li>" for number, label in facts),
        navigation="".join(f'<a href="#{anchor}">{escape(heading)}</a>' for anchor, heading, _ in sections),
        body="\n".join(f'<section id="{anchor}"><h2>{escape(heading)}</h2>\n{html}</section>'
                       for anchor, heading, html in sections),
    )  # fmt: skip


def figure(picture: Picture) -> str:
    """One picture, inline, no larger than drawn (so that its type is the page's), with its caption and its files."""
    image = base64.b64encode(picture.svg).decode("ascii")
    widest = PIXELS_PER_INCH * picture.figure.get_figwidth()
    links = " · ".join(f'<a href="figures/{picture.name}.{kind}">{kind.upper()}</a>' for kind in ("csv", "png", "svg"))
    return (
        f'<figure id="{picture.name}"{" class=wide" if picture.wide else ""}><h3>{escape(picture.title)}</h3>'
        f'<img alt="{escape(picture.title)}" style="max-width: {widest:.0f}px" src="data:image/svg+xml;base64,{image}">'
        f"<figcaption>{escape(picture.caption)} {links}</figcaption></figure>"
    )


def figures(pictures: Iterable[Picture]) -> str:
    """Pictures in the page's grid; nothing without any."""
    pictures = list(pictures)
    if not pictures:
        return ""
    return f'<div class="figures">{"".join(figure(picture) for picture in pictures)}</div>'


def table(rows: pd.DataFrame, columns: Sequence[Column], tall: bool = False) -> str:
    """The first rows as an HTML table; says how many more there are."""
    shown = [column for column in columns if column.field in rows and rows[column.field].notna().any()]
    head = "".join(f"<th{_class(column)}>{escape(column.title)}</th>" for column in shown)
    body = []
    for values in rows.head(ROWS_SHOWN)[[column.field for column in shown]].itertuples(index=False, name=None):
        cells = (
            f"<td{_class(column)}>{_cell(value, column)}</td>" for value, column in zip(values, shown, strict=True)
        )
        body.append(f"<tr>{''.join(cells)}</tr>")
    more = f"<p>The first {ROWS_SHOWN} of {len(rows)} rows; all stand in the csv.</p>" if len(rows) > ROWS_SHOWN else ""
    scroll = "scroll tall" if tall else "scroll"
    return (
        f'<div class="{scroll}"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>{more}'
    )


def _class(column: Column) -> str:
    if column.numeric:
        return ' class="n"'
    return ' class="long"' if column.format is sentence else ""


def _cell(value: object, column: Column) -> str:
    return "" if pd.isna(value) else column.format(value)  # type: ignore[call-overload]


def text(value: object) -> str:
    """As it stands."""
    return escape(str(value))


def strategy(value: object) -> str:
    """The name people read."""
    return escape(strategy_name(str(value)))


def sentence(value: object) -> str:
    """Text that may wrap."""
    return escape(str(value))


def code(value: object) -> str:
    """An identifier."""
    return f"<code>{escape(str(value))}</code>"


def state(value: object) -> str:
    """A state, coloured."""
    return f'<span class="state {escape(str(value))}">{escape(str(value))}</span>'


def percent(value: object) -> str:
    """0.873 as 87.3 %."""
    return f"{100 * _float(value):.1f} %"


def count(value: object) -> str:
    """1234567 as 1.23M, small whole numbers as they are."""
    number = _float(value)
    return f"{number:.0f}" if number == int(number) and abs(number) < 10_000 else compact(number)


def flops(value: object) -> str:
    """3e15 as 3×10¹⁵, to two digits."""
    number = _float(value)
    if number <= 0:
        return "0"
    power = len(f"{number:.0f}") - 1
    return f"{number / 10**power:.1f}×{scientific(10.0**power)}"


def duration(value: object) -> str:
    """Seconds as 47 s, 12 min, 3.4 h, 1,428 h."""
    seconds = _float(value)
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 360_000 else f"{seconds / 3600:,.0f} h"


def number(value: object) -> str:
    """Three significant digits, or a whole number."""
    plain = _float(value)
    return f"{plain:,.0f}" if abs(plain) >= 1000 else f"{plain:.3g}"


def memory(value: object) -> str:
    """Bytes as MiB or GiB."""
    mib = _float(value) / 2**20
    return f"{mib:.0f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"


def _float(value: object) -> float:
    return float(value)  # type: ignore[arg-type]
