"""Checks responses of a node against its own `/api/openapi.json`."""

from __future__ import annotations

import copy
import re
from typing import Any

import httpx
from openapi_schema_validator import OAS31Validator

from gateway.http.api.router import document

METHODS = ("get", "post", "put", "patch", "delete")


class Contract:
    """The description with every object closed: a member that it does not name is a fault, too."""

    def __init__(self) -> None:
        self.document = copy.deepcopy(document())
        _close(self.document["components"]["schemas"])
        _close(self.document["paths"])

    def operations(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Each as method, path and description."""
        return [
            (method, path, item[method])
            for path, item in self.document["paths"].items()
            for method in METHODS
            if method in item
        ]

    def faults(self, schema: dict[str, Any], value: Any) -> list[str]:
        """Why `value` does not fit `schema`; empty: it does."""
        whole = {"components": self.document["components"], "allOf": [schema]}
        validator = OAS31Validator(whole, format_checker=OAS31Validator.FORMAT_CHECKER)
        return [error.message for error in validator.iter_errors(value)]

    def check(self, response: httpx.Response) -> None:
        """Hold an answer against it; one of a path or method that it does not know must be an Error."""
        assert response.headers["content-type"] == "application/json", response.headers
        operation = self._operation(response.request)
        schema: dict[str, Any] = {"$ref": "#/components/schemas/Error"}
        if operation is not None:
            described = operation["responses"].get(str(response.status_code))
            assert described, f"{operation['operationId']} may not answer {response.status_code}: {response.text}"
            described = self._resolved(described)
            schema = described["content"]["application/json"]["schema"]
            promised = set(map(str.lower, described.get("headers", {})))
            assert promised <= response.headers.keys(), response.headers
        else:
            assert response.status_code in (404, 405), response.text
        assert not self.faults(schema, response.json()), (self.faults(schema, response.json()), response.text)

    def _operation(self, request: httpx.Request) -> dict[str, Any] | None:
        path = request.url.raw_path.decode().partition("?")[0]
        for method, template, operation in self.operations():
            pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template))
            if method == request.method.lower() and re.fullmatch(pattern, path):
                return operation
        return None

    def _resolved(self, node: dict[str, Any]) -> dict[str, Any]:
        if "$ref" not in node:
            return node
        found: Any = self.document
        for step in node["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        return dict(found)


def _close(node: Any) -> None:
    if isinstance(node, dict):
        if node.get("type") == "object" and "properties" in node:
            node.setdefault("additionalProperties", False)
        for part in node.values():
            _close(part)
    elif isinstance(node, list):
        for part in node:
            _close(part)
