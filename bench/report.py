"""Writes results.md, the section of performance.md and the picture from results.json alone, so that they agree."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from bench import capacity, contenders, scenarios, targets
from bench.figures import Results

HERE: Final = Path(__file__).parent
PERFORMANCE: Final = HERE.parent / "docs" / "explanation" / "performance.md"
SCALING: Final = HERE.parent / "docs" / "how-to" / "scale.md"
BEGIN: Final = "<!-- made by make bench -->"
END: Final = "<!-- end of what make bench made -->"
BUSY: Final = 0.95  # of the load's core: above it the load limits the result
DISTURBED: Final = 0.2  # of a core used by neither side
# The rows of the picture: title, scenario, metric.
MAIN: Final = (
    ("CPU us per delivery, 1,000 subscribers, 100 messages/s", "paced", "CPU us per delivery"),
    ("deliveries per second and core, at saturation", "saturation", "deliveries per CPU second"),
    ("p99 ms through HAProxy, two nodes", "haproxy", "p99 ms"),
    ("KB per idle, subscribed connection", "storm", "KB per connection"),
    ("connects + subscribes per second and core", "storm", "connects per CPU second"),
    ("CPU us per HTTP publish", "publishing", "CPU us per HTTP publish"),
)


def number(value: float | None) -> str:
    """Three significant digits, with commas."""
    if value is None:
        return ""
    if abs(value) >= 1000:
        return f"{round(value, -max(0, len(str(int(abs(value)))) - 3)):,.0f}"
    return f"{value:.3g}"


def table(rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first row is the header."""
    head, *others = rows
    lines = [head, ["---"] * len(head), *others]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def verdicts(results: Results) -> str:
    """A table of all targets, and whether each is met."""
    words = {True: "met", False: "**missed**", None: "not measured"}
    rows: list[Sequence[str]] = [("figure", "target", "measured", "")]
    for target in targets.held(results):
        value = target.value(results)
        measured = number(value) + (target.unit if value is not None else "")
        rows.append((target.figure, target.text, measured, words[target.met(results)]))
    return table(rows)


def main_rows(results: Results) -> str:
    """The table of all contenders."""
    known = [one for one in contenders.ALL if any(results.median(row[1], one.name, row[2]) for row in MAIN)]
    rows: list[Sequence[str]] = [("", *(contender.title for contender in known))]
    for title, scenario, metric in MAIN:
        rows.append((title, *(number(results.median(scenario, contender.name, metric)) for contender in known)))
    return table(rows)


def without_centrifugo(results: Results) -> list[str]:
    """A sentence if Centrifugo was not measured."""
    if any("centrifugo" in {*found.rounds, *found.failures} for found in results.scenarios.values()):
        return []
    return [
        "Centrifugo was not measured, because there was no `centrifugo` program on the PATH: targets relative to it are"
        " replaced with absolute ones, or not measured."
    ]


def whole(results: Results) -> str:
    """The text of results.md."""
    parts = [
        "# Figures\n\n`make bench` generates this page from results.json; do not edit it. The figures are medians of"
        " the rounds. docs/explanation/performance.md explains how they are measured.",
        "\n".join(f"- {name}: {value}" for name, value in results.machine.items()),
        "## Targets\n\n" + verdicts(results),
        *without_centrifugo(results),
    ]
    parts += [_scenario(results, asked) for asked in scenarios.SCENARIOS if asked.name in results.scenarios]
    return "\n\n".join(parts) + "\n"


