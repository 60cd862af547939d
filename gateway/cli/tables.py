"""Output of the commands: tables for people (plain if not on a terminal) and JSON for scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import click
import orjson
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

GAP: Final = 2  # spaces between columns
UNITS: Final = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))


def print_json(document: Any) -> None:
    """Print `document` as JSON."""
    click.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2))


def print_text(text: str) -> None:
    """Print lines of text."""
    click.echo("\n".join(shown(line) for line in text.split("\n")))


def shown(text: str) -> str:
    """`text` without terminal control characters, since clients can choose names that contain some."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _console() -> Console:
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 1 << 20  # one line per row, for grep and cut
    return console


def print_fields(fields: Mapping[str, Any]) -> None:
    """Print the fields of one object, one per line."""
    table = Table.grid(padding=(0, GAP, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields.items():
        table.add_row(shown(name), "-" if value is None else shown(str(value)))
    _console().print(table)


def print_table(
    titles: Sequence[str], rows: Sequence[Sequence[Any]], *, keep: int | None = None, none: str = ""
) -> None:
    """Print a table of strings, styled `Text` and numbers. Without rows, print `none` on standard error.

    Values are never cut. On a narrow terminal the columns after the first `keep` are left out. Then cells are folded,
    the first column last, since it holds the ids that people copy.
    """
    if not rows:
        click.echo(none, err=True)
        return
    console = _console()
    cells = [
        [c if isinstance(c, Text) else Text("\n".join(map(shown, str(c).split("\n")))) for c in row] for row in rows
    ]
    widths = [max(map(_width, column)) for column in zip(map(Text, titles), *cells, strict=True)]
    some = len(titles)
    while some > (keep or some) and sum(widths[:some]) + GAP * (some - 1) > console.width:
        some -= 1
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    for at, title in enumerate(titles[:some]):
        number = all(isinstance(row[at], int) for row in rows)
        table.add_column(title, justify="right" if number else "left", overflow="fold", no_wrap=at == 0)
    for row in cells:
        table.add_row(*row[:some])
    console.print(table)


def _width(cell: Text) -> int:
    return max(map(cell_len, cell.plain.split("\n")))


def age(since: str, now: float) -> str:
    """The time from `since` (ISO 8601) to `now` (seconds since 1970) as text: 42 s, 5 min, 3 h, 2 d."""
    seconds = max(0.0, now - datetime.fromisoformat(since).timestamp())
    unit, size = next((unit for unit in UNITS if seconds >= unit[1]), UNITS[-1])
    return f"{seconds // size:.0f} {unit}"
