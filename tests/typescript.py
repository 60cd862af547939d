"""TypeScript types of all messages, made from the AsyncAPI document: `python -m tests.typescript` writes them."""

from __future__ import annotations

import json
from typing import Any

from gateway.protocols.native import asyncapi
from tests.kit.process import ROOT

FILE = ROOT / "gateway" / "static" / "client" / "messages.d.ts"
HEAD = """\
/**
 * The messages on a socket, for clients that do without gateway.js. Made from /api/asyncapi.json.
 * `python -m tests.typescript` in the project writes this file.
 */

export type Json = null | boolean | number | string | Json[] | { [name: string]: Json };
"""
SIMPLE = {"string": "string", "integer": "number", "number": "number", "boolean": "boolean", "null": "null"}


def written(schema: dict[str, Any]) -> str:
    """The type of what fits `schema`."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "const" in schema:
        return "true" if schema["const"] is True else f'"{schema["const"]}"'
    if "enum" in schema:
        return " | ".join(map(json.dumps, schema["enum"]))
    if "anyOf" in schema:
        return "".join(f"\n  | {written(one)}" for one in schema["anyOf"])
    match schema.get("type"):
        case None:
            return "Json"
        case list() as kinds:
            return " | ".join(dict.fromkeys(SIMPLE[kind] for kind in kinds))
        case "array":
            return f"Array<{written(schema['items'])}>"
        case "object" if "properties" in schema:
            needed = schema["required"]
            members = schema["properties"].items()
            fields = (f"{name}{'' if name in needed else '?'}: {written(one)}" for name, one in members)
            return f"{{ {'; '.join(fields)} }}"
        case "object":
            return f"{{ [name: string]: {written(schema.get('additionalProperties', {}))} }}"
        case kind:
            return SIMPLE[kind]


def types() -> str:
    """The whole file."""
    lines = [HEAD]
    lines += [f"export type {name} = {written(schema)};" for name, schema in asyncapi.SCHEMAS.items()]
    for part, title in ((asyncapi.COMMANDS, "ClientMessage"), (asyncapi.EVENTS, "ServerMessage")):
        for name, (about, schema) in part.items():
            lines += [f"\n/** {about} */", f"export type {name} = {written(schema)};"]
        lines.append(f"\nexport type {title} =\n  | " + "\n  | ".join(part) + ";")
    return "\n".join(lines).replace(" \n", "\n") + "\n"


if __name__ == "__main__":
    FILE.write_text(types())
