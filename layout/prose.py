"""Names of modules, files and classes where they stand in text that is no Python: docs, configuration, strings."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import defaultdict
from pathlib import Path

TEXTS = (".md", ".toml", ".yaml", ".yml", ".sh", ".cfg", ".lua", ".mjs", ".js", ".html", ".json", ".c", ".conf")
# Two words that also name services or loggers, which do not change.
KEPT = {"gateway.announcer", "gateway.node", "gateway.presence", "gateway.client", "gateway.backend"}


def rewrite(modules, moves, names) -> None:  # type: ignore[no-untyped-def]
    """Rewrite all text files, and what strings in Python say of modules and files."""
    paths = sorted(moves.items(), key=lambda one: -len(one[0]))
    paths = [(a, b) for a, b in paths if a != b]
    dirs = [("gateway/cluster/lua", "gateway/broker/lua")]
    short = {a.removeprefix("gateway/"): b.removeprefix("gateway/") for a, b in paths if a.startswith("gateway/") and a.count("/") > 1}
    by_base: dict[str, set[str]] = defaultdict(set)
    listed = subprocess.run(["git", "ls-tree", "-r", "--name-only", "HEAD", "gateway"], capture_output=True, text=True, check=True)
    for path in listed.stdout.split():
        if path.endswith((".py", ".lua")):
            by_base[Path(path).name].add(moves.get(path, path))
    bases = {base: next(iter(new)).removeprefix("gateway/") for base, new in by_base.items() if len(new) == 1}
    # Dotted names of modules, the longest first.
    dotted = sorted(((a, b) for a, b in modules.items() if a != b and "." in a and a not in KEPT), key=lambda one: -len(one[0]))
    all_paths = dict([*paths, *dirs])
    one_path = re.compile(r"(?<![\w/.])(?:" + "|".join(re.escape(a) for a in sorted(all_paths, key=len, reverse=True)) + r")(?![\w])")
    by_module = {a: b for a, b in dotted if a.count(".") > 1}
    # Not in import statements: those are done.
    long_module = re.compile(r"(?<![\w.])(?<!^from )(?<!import )(?:" + "|".join(re.escape(a) for a in by_module) + r")(?![\w])", re.MULTILINE)
    any_module = re.compile(r"(?<![\w.])(?:" + "|".join(re.escape(a) for a in by_module) + r")(?![\w])")
    classes: dict[str, set[str]] = defaultdict(set)
    for full, new in names.SYMBOLS.items():
        old = full.rsplit(".", 1)[1]
        if old[0].isupper() and not old.isupper() and not full.startswith("gateway.client."):
            classes[old].add(new)
    members: dict[tuple[str, str], set[str]] = defaultdict(set)
    for full, new in names.MEMBERS.items():
        owner, old = full.rsplit(".", 1)
        members[owner.rsplit(".", 1)[1], old].add(new)
    unique = {old: next(iter(new)) for old, new in classes.items() if len(new) == 1}
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True)
    for path in listed.stdout.split():
        file = Path(path)
        if file.is_symlink() or not file.exists() or path in ("bench/results.json", "uv.lock"):
            continue
        markdown = path.endswith(".md")
        python = path.endswith(".py")
        if not python and not path.endswith(TEXTS) and file.name not in ("Dockerfile", "Makefile", "run", ".dockerignore", ".gitignore"):
            continue
        text = before = file.read_text()
        text = one_path.sub(lambda m: all_paths[m[0]], text)
        if not path.endswith((".js", ".mjs", ".html")):
            text = (long_module if python else any_module).sub(lambda m: by_module[m[0]], text)
            for old, new in dotted:  # with one dot only where it is sure that a module is meant
                if old.count(".") == 1 and old in text and (python or markdown or path.endswith(".toml")):
                    text = re.sub(rf'("""){re.escape(old)}(?=[:.])', rf"\g<1>{new}", text)
                    if not python:
                        text = re.sub(rf"(from|import) {re.escape(old)}(?=[ .\n])", rf"\g<1> {new}", text)
                    text = re.sub(rf"(?<![\w.]){re.escape(old)}(?=\.[A-Z])", new, text)
                    text = re.sub(rf'(setattr\("){re.escape(old)}(?=\.)', rf"\g<1>{new}", text)
        if python:
            text = re.sub(r'(\.script\(\s*")(\w+)(")', lambda m: m[1] + names.LUA.get(m[2], m[2]) + m[3], text)
            if path.startswith("tests/") and "def script(" in text:  # a stand-in of Redis that knows steps by name
                text = re.sub(r'((?:case ")(\w+)(":)|(== ")(\w+)("))', lambda m: (m[2] or m[5]) in names.LUA and m[0].replace(m[2] or m[5], names.LUA[m[2] or m[5]]) or m[0], text)
                text = re.sub(r'"(write|beat|enroll)"(?=: )', lambda m: f'"{names.LUA[m[1]]}"', text)
            if path.startswith("tests/lua/"):
                text = re.sub(r'((?:steps|self)\.call\(\s*")(\w+)(")', lambda m: m[1] + names.LUA.get(m[2], m[2]) + m[3], text)
        for old, new in names.SYMBOLS.items():  # strings such as "gateway.cache.near_cache.MAX_SECONDS"
            module, name = old.rsplit(".", 1)
            moved = modules.get(module, module)
            if len(name) > 3 and f'{moved}.{name}' in text:
                text = re.sub(rf"(?<![\w.]){re.escape(moved)}\.{name}(?![\w])", f"{moved}.{new}", text)
        if markdown or path.endswith(".lua") or python:
            text = re.sub(r"(?<=`)[\w/]+\.(?:py|lua)(?=`|::)", lambda m: short.get(m[0], m[0]), text)
            text = re.sub(r"(?<=`)([a-z_]+\.(?:py|lua))(?=`)", lambda m: bases.get(m[1], m[1]), text)
        if markdown and file.name != "CHANGELOG.md":
            def word(m):  # type: ignore[no-untyped-def]
                owner, member = m[1], m[2]
                if member:
                    found = members.get((owner, member[1:]), set())
                    if len(found) == 1:
                        return f"{unique.get(owner, owner)}.{next(iter(found))}"
                return unique.get(owner, owner) + (member or "")

            text = re.sub(r"(?<=`)([A-Z][a-z]\w*)(\.\w+)?(?=`|\()", word, text)
            text = re.sub(r"(import .*\b)(Publisher)\b", r"\1RedisPublisher", text)
            text = re.sub(r"(async with )Publisher\(", r"\1RedisPublisher(", text)
        if text != before:
            file.write_text(text)


