"""The samples in README.md and docs/: each fenced block, and what the tests do with it.

A block in ```text is output, a diagram or a sketch with placeholders: no sample. Any other block is run or checked,
as `HANDLING` says for its language. An HTML comment before a block changes that:

    <!-- sample: not run: REASON -->     it is only checked
    <!-- sample: run by tests/FILE -->   another test runs it
    <!-- sample: until TEXT -->          it goes on for ever, and is ended when it has printed TEXT
    <!-- sample: in a stack -->          its make targets start and stop a stack of their own
    <!-- sample: haproxy variables -->   it sets variables with which haproxy.cfg is valid

`python -m tests.docs.samples` prints all samples.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from tests.kit.process import ROOT

EXECUTED: Final = "executed"
VALIDATED: Final = "validated"
EXCEPTED: Final = "excepted"
# What becomes of a block in this language without a comment. TOML is read by the loader of the nodes, PromQL by
# promtool, HAProxy's configuration by haproxy -c.
HANDLING: Final = {
    "sh": EXECUTED, "python": EXECUTED, "js": EXECUTED, "jsx": EXECUTED, "html": EXECUTED,
    "toml": VALIDATED, "promql": VALIDATED, "haproxy": VALIDATED, "yaml": VALIDATED, "json": VALIDATED,
}  # fmt: skip
_BLOCK: Final = re.compile(
    r"(?:^ *<!-- sample: (?P<marker>[^\n]+?) -->\n\s*)?^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
_MARKER: Final = re.compile(r"not run: \S.*|run by tests/[\w/.]+\.py|until \S.*|in a stack|haproxy variables")


class Sample(NamedTuple):
    """A fenced block."""

    page: str
    line: int
    language: str
    marker: str
    text: str

    @property
    def handling(self) -> str:
        """EXECUTED, VALIDATED or EXCEPTED."""
        if self.marker.startswith("not run: "):
            return EXCEPTED
        if self.marker == "haproxy variables":
            return VALIDATED
        return HANDLING[self.language]

    @property
    def runner(self) -> str | None:
        """The test file that runs it, if it is not tests/docs/test_samples.py."""
        return self.marker.removeprefix("run by ") if self.marker.startswith("run by ") else None

    @property
    def end(self) -> str | None:
        """The text after which a program that goes on for ever is ended."""
        return self.marker.removeprefix("until ") if self.marker.startswith("until ") else None


def _read() -> list[Sample]:
    found = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        whole = page.read_text()
        for block in _BLOCK.finditer(whole):
            indent, language, marker = len(block["indent"]), block["language"], block["marker"] or ""
            name, line = str(page.relative_to(ROOT)), whole.count("\n", 0, block.start("indent")) + 1
            if language == "text":
                continue
            assert language in HANDLING, f"{name}:{line}: name the block's language, or text if it is no sample"
            assert not marker or _MARKER.fullmatch(marker), f"{name}:{line}: no such comment: {marker}"
            lines = (each[indent:] for each in block["text"].splitlines())
            found.append(Sample(name, line, language, marker, "\n".join(lines) + "\n"))
    return found


SAMPLES: Final = _read()


def listing() -> str:
    """All samples, and what is done with each."""
    lines = [
        f"{sample.handling:10} {sample.language:8} {sample.page}:{sample.line}"
        + f"  ({sample.marker})" * bool(sample.marker)
        for sample in SAMPLES
    ]
    return "\n".join([*sorted(lines), summary()])


def summary() -> str:
    """How many samples are executed, validated, excepted."""
    counts = {one: sum(sample.handling == one for sample in SAMPLES) for one in (EXECUTED, VALIDATED, EXCEPTED)}
    return f"{len(SAMPLES)} samples: " + ", ".join(f"{count} {one}" for one, count in counts.items())


if __name__ == "__main__":
    print(listing())
