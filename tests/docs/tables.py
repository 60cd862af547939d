"""The tables of the reference that are made from the code: `python -m tests.docs.tables` writes them into the pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from gateway.app import create_app
from gateway.cli.main import cli
from gateway.settings import Settings
from tests.kit.process import ROOT

BEGIN: Final = "<!-- made by python -m tests.docs.tables -->"
END: Final = "<!-- end of the table -->"


def commands(group: click.Group = cli, path: str = "gateway") -> Iterator[str]:
    """A section for each command: what it does, its arguments and its options with their defaults."""
    for name, command in sorted(group.commands.items()):
        words = f"{path} {name}"
        if isinstance(command, click.Group):
            yield from commands(command, words)
            continue
        context = click.Context(command, info_name=words)
        usage = " ".join(part for part in command.collect_usage_pieces(context) if part != "[OPTIONS]")
        yield f"### {words}\n"
        yield f"`{words}{' ' * bool(usage)}{usage}`: {command.get_short_help_str(500)}\n"
        options = [option for option in command.params if isinstance(option, click.Option) and not option.hidden]
        own = [option for option in options if option.name not in ("url", "api_key", "as_json", "json_output")]
        if own:
            yield "| option | default | |\n|---|---|---|"
            yield "\n".join(_option_row(option) for option in own) + "\n"


def _option_row(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    default = option.default
    shown = "" if default in (None, False, ()) or callable(default) or "UNSET" in repr(default) else f"`{default}`"
    about = (option.help or "").replace("|", "\\|")
    return f"| {names} | {shown} | {about} |"


def metrics() -> Iterator[str]:
    """A row for each metric of a node with everything turned on."""
    node = create_app(Settings(node="n1", backend_url="http://b", jwks_url="https://keys.example/jwks")).state.node
    yield "| metric | kind | label | |\n|---|---|---|---|"
    for family in sorted(node.metrics.registry.collect(), key=lambda one: one.name):
        suffix = "_total" * (family.type == "counter")
        labels = ", ".join(f"`{label}`" for label in getattr(family, "_labelnames", ()))
        about = family.documentation.rstrip(".")
        yield f"| `{family.name}{suffix}` | {family.type} | {labels} | {about} |"


PAGES: Final = {
    ROOT / "docs" / "reference" / "command-line.md": commands,
    ROOT / "docs" / "reference" / "metrics.md": metrics,
}


def renewed(page: Path) -> str:
    """The page with its table as the code says it now."""
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    table = "\n".join(PAGES[page]())
    text, count = pattern.subn(lambda _: f"{BEGIN}\n\n{table.strip()}\n\n{END}", page.read_text())
    assert count == 1, f"{page} needs one pair of comments: {BEGIN} {END}"
    return text


if __name__ == "__main__":
    for each in PAGES:
        each.write_text(renewed(each))