def wrap(*, code: bool = True) -> bool:
    """Break comments and docstrings that have become too long; False: there are none."""
    found = subprocess.run(
        [".venv/bin/ruff", "check", "--select", "E501", "--output-format", "concise", "."],
        capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    lines: dict[str, list[int]] = defaultdict(list)
    for match in re.finditer(r"^(\S+?):(\d+):\d+: E501", found, re.MULTILINE):
        lines[match[1]].append(int(match[2]))
    for path, numbers in lines.items():
        source = Path(path).read_text()
        text = source.split("\n")
        documented: set[int] = set()
        skipped: dict[int, int] = {}
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
                documented |= set(range(node.lineno, (node.end_lineno or 0) + 1))
            if isinstance(node, ast.stmt):
                body = getattr(node, "body", None)
                end = body[0].lineno - 1 if body else node.end_lineno or 0
                first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
                for line_number in range(first, end + 1):
                    for mark in range(line_number, end + 1):
                        if text[mark - 1].endswith("# fmt: skip"):
                            skipped[line_number] = mark
        for number in sorted(numbers, reverse=True):
            line = text[number - 1]
            if not code and not re.search(r"\S  # (?!fmt|type|noqa)", line):
                continue
            if number in skipped and code:
                text[skipped[number] - 1] = text[skipped[number] - 1].removesuffix("# fmt: skip").rstrip()
                continue
            if number not in documented and not re.search(r"(^|\s)# ", line):
                if code:
                    print(f"too long: {path}:{number}")
                continue
            indent = line[: len(line) - len(line.lstrip())]
            body = line.strip()
            if body.startswith("#"):
                at = line.rfind(" ", 0, 120)
                text[number - 1 : number] = [line[:at], f"{indent}# {line[at + 1:]}"]
            elif re.search(r"\S  # ", line) and '"""' not in line:
                code, _, comment = line.rpartition("  # ")
                text[number - 1 : number] = [f"{indent}# {comment[0].upper()}{comment[1:]}".rstrip(), code]
            elif body.startswith('"""') and body.endswith('"""') and len(body) > 6:
                line = line[: -3]
                at = line.rfind(" ", 0, 120)
                text[number - 1 : number] = [line[:at], indent + line[at + 1 :], indent + '"""']
            else:  # within a docstring
                at = line.rfind(" ", 0, 120)
                rest = line[at + 1 :]
                following = text[number] if number < len(text) else ""
                if following.strip() and not following.strip().startswith('"""') and not re.match(r"\s*(\w+:|-|\d)", following):
                    text[number - 1 : number + 1] = [line[:at], f"{indent}{rest} {following.strip()}"]
                else:
                    text[number - 1 : number] = [line[:at], indent + rest]
        Path(path).write_text("\n".join(text))
    return bool(lines)
