"""Each sample of README and docs/ is run or checked, and the runner would notice a wrong one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.async_api import Browser

from gateway.core import topic_rules
from tests.docs import checks, runners
from tests.docs.place import Place
from tests.docs.samples import EXCEPTED, EXECUTED, SAMPLES, Sample
from tests.kit.process import ROOT

RUN_HERE = [sample for sample in SAMPLES if sample.handling == EXECUTED and sample.runner is None]


def name(sample: Sample) -> str:
    """Its page and line."""
    return f"{sample.page}:{sample.line}"


@pytest.mark.parametrize("sample", SAMPLES, ids=name)
def test_each_sample_is_valid(sample: Sample) -> None:
    if sample.marker == "haproxy variables":
        checks.haproxy_variables(sample.text)
    else:
        checks.CHECKS[sample.language](sample.text)


@pytest.mark.parametrize("sample", [one for one in RUN_HERE if one.language in ("sh", "python")], ids=name)
async def test_each_program_runs(sample: Sample, place: Place, folder: Path) -> None:
    await runners.run_program(sample, place, folder)


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("sample", [one for one in RUN_HERE if one.language in ("js", "html")], ids=name)
async def test_each_page_runs_in_chromium(sample: Sample, place: Place, browser: Browser) -> None:
    await runners.run_page(sample, place, browser)


@pytest.mark.parametrize("sample", [one for one in SAMPLES if one.runner], ids=name)
def test_a_sample_that_another_test_runs_is_named_there(sample: Sample) -> None:
    assert sample.runner is not None
    code = (ROOT / sample.runner).read_text()
    assert Path(sample.page).name in code or (sample.page.startswith("docs/tutorial/") and "docs/tutorial/" in code)


def test_a_component_is_bundled_by_another_test() -> None:
    assert [name(sample) for sample in SAMPLES if sample.language == "jsx" and sample.runner is None] == []


def test_few_samples_are_only_checked() -> None:
    excepted = [sample for sample in SAMPLES if sample.handling == EXCEPTED]
    assert len(excepted) <= len(SAMPLES) // 5, "\n".join(map(name, excepted))


def test_each_block_is_fenced() -> None:
    indented = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        indented += [
            f"{page.relative_to(ROOT)}: {paragraph.splitlines()[0]}"
            for paragraph in re.split(r"\n\s*\n", text)
            if re.match(r"    \S", paragraph) and not re.match(r"    [|*-]|    \d\.", paragraph)
        ]
    assert indented == [], "write ```sh, or ```text, before and ``` after these"


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("python", "from gateway.tokens import nothing\n"), ("python", "def\n"), ("toml", "[[topic]]\nhistory = 1\n"),
        ("toml", "[topics]\n"), ("js", "await = 1\n"), ("sh", "gateway publish --no-such-option t 1\n"),
        ("sh", "gateway fly\n"), ("sh", "make nothing\n"), ("sh", "curl http://localhost:8404/api/nothing\n"),
        ("sh", "if true\n"), ("html", "<script>let let = 1</script>"), ("promql", "rate(gateway_gaps_total)\n"),
        ("promql", "gateway_no_such_metric\n"), ("haproxy", "frontend x\n  nothing\n"), ("json", "{"),
    ],
)  # fmt: skip
def test_a_wrong_sample_would_be_found(language: str, text: str) -> None:
    with pytest.raises((AssertionError, SyntaxError, ValueError, topic_rules.RulesError)):
        checks.CHECKS[language](text)


def test_wrong_variables_of_haproxy_would_be_found() -> None:
    with pytest.raises(AssertionError, match="reads no"):
        checks.haproxy_variables("LB_NOTHING=1\n")


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("sh", 'curl "$GATEWAY_URL/api/topics"\n'), ("sh", "gateway publish a '{'\n"), ("sh", "false | true\n"),
        ("python", "raise SystemExit(3)\n"),
    ],
)  # fmt: skip
async def test_a_program_that_fails_would_be_found(language: str, text: str, place: Place, folder: Path) -> None:
    with pytest.raises(AssertionError):
        await runners.run_program(Sample("", 0, language, "", text), place, folder)


@pytest.mark.asyncio(loop_scope="session")
async def test_a_page_that_fails_would_be_found(place: Place, browser: Browser) -> None:
    page = """
        import { Gateway } from "/gateway.js";
        const gateway = new Gateway("/ws");
        gateway.subscribe("contest", { onData: () => nothing() });
        await gateway.connect();
    """
    with pytest.raises(AssertionError, match="nothing is not defined"):
        await runners.run_page(Sample("", 0, "js", "", page), place, browser)


def test_the_sample_rules_keep_what_the_shipped_rules_protect() -> None:
    page = "docs/reference/topic-rules.md"
    [sample] = [each for each in SAMPLES if each.page == page and "token:price:*" in each.text]
    rule = topic_rules.parse(sample.text, "sample").of("token:price:SOL")
    assert rule.publish is topic_rules.Need.ADMIN