def _scenario(results: Results, scenario: scenarios.Scenario) -> str:
    found = results.scenarios[scenario.name]
    present = [contender for contender in scenario.contenders if contender.name in found.rounds]
    compared = {"gateway", "centrifugo"} <= {contender.name for contender in present}
    rows: list[Sequence[str]] = [("", *(one.title for one in present), *["gateway / Centrifugo"] * compared)]
    for metric in results.metrics(scenario.name):
        figures = [results.median(scenario.name, contender.name, metric) for contender in present]
        figures += [targets.versus(scenario.name, metric)(results)] * compared
        rows.append((metric, *map(number, figures)))
    most = max((len(rounds) for rounds in found.rounds.values()), default=0)
    lines = [f"## {scenario.name}: {scenario.title}", f"{found.date}, {most} round{'s' * (most != 1)}.", table(rows)]
    limited = [c.title for c in present if (results.median(scenario.name, c.name, "load core") or 0) >= BUSY]
    if limited:
        lines.append(
            f"The load's core was saturated with: {', '.join(limited)}. The load limits times and rates there."
        )
    disturbed = max((results.median(scenario.name, c.name, "others' core") or 0 for c in present), default=0)
    if disturbed >= DISTURBED:
        lines.append(f"The machine was not quiet: other programs took up to {disturbed:.2f} of a core.")
    lines += [f"{name} failed: {why}" for name, why in found.failures.items()]
    return "\n\n".join(lines)


def section(results: Results) -> str:
    """The section of docs/explanation/performance.md, with its markers."""
    dates = sorted({found.date for found in results.scenarios.values()})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}" if dates else "never"
    return "\n\n".join(
        (
            BEGIN,
            "![The gateway compared with its peers](../../bench/results.svg)",
            main_rows(results),
            verdicts(results),
            *without_centrifugo(results),
            f"Measured {when} on {results.machine.get('processor', 'an unknown machine')}: the server has one core,"
            " load and Redis share the other. All figures: [bench/results.md](../../bench/results.md).",
            END,
        )
    )


def scaling(results: Results) -> str:
    """The section of docs/how-to/scale.md, with its markers; or the missing figure, if it cannot be calculated."""
    try:
        found = table(capacity.rows(results))
    except capacity.Unmeasured as error:
        found = f"Not calculated, because a figure is missing: {error}"
    return "\n\n".join((BEGIN, found, END))


PAGES: Final = {PERFORMANCE: section, SCALING: scaling}


def renew(page: Path, results: Results) -> str:
    """The text of one of `PAGES` with its section updated."""
    text, marked = page.read_text(), re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    assert marked.search(text), f"{page.name} must contain the marker {BEGIN}"
    return marked.sub(lambda _: PAGES[page](results), text)


def picture(results: Results, path: Path) -> None:
    """Draws the rows of `MAIN` as bars."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "gateway"  # equal figures give equal files
    mpl.rcParams["svg.fonttype"] = "none"  # text stays text
    mpl.rcParams["font.size"] = 9
    from matplotlib import pyplot

    colours = {"gateway": "#2f6fde", "limit": "#9aa4b2"}
    figure, axes = pyplot.subplots(1, len(MAIN), figsize=(15, 2.9), layout="constrained")
    for axis, (title, scenario, metric) in zip(axes, MAIN, strict=True):
        known = [(c, value) for c in contenders.ALL if (value := results.median(scenario, c.name, metric))]
        bars = axis.barh(
            [c.title for c, _ in known], [value for _, value in known],
            color=[colours.get(c.name, "#d5b58a") for c, _ in known],
        )  # fmt: skip
        axis.bar_label(bars, [number(value) for _, value in known], padding=3)
        values = [value for _, value in known]
        if values and max(values) > 30 * min(values):
            axis.set_xscale("log")
        axis.margins(x=0.25)
        axis.invert_yaxis()
        axis.set_title(title.replace(", ", ",\n", 1), fontsize=9)
        axis.set_xticks([])
        axis.minorticks_off()
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def load(path: Path) -> Results:
    """Results of an earlier run; empty if the file does not exist."""
    return Results.from_json(json.loads(path.read_text())) if path.exists() else Results()


def write(results: Results, folder: Path) -> None:
    """Writes results.json, results.md and results.svg to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results.as_json(), indent=1) + "\n")
    (folder / "results.md").write_text(whole(results))
    picture(results, folder / "results.svg")
