"""The reference says what the code says: commands, metrics, codes, paths of the API, topic rules, variables."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from starlette.routing import compile_path

from gateway.auth import api_keys
from gateway.core.topic_rules import Need, Rule
from gateway.http.api import router
from gateway.protocols.native.codes import TEMPORARY, CloseCode, ErrorCode
from tests.docs import tables
from tests.kit.process import ROOT

REFERENCE = ROOT / "docs" / "reference"


def rows(page: Path) -> list[list[str]]:
    """The cells of all rows of all tables."""
    lines = [line.strip() for line in page.read_text().splitlines() if line.lstrip().startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_a_generated_table_is_current(page: Path) -> None:
    assert page.read_text() == tables.renewed(page), "run python -m tests.docs.tables"


def test_each_error_and_close_code_has_one_row() -> None:
    numbers = [int(row[0]) for row in rows(REFERENCE / "codes.md") if row[0].isdigit() and int(row[0]) > 600]
    assert sorted(numbers) == sorted({*map(int, ErrorCode), *map(int, CloseCode)})


def test_the_errors_after_which_to_retry_are_the_temporary_ones() -> None:
    retry = {int(row[0]) for row in rows(REFERENCE / "codes.md") if row[0].isdigit() and row[2].startswith("retry")}
    assert retry == set(map(int, TEMPORARY))


def test_the_api_page_lists_each_method_and_path() -> None:
    listed = set()
    for row in rows(REFERENCE / "http-api.md"):
        methods = re.findall(r"GET|PUT|POST|DELETE", row[0])
        for path in re.findall(r"(/api/[^`?]*)", row[0]):
            listed |= {(method, path) for method in methods}
    routed = {
        (method, compile_path(route.path)[1])
        for route in router.ROUTES
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert listed == routed


def test_the_rules_page_lists_each_field_with_its_default() -> None:
    listed = {row[0].strip("`"): row[1].strip("`") for row in rows(REFERENCE / "topic-rules.md") if len(row) == 3}
    for field in fields(Rule):
        assert field.name in listed, f"topic-rules.md has no row for {field.name}"
        if isinstance(field.default, bool | int):
            assert listed[field.name] == str(field.default).lower()


def test_the_permissions_page_lists_each_need_and_scope() -> None:
    first = {cell.strip("`") for row in rows(REFERENCE / "authentication.md") for cell in row[:1]}
    assert {need.value for need in Need} <= first
    assert set(api_keys.ALL_SCOPES) <= first


def test_the_page_of_the_load_balancer_lists_each_variable_and_no_other() -> None:
    configuration = (ROOT / "haproxy" / "haproxy.cfg").read_text()
    read = set(re.findall(r"\$\{?((?:GW|LB|RL)[A-Z0-9_]*)", configuration))
    read |= set(re.findall(r"defined\((\w+)\)", configuration))
    read = {re.sub(r"\d+$", "", name) for name in read}
    page = [row[0] for row in rows(ROOT / "haproxy" / "README.md")]
    listed = {re.sub(r"\d+$", "", name) for cell in page for name in re.findall(r"`((?:GW|LB|RL)\w*)`", cell)}
    assert listed == read


def test_the_page_of_the_stack_lists_each_variable_and_no_other() -> None:
    code = "".join(path.read_text() for path in (ROOT / "stack").glob("*.py")) + (ROOT / "compose.yaml").read_text()
    listed = {row[0].strip("`") for row in rows(REFERENCE / "stack.md") if re.fullmatch(r"`[A-Z_]+`", row[0])}
    assert [name for name in sorted(listed) if name not in code] == []
    own = set(re.findall(r"\$\{((?:NODE|LB|REDIS)_(?:MEMORY|FILES|FSYNC|MAXMEMORY|PORT|ADMIN_PORT))\b", code))
    assert own <= listed


def test_the_page_of_the_browser_client_names_what_its_types_declare() -> None:
    types = (ROOT / "gateway" / "static" / "client" / "gateway.d.ts").read_text()
    page = (REFERENCE / "browser-api.md").read_text()
    names = set(re.findall(r"^export class (\w+)", types, re.MULTILINE))
    for block in (
        "class Gateway extends EventTarget",
        "interface Options",
        "interface Handlers<Data = any>",
        "interface Timing",
    ):
        body = types[types.index(f"export {block}") :]
        names |= set(re.findall(r"^  (?:readonly )?(\w+)\??[(:<]", body[: body.index("\n}\n")], re.MULTILINE))
    names -= {"constructor", "GatewayError"}
    assert [name for name in sorted(names) if not re.search(rf"\b{name}\b", page)] == []
    listed = set(re.findall(r"^\| `(\w+)\(", page, re.MULTILINE))
    assert listed <= names, f"gateway.d.ts has no {listed - names}"
