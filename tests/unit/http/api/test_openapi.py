"""The API's description is valid, complete, and matches the code."""

from __future__ import annotations

import re
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.routing import compile_path

from gateway import __version__
from gateway.core.errors import ProtocolError
from gateway.core.publication import Publication
from gateway.http.api import router
from gateway.http.api.publish import MAX_MESSAGES
from gateway.http.api.router import document
from tests.contract import Contract

MESSAGE = {"$ref": "#/components/schemas/Message"}


@pytest.fixture(scope="module")
def contract() -> Contract:
    """The description, closed."""
    return Contract()


def test_it_is_openapi_3_1_of_this_version() -> None:
    OpenAPIV31SpecValidator(document()).validate()
    assert document()["openapi"].startswith("3.1.")
    assert document()["info"]["version"] == __version__


def test_every_route_and_method_is_described_and_nothing_else(contract: Contract) -> None:
    described = {(method.upper(), path) for method, path, _ in contract.operations()}
    routed = {
        (method, compile_path(route.path)[1])
        for route in router.ROUTES
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert described == routed
    assert len({route.path for route in router.ROUTES}) == len(router.ROUTES), (
        "a path of two routes answers 405 wrongly"
    )


def test_every_parameter_in_a_path_is_described(contract: Contract) -> None:
    for _, path, operation in contract.operations():
        described = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
        assert described == set(re.findall(r"\{(\w+)\}", path))


def test_all_operations_but_the_description_need_the_key(contract: Contract) -> None:
    assert contract.document["security"] == [{"apiKey": []}]
    for _, path, operation in contract.operations():
        if path in ("/api/openapi.json", "/api/asyncapi.json"):
            assert operation["security"] == []
            assert set(operation["responses"]) == {"200"}
        else:
            assert "security" not in operation
            assert {"200", "400", "401", "403", "503"} <= set(operation["responses"])


def test_every_example_fits_its_schema(contract: Contract) -> None:
    found = 0

    def look(node: Any) -> None:
        nonlocal found
        if isinstance(node, list):
            for part in node:
                look(part)
        elif isinstance(node, dict):
            schema = node.get("schema", node)
            examples = node.get("examples", [])
            values = [e["value"] for e in examples.values()] if isinstance(examples, dict) else list(examples)
            for value in [*values, *([node["example"]] if "example" in node else [])]:
                assert not contract.faults(schema, value), value
                found += 1
            for part in node.values():
                look(part)

    look(contract.document["paths"])
    look(contract.document["components"])
    assert found > 20


def with_topic_and_data(*more: dict[str, Any]) -> list[Any]:
    """Messages that have both, unless they have their own."""
    return [{"topic": "a", "data": 1, **one} for one in more]


GOOD = with_topic_and_data(
    {}, {"data": None}, {"topic": "a:b/c.d-e_f", "data": [1, {"x": []}]}, {"topic": "a" * 200},
    {"action": "x", "subtype": "y", "priority": "high"}, {"action": "é" * 200}, {"priority": 1.5}, {"priority": 0},
    {"action": None, "subtype": None, "priority": None, "to": None, "except": None},
    {"tags": {"symbol": "BTC", "é": ""}}, {"tags": {}}, {"tags": None}, {"tags": dict.fromkeys("0123456789abcdef", "")},
    {"to": {"user": "ann/b c"}}, {"to": {"role": "admin"}, "except": None}, {"to": {"client": "n1.0.1"}},
    {"to": None, "except": "n1.0.1"},
)  # fmt: skip
BAD = [None, 1, "a", [], {}, {"topic": "a"}, {"data": 1}, *with_topic_and_data(
    {"topic": None}, {"topic": ""}, {"topic": "a b"}, {"topic": "a" * 201}, {"topic": "é"}, {"topic": 1},
    {"unknown": 1}, {"action": 1}, {"action": ""}, {"subtype": "x" * 201}, {"priority": []}, {"priority": ""},
    {"tags": ["a"]}, {"tags": {"a": 1}}, {"tags": {"": "a"}}, {"tags": {"a": "x" * 201}}, {"tags": {"x" * 201: "a"}},
    {"tags": dict.fromkeys(map(str, range(17)), "x")},
    {"to": {}}, {"to": "ann"}, {"to": {"user": ""}}, {"to": {"user": 1}}, {"to": {"user": "a", "role": "b"}},
    {"to": {"node": "n1"}}, {"to": {"client": "a b"}}, {"to": {"user": "a"}, "except": "n1.0.1"},
    {"except": 1}, {"except": "a b"}, {"except": ""},
)]  # fmt: skip


@pytest.mark.parametrize("item", GOOD, ids=repr)
def test_what_the_node_takes_fits_the_described_message(contract: Contract, item: Any) -> None:
    Publication.of_item(item)
    assert contract.faults(MESSAGE, item) == []


@pytest.mark.parametrize("item", BAD, ids=repr)
def test_what_the_node_refuses_does_not_fit_the_described_message(contract: Contract, item: Any) -> None:
    with pytest.raises(ProtocolError):
        Publication.of_item(item)
    assert contract.faults(MESSAGE, item)


def test_a_body_is_one_message_or_several(contract: Contract) -> None:
    body = contract.document["paths"]["/api/publish"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    one = GOOD[0]
    assert contract.faults(body, one) == []
    assert contract.faults(body, {"messages": [one] * MAX_MESSAGES}) == []
    assert contract.faults(body, {"messages": [one] * (MAX_MESSAGES + 1)})
    assert contract.faults(body, {"messages": []})
    assert contract.faults(body, {"messages": [one], "topic": "a"})
    assert contract.faults(body, [one])
