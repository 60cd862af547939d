"""Type-resolved renames over a whole tree: mypy tells what each name and attribute means, tokens tell where it stands."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections import defaultdict
from pathlib import Path
from typing import Any

from mypy import build, nodes, state
from mypy.config_parser import parse_config_file
from mypy.find_sources import create_source_list
from mypy.fscache import FileSystemCache
from mypy.nodes import (
    GDEF, Argument, CallExpr, ClassDef, Decorator, FuncDef, ImportAll, ImportFrom, MemberExpr, MypyFile, NameExpr,
    OverloadedFuncDef, RefExpr, TypeAlias, TypeInfo, Var,
)  # fmt: skip
from mypy.options import Options
from mypy.patterns import ClassPattern
from mypy.subtypes import is_protocol_implementation
from mypy.types import (
    AnyType, CallableType, FunctionLike, Instance, LiteralType, Overloaded, TupleType, Type, TypeType, TypeVarType,
    UnionType, get_proper_type,
)  # fmt: skip
from mypy.typevars import fill_typevars


CHILDREN = {
    "Block": "body", "ClassDef": "decorators base_type_exprs metaclass keywords defs analyzed", "Decorator": "decorators func",
    "OverloadedFuncDef": "items impl", "ExpressionStmt": "expr", "AssignmentStmt": "rvalue lvalues",
    "OperatorAssignmentStmt": "rvalue lvalue", "WhileStmt": "expr body else_body", "ForStmt": "expr index body else_body",
    "ReturnStmt": "expr", "AssertStmt": "expr msg", "DelStmt": "expr", "IfStmt": "expr body else_body",
    "RaiseStmt": "expr from_expr", "TryStmt": "body types vars handlers else_body finally_body",
    "WithStmt": "expr target body", "MatchStmt": "subject patterns guards bodies", "MemberExpr": "expr",
    "YieldFromExpr": "expr", "YieldExpr": "expr", "CallExpr": "callee args analyzed", "OpExpr": "left right analyzed",
    "ComparisonExpr": "operands", "SliceExpr": "begin_index end_index stride", "CastExpr": "expr",
    "AssertTypeExpr": "expr", "AssignmentExpr": "value target", "UnaryExpr": "expr", "ListExpr": "items",
    "TupleExpr": "items", "DictExpr": "items", "SetExpr": "items", "IndexExpr": "base index analyzed",
    "GeneratorExpr": "sequences indices condlists left_expr", "ListComprehension": "generator",
    "SetComprehension": "generator", "DictionaryComprehension": "sequences indices condlists key value",
    "ConditionalExpr": "cond if_expr else_expr", "TypeApplication": "expr", "StarExpr": "expr", "AwaitExpr": "expr",
    "SuperExpr": "call", "AsPattern": "pattern name", "OrPattern": "patterns", "ValuePattern": "expr",
    "SequencePattern": "patterns", "StarredPattern": "capture", "MappingPattern": "keys values rest",
    "ClassPattern": "class_ref positionals keyword_values", "LambdaExpr": "body", "FuncDef": "body",
}  # fmt: skip


class TraverserVisitor:
    """Walks mypy's tree; a method ``visit_…`` of a subclass is called in place of the walk below its node."""

    def walk(self, node: Any) -> None:
        """Visit a node, or all of a list."""
        if node is None:
            return
        if isinstance(node, (list, tuple)):
            for one in node:
                self.walk(one)
            return
        if isinstance(node, dict):
            for one in node.values():
                self.walk(one)
            return
        name = type(node).__name__
        method = getattr(self, f"visit_{name}", None)
        if method is not None:
            method(node)
        else:
            self.below(node)

    def below(self, node: Any) -> None:
        """Visit what is below a node."""
        name = type(node).__name__
        if name in ("FuncDef", "LambdaExpr"):
            for argument in node.arguments:
                self.walk(argument.initializer)
        for child in CHILDREN.get(name, "").split():
            self.walk(getattr(node, child))


class Text:
    """One file: its bytes, its NAME tokens by position, and the edits to it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.source = Path(path).read_text()
        self.lines = [line.encode() for line in self.source.splitlines(keepends=True)]
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line))
        self.names: dict[tuple[int, int], str] = {}
        self.order: list[tuple[int, int, str]] = []  # line, column, string of all tokens that matter
        self.fstrings: list[tuple[int, int, str]] = []  # first line, start offset, text
        self.strings: list[tuple[int, int, str]] = []
        for token in tokenize.generate_tokens(io.StringIO(self.source).readline):
            line, column = token.start
            at = len(self.lines[line - 1].decode()[:column].encode()) if line <= len(self.lines) else 0
            if token.type == tokenize.NAME:
                self.names[line, at] = token.string
            if token.type == tokenize.STRING:
                if "f" in token.string[:2].lower().split('"')[0].split("'")[0]:
                    self.fstrings.append((line, self.starts[line - 1] + at, token.string))
                else:
                    self.strings.append((line, self.starts[line - 1] + at, token.string))
            if token.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT):
                self.order.append((line, at, token.string))
        self.edits: dict[tuple[int, int], bytes] = {}
        self.in_fstrings: dict[tuple[int, str], set[str]] = defaultdict(set)
        self.problems: list[str] = []

    def rename(self, line: int, column: int, old: str, new: str) -> None:
        """Rename the token `old` at this place, or say that it is not there."""
        if old == new or line < 1:
            return
        if self.names.get((line, column)) != old:
            whole = self.lines[line - 1].decode()  # a column may count characters
            column = len(whole[:column].encode())
            same = [at for at, name in self.names.items() if at[0] == line and name == old]
            if not whole.isascii() and self.names.get((line, column)) != old and len(same) == 1:
                column = same[0][1]
        if self.names.get((line, column)) == old:
            self.put(self.starts[line - 1] + column, len(old.encode()), new)
        else:
            self.in_fstrings[line, old].add(new)

    def put(self, start: int, length: int, new: str) -> None:
        """Replace bytes; the same edit twice is one."""
        before = self.edits.get((start, start + length))
        if before is not None and before != new.encode():
            self.problems.append(f"{self.path}: at byte {start} {before!r} and {new!r}")
        self.edits[start, start + length] = new.encode()

    def find_after(self, line: int, word: str, name: str) -> tuple[int, int] | None:
        """Where `name` stands directly behind the token `word`, from `line` on."""
        for (l1, _, s1), (l2, c2, s2) in zip(self.order, self.order[1:], strict=False):
            if l1 >= line and s1 == word and s2 == name:
                return l2, c2
        return None

    def apply(self) -> str:
        """The text with all edits."""
        for (line, old), news in self.in_fstrings.items():
            if len(news) > 1:
                self.problems.append(f"{self.path}:{line}: {old} -> {sorted(news)} in one string")
                continue
            new = next(iter(news))
            done = False
            near = sorted(self.fstrings, key=lambda one: (abs(one[0] - line)))
            same = [one for one in near if one[0] <= line <= one[0] + one[2].count("\n")] or near[:40]
            for first, start, text in same:
                for hole in holes(text):
                    for match in re.finditer(rf"(?<![\w]){re.escape(old)}(?![\w])", text[hole[0]:hole[1]]):
                        at = start + len(text[: hole[0] + match.start()].encode())
                        if not inside_quotes(text[hole[0]:hole[1]], match.start()):
                            self.put(at, len(old), new)
                            done = True
                if done and abs(first - line) > 0 and not (first <= line <= first + text.count("\n")):
                    break
            if not done:
                self.problems.append(f"{self.path}:{line}: {old} -> {new} not found: {sorted(c for (a, c), n in self.names.items() if a == line and n == old)}")
        raw = self.source.encode()
        out, last = [], 0
        for (start, end), new in sorted(self.edits.items()):
            if start < last:
                self.problems.append(f"{self.path}: overlapping edits at byte {start}")
                continue
            out += [raw[last:start], new]
            last = end
        out.append(raw[last:])
        return b"".join(out).decode()


def inside_quotes(text: str, at: int) -> bool:
    """Whether `at` lies in a string within the expression of an f-string."""
    return text[:at].count("'") % 2 == 1 or text[:at].count('"') % 2 == 1


def holes(text: str) -> list[tuple[int, int]]:
    """The parts of an f-string's text that are expressions."""
    found, depth, start, i = [], 0, 0, 0
    while i < len(text):
        if text[i] == "{":
            if depth == 0 and text[i : i + 2] == "{{":
                i += 2
                continue
            if depth == 0:
                start = i + 1
            depth += 1
        elif text[i] == "}" and depth:
            depth -= 1
            if depth == 0:
                found.append((start, i))
        i += 1
    return found


class Plan:
    """What is to be renamed; all keys are names of the old tree."""

    def __init__(
        self, modules: dict[str, str], symbols: dict[str, str], members: dict[str, str], params: dict[str, str],
        words: dict[str, dict[str, str]], splits: dict[str, str], implements: dict[str, list[str]],
    ) -> None:  # fmt: skip
        self.modules, self.symbols, self.members, self.params = modules, symbols, members, params
        self.words, self.splits, self.implements = words, splits, implements
        self.used: set[str] = set()
        self.member_names = {key.rsplit(".", 1)[1] for key in members}

    def module(self, old: str) -> str:
        """The new name of a module."""
        return self.modules.get(old, old)

    def home(self, module: str, symbol: str) -> str:
        """The new module of a symbol that was found in `module`."""
        return self.splits.get(f"{module}.{symbol}", self.module(module))


class Renamer(TraverserVisitor):
    """Walks one file of mypy's and notes its edits."""

    def __init__(self, tree: MypyFile, text: Text, plan: Plan, types: dict[Any, Type], world: World) -> None:
        super().__init__()
        self.tree, self.text, self.plan, self.types, self.world = tree, text, plan, types, world
        self.classes: list[TypeInfo] = []
        self.functions: list[FuncDef] = []
        self.untyped: list[str] = []
        self.module_uses: dict[str, set[str]] = defaultdict(set)  # old module -> new modules that are used for it
        self.imports: list[ImportFrom] = []
        self.doc_names: dict[int, dict[str, str]] = defaultdict(dict)

    # -- what a name becomes

    def variable(self, var: Var, name: str, where: str) -> str:
        """What a variable is called by the rule about variables of its type."""
        bare = name.lstrip("_")
        if bare.endswith("s"):
            for full in contained(var.type):
                words = self.words(full, where)
                if words and bare[:-1] in words and bare not in words:
                    return name[: len(name) - len(bare)] + plural(words[bare[:-1]])
        for full in instances(var.type):
            words = self.words(full, where)
            if words and bare in words:
                self.plan.used.add(f"{full}~{bare}")
                return name[: len(name) - len(bare)] + words[bare]
        return name

    def words(self, full: str, where: str) -> dict[str, str]:
        """The words for variables of a class in a module: outside the package, some differ."""
        words = self.plan.words.get(full, {})
        if not where.startswith("gateway"):
            words = {**words, **self.plan.words.get(f"tests:{full}", {})}
        return words

    def member(self, info: TypeInfo, name: str) -> str:
        """What the member `name` of a class becomes."""
        todo, seen = [info], set()
        while todo:
            one = todo.pop(0)
            for base in one.mro:
                if base.fullname in seen:
                    continue
                seen.add(base.fullname)
                key = f"{base.fullname}.{name}"
                if key in self.plan.members:
                    self.plan.used.add(key)
                    return self.plan.members[key]
                todo += [self.world.infos[p] for p in self.world.protocols_of(base) if p in self.world.infos]
        for base in info.mro:
            symbol = base.names.get(name)
            if symbol is not None and isinstance(symbol.node, Var):
                new = self.variable(symbol.node, name, info.module_name)
                if new != name:
                    return new
        for full in seen:  # an attribute of what the class stands for
            symbol = self.world.infos[full].names.get(name) if full in self.world.infos else None
            if symbol is not None and isinstance(symbol.node, Var):
                return self.variable(symbol.node, name, self.world.infos[full].module_name)
        return name

    def global_name(self, full: str, name: str, node: Any) -> str:
        if full in self.plan.symbols and full.rsplit(".", 1)[1] == name:
            self.plan.used.add(full)
            return self.plan.symbols[full]
        if isinstance(node, Var) and full.rsplit(".", 1)[-1] == name:
            return self.variable(node, name, full)
        return name

    def parameter(self, function: str, var: Var, name: str) -> str:
        key = f"{function}:{name}"
        if key in self.plan.params:
            self.plan.used.add(key)
            return self.plan.params[key]
        return self.variable(var, name, function or self.tree.fullname)

    # -- the walk

    def visit_MypyFile(self, o: MypyFile) -> None:
        for definition in o.defs:
            self.walk(definition)

    def visit_ClassDef(self, o: ClassDef) -> None:
        new = self.global_name(o.fullname, o.name, o.info)
        if new != o.name and (at := self.text.find_after(o.line, "class", o.name)):
            self.text.rename(*at, o.name, new)
        self.classes.append(o.info)
        self.below(o)
        self.classes.pop()

    def function_key(self, o: FuncDef) -> str:
        return o.fullname if not (len(self.functions) > 1) else ""

    def visit_FuncDef(self, o: FuncDef) -> None:
        if o.info and o.info is not nodes.FUNC_NO_INFO and self.classes and o.info is self.classes[-1]:
            new = self.member(o.info, o.name)
        else:
            new = self.global_name(o.fullname, o.name, o)
        if new != o.name and (at := self.text.find_after(o.line, "def", o.name)):
            self.text.rename(*at, o.name, new)
        self.functions.append(o)
        self.arguments(o, o.fullname)
        self.below(o)
        self.functions.pop()

    def visit_LambdaExpr(self, o: Any) -> None:
        self.arguments(o, "")
        self.below(o)

    def arguments(self, o: Any, function: str) -> None:
        for argument in o.arguments:
            name = argument.variable.name
            new = self.parameter(function, argument.variable, name)
            if new == name:
                new = self.inherited(o, name, argument.variable)
            self.world.local[id(argument.variable)] = new
            if new != name:
                at = (argument.line, argument.column)
                if self.text.names.get(at) != name:  # after a star
                    at = next(((a, b) for a, b, t in self.text.order if (a, b) >= at and t == name), at)
                self.text.rename(*at, name, new)
                self.doc_names[o.line][name] = new

    def inherited(self, o: Any, name: str, var: Var) -> str:
        """The parameter's new name by the method that this one overrides."""
        info = getattr(o, "info", None)
        if not info or not isinstance(info, TypeInfo):
            return name
        todo = list(info.mro)
        for base in info.mro:
            todo += [self.world.infos[p] for p in self.world.protocols_of(base) if p in self.world.infos]
        for base in todo:
            key = f"{base.fullname}.{o.name}:{name}"
            if key in self.plan.params:
                return self.plan.params[key]
        return name

    def visit_NameExpr(self, o: NameExpr) -> None:
        self.below(o)
        self.name(o)

    def name(self, o: NameExpr) -> None:
        node = o.node
        if node is None:
            symbol = self.tree.names.get(o.name)
            node = symbol.node if symbol else None
            if node is None:
                return
        if isinstance(node, MypyFile):
            self.module_name(o.line, o.column, o.name, node.fullname, None)
            return
        if isinstance(node, Var) and id(node) in self.world.local:
            self.text.rename(o.line, o.column, o.name, self.world.local[id(node)])
            return
        if self.classes and isinstance(node, (Var, FuncDef, Decorator, OverloadedFuncDef)) and o.kind == nodes.MDEF:
            info = getattr(node, "info", None) or self.classes[-1]
            self.text.rename(o.line, o.column, o.name, self.member(info, o.name))
            return
        full = getattr(node, "fullname", "") or ""
        if isinstance(node, Var) and o.kind == nodes.LDEF:
            self.text.rename(o.line, o.column, o.name, self.local(node, o.name))
            return
        if isinstance(node, Decorator):
            full = node.fullname
        self.text.rename(o.line, o.column, o.name, self.global_name(full, o.name, node))

    def local(self, var: Var, name: str) -> str:
        for function in reversed(self.functions):
            key = f"{function.fullname}:{name}"
            if key in self.plan.params:
                self.plan.used.add(key)
                return self.plan.params[key]
        return self.variable(var, name, self.tree.fullname)

    def module_name(self, line: int, column: int, name: str, module: str, symbol: str | None) -> None:
        """A reference to a module, for the sake of `symbol` in it."""
        new = self.plan.home(module, symbol) if symbol else self.plan.module(module)
        if module.rsplit(".", 1)[-1] == name:
            if symbol or module not in self.module_uses:
                self.module_uses[module].add(new)
            self.text.rename(line, column, name, new.rsplit(".", 1)[-1])

    def visit_MemberExpr(self, o: MemberExpr) -> None:
        base = o.expr
        if isinstance(base, RefExpr) and isinstance(base.node, MypyFile):
            module = base.node.fullname
            if isinstance(base, NameExpr):
                self.module_name(base.line, base.column, base.name, module, o.name)
            node = o.node
            full = getattr(node, "fullname", f"{module}.{o.name}") if node is not None else f"{module}.{o.name}"
            self.at_end(o, self.global_name(full, o.name, node))
            return
        self.walk(base)
        new = self.by_type(base, o.name)
        if new is not None:
            self.at_end(o, new)

    def by_type(self, base: Any, name: str) -> str | None:
        kind = self.types.get(base)
        news = set()
        infos = list(self.infos(kind))
        if not infos and isinstance(base, NameExpr) and self.classes and self.functions:
            arguments = self.functions[0].arguments
            if arguments and base.node is arguments[0].variable:
                infos = [self.classes[-1]]
        if not infos and isinstance(base, RefExpr) and isinstance(base.node, TypeInfo):
            infos = [base.node]
        if not infos:
            if isinstance(get_proper_type(kind), AnyType) if kind is not None else True:
                if name in self.plan.member_names:
                    self.untyped.append(f"{self.text.path}:{base.line}: .{name}")
            return None
        for info in infos:
            if info.get(name) is not None:
                news.add(self.member(info, name))
        if len(news) > 1:
            self.text.problems.append(f"{self.text.path}:{base.line}: .{name} -> {sorted(news)}")
            return None
        return news.pop() if news else None

    def infos(self, kind: Type | None) -> Any:
        kind = get_proper_type(kind) if kind is not None else None
        if isinstance(kind, Instance):
            yield kind.type
        elif isinstance(kind, TupleType):
            yield kind.partial_fallback.type
        elif isinstance(kind, UnionType):
            for item in kind.items:
                yield from self.infos(item)
        elif isinstance(kind, TypeVarType):
            yield from self.infos(kind.upper_bound)
            for value in kind.values:
                yield from self.infos(value)
        elif isinstance(kind, LiteralType):
            yield kind.fallback.type
        elif isinstance(kind, TypeType):
            yield from self.infos(kind.item)
        elif isinstance(kind, FunctionLike) and kind.is_type_obj():
            yield kind.type_object()

    def at_end(self, o: Any, new: str) -> None:
        if new == o.name or o.end_line is None or o.end_column is None:
            return
        size = len(o.name.encode())
        self.text.rename(o.end_line, o.end_column - size, o.name, new)

    def visit_SuperExpr(self, o: Any) -> None:
        self.below(o)
        if self.classes:
            new = self.member(self.classes[-1], o.name)
            self.at_end(o, new)

    def visit_CallExpr(self, o: CallExpr) -> None:
        self.keywords(o)
        if getattr(o.callee, "name", "") in ("setattr", "getattr") and len(o.args) > 1 and isinstance(o.args[1], nodes.StrExpr):
            self.attribute_in_string(o.args[0], o.args[1])
        self.below(o)

    def attribute_in_string(self, owner: Any, text: Any) -> None:
        """Rename the attribute that a call of ``setattr`` names."""
        name = text.value
        if isinstance(owner, RefExpr) and isinstance(owner.node, MypyFile):
            inner = owner.node.names.get(name)
            new = self.global_name(f"{owner.node.fullname}.{name}", name, inner.node if inner else None)
        else:
            new = self.by_type(owner, name) or name
        if new != name:
            self.text.put(self.text.starts[text.line - 1] + text.column + 1, len(name), new)

    def keywords(self, o: CallExpr) -> None:
        if not any(o.arg_names):
            return
        callee = get_proper_type(self.types.get(o.callee)) if self.types.get(o.callee) is not None else None
        full = getattr(o.callee, "fullname", "")
        info: TypeInfo | None = None
        definition: Any = None
        if full == "dataclasses.replace" and o.args:
            for one in self.infos(self.types.get(o.args[0])):
                info = one
        elif isinstance(o.callee, MemberExpr) and o.callee.name == "_replace":
            for one in self.infos(self.types.get(o.callee.expr)):
                info = one
        else:
            kinds = callee.items if isinstance(callee, Overloaded) else [callee]
            for kind in kinds:
                if isinstance(kind, CallableType):
                    definition = kind.definition or definition
                    if kind.is_type_obj():
                        info = kind.type_object()
            if info is None and isinstance(o.callee, RefExpr) and isinstance(o.callee.node, TypeInfo):
                info = o.callee.node
            if info is None and definition is None and isinstance(o.callee, RefExpr):
                definition = o.callee.node
        if isinstance(definition, Decorator):
            definition = definition.func
        if info is not None and (init := info.get("__init__")) is not None:
            node = init.node.func if isinstance(init.node, Decorator) else init.node
            if isinstance(node, FuncDef) and node.line > 0 and node.info.fullname != "builtins.object" and not init.plugin_generated:
                definition, info = node, None
        for value, name in zip(o.args, o.arg_names, strict=True):
            if name is None:
                continue
            new = name
            if info is not None:
                new = self.member(info, name)
            elif isinstance(definition, FuncDef):
                for argument in definition.arguments:
                    if argument.variable.name == name:
                        new = self.parameter(definition.fullname, argument.variable, name)
                        if new == name:
                            new = self.inherited(definition, name, argument.variable)
            if new != name:
                self.keyword_before(value, name, new)

    def keyword_before(self, value: Any, name: str, new: str) -> None:
        """Rename the keyword ``name=`` that stands before `value`."""
        best = None
        for (l1, c1, s1), (_, _, s2) in zip(self.text.order, self.text.order[1:], strict=False):
            if (l1, c1) >= (value.line, value.column):
                break
            if s1 == name and s2 == "=":
                best = (l1, c1)
        if best:
            self.text.rename(*best, name, new)

    def visit_ClassPattern(self, o: ClassPattern) -> None:
        node = o.class_ref.node
        if isinstance(node, TypeAlias):
            node = None
        if isinstance(node, TypeInfo):
            for key, value in zip(o.keyword_keys, o.keyword_values, strict=True):
                new = self.member(node, key)
                if new != key:
                    self.keyword_before(value, key, new)
        self.below(o)

    def visit_ImportFrom(self, o: ImportFrom) -> None:
        self.imports.append(o)

    def visit_NonlocalDecl(self, o: Any) -> None:
        for function in reversed(self.functions[:-1]):
            for (line, column), name in list(self.text.names.items()):
                if line == o.line and name in o.names:
                    for argument in function.arguments:
                        if argument.variable.name == name:
                            self.text.rename(line, column, name, self.world.local.get(id(argument.variable), name))

    def visit_ImportAll(self, o: ImportAll) -> None:
        self.text.problems.append(f"{self.text.path}:{o.line}: import *")


def instances(kind: Type | None) -> list[str]:
    """The classes of a type, without None."""
    kind = get_proper_type(kind) if kind is not None else None
    if isinstance(kind, Instance):
        return [kind.type.fullname]
    if isinstance(kind, UnionType):
        return [one for item in kind.items for one in instances(item)]
    if isinstance(kind, TupleType):
        return [kind.partial_fallback.type.fullname]
    return []


def plural(word: str) -> str:
    """The plural of a noun."""
    return word[:-1] + "ies" if word.endswith("y") else word + "s"


def contained(kind: Type | None) -> list[str]:
    """The classes of what a container holds."""
    kind = get_proper_type(kind) if kind is not None else None
    if isinstance(kind, Instance) and kind.args and kind.type.module_name in ("builtins", "typing", "collections", "collections.abc"):
        return [one for argument in kind.args for one in instances(argument)]
    if isinstance(kind, UnionType):
        return [one for item in kind.items for one in contained(item)]
    return []


class World:
    """The whole old tree as mypy sees it."""

    def __init__(self, plan: Plan, files: list[str], result: Any = None) -> None:
        self.result = result or self.build(files)
        self.plan = plan
        self.local: dict[int, str] = {}
        self.infos: dict[str, TypeInfo] = {}
        self.trees = {
            str(tree.path): tree for tree in self.result.files.values() if tree.path and str(tree.path) in set(files)
        }
        for tree in self.result.files.values():
            if tree.fullname.split(".")[0] in OURS:
                self._collect(tree.names)
        touched = {key.rsplit(".", 1)[0] for key in plan.members} | {
            key.split(":")[0].rsplit(".", 1)[0] for key in plan.params
        }
        self.protocols = [i for i in self.infos.values() if i.is_protocol and i.fullname in touched]
        self._protocols_of: dict[str, list[str]] = {}
        self.forget_taken()

    def forget_taken(self) -> None:
        """Leave out renames whose new name is taken, and splits of what is not there."""
        members, symbols = self.plan.members, self.plan.symbols
        for key, new in list(members.items()):
            owner = key.rpartition(".")[0]
            info = self.infos.get(owner)
            if info is not None and new in info.names and f"{owner}.{new}" not in members:
                print(f"taken: {key} -> {new}")
                del members[key]
        for table in (symbols, self.plan.splits):
            for key, new in list(table.items()):
                module, name = key.rsplit(".", 1)
                tree = self.result.files.get(module)
                if tree is None or name not in tree.names:
                    del table[key]
                    continue
                if table is symbols and new in tree.names and getattr(tree.names[new].node, "fullname", "") not in symbols:
                    print(f"taken: {key} -> {new}")
                    del table[key]

    @staticmethod
    def build(files: list[str]) -> Any:
        """What mypy makes of the files."""
        options = Options()
        parse_config_file(options, lambda: None, "pyproject.toml", io.StringIO(), io.StringIO())
        options.incremental, options.cache_dir = False, "/dev/null"
        options.export_types = options.preserve_asts = True
        options.show_traceback = options.check_untyped_defs = True
        options.python_executable = sys.executable
        cache = FileSystemCache()
        sources = create_source_list(files, options, cache)
        result = build.build(sources, options, fscache=cache)
        if result.errors:
            print(*result.errors[:20], sep="\n", file=sys.stderr)
            print("the old tree has type errors: their names may be missed")
        return result

    def _collect(self, names: Any) -> None:
        for symbol in names.values():
            node = symbol.node
            if isinstance(node, TypeInfo) and node.fullname not in self.infos:
                self.infos[node.fullname] = node
                self._collect(node.names)

    def protocols_of(self, info: TypeInfo) -> list[str]:
        """The renamed protocols that a class of ours implements, and what the plan says it stands for."""
        if info.module_name.split(".")[0] not in OURS:
            return []
        found = self._protocols_of.get(info.fullname)
        if found is None:
            found = list(self.plan.implements.get(info.fullname, []))
            if not info.is_protocol:
                for protocol in self.protocols:
                    if all(info.get(name) is not None for name in protocol.protocol_members):
                        with state.state.strict_optional_set(True):
                            left, right = fill_typevars(info), fill_typevars(protocol)
                            if isinstance(left, Instance) and isinstance(right, Instance):
                                if is_protocol_implementation(left, right):
                                    found.append(protocol.fullname)
            self._protocols_of[info.fullname] = found
        return found


OURS = ("gateway", "tests", "chaos", "bench", "fuzz", "stack", "examples", "mutants")


def git(*arguments: str) -> str:
    """What git prints."""
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


def annotations(source: str) -> list[ast.AST]:
    """All annotation expressions of a file, with base classes and what subscripts them."""
    found: list[ast.AST] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.arg) and node.annotation:
            found.append(node.annotation)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.returns:
            found.append(node.returns)
        elif isinstance(node, ast.AnnAssign):
            found.append(node.annotation)
        elif isinstance(node, ast.ClassDef):
            found += [*node.bases, *(k.value for k in node.keywords)]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("cast", "TypeVar"):
            found += node.args[:1] + [k.value for k in node.keywords]
        elif isinstance(node, (ast.Assign,)) and isinstance(node.value, (ast.Subscript, ast.BinOp)):
            found.append(node.value)
    return found


def annotate(renamer: Renamer) -> None:
    """Rename what stands in annotations, which mypy keeps as types."""
    text, tree, plan = renamer.text, renamer.tree, renamer.plan
    for root in annotations(text.source):
        for node in ast.walk(root):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                symbol = tree.names.get(node.value.id)
                if symbol is not None and isinstance(symbol.node, MypyFile):
                    module = symbol.node.fullname
                    renamer.module_name(node.value.lineno, node.value.col_offset, node.value.id, module, node.attr)
                    inner = symbol.node.names.get(node.attr)
                    full = getattr(inner.node, "fullname", "") if inner else ""
                    new = renamer.global_name(full or f"{module}.{node.attr}", node.attr, None)
                    if new != node.attr and node.end_lineno and node.end_col_offset:
                        text.rename(node.end_lineno, node.end_col_offset - len(node.attr), node.attr, new)
            elif isinstance(node, ast.Name):
                full = scoped(renamer, node)
                if full:
                    text.rename(node.lineno, node.col_offset, node.id, renamer.global_name(full, node.id, None))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                symbol = tree.names.get(node.value)
                if symbol is not None and isinstance(symbol.node, (TypeInfo, TypeAlias)):
                    new = renamer.global_name(symbol.node.fullname, node.value, None)
                    if new != node.value:
                        start = text.starts[node.lineno - 1] + node.col_offset
                        text.put(start + 1, len(node.value), new)
    del plan


def scoped(renamer: Renamer, node: ast.Name) -> str:
    """The full name of a class or an alias that an annotation names, also of one that a function imports."""
    symbol = renamer.tree.names.get(node.id)
    if symbol is None:
        for statement in renamer.imports:
            for name, alias in statement.names:
                if (alias or name) == node.id:
                    module = renamer.world.result.files.get(statement.id)
                    inner = module.names.get(name) if module else None
                    return getattr(inner.node, "fullname", "") if inner else ""
        return ""
    return getattr(symbol.node, "fullname", "") or ""


def rewrite_imports(renamer: Renamer) -> None:
    """Replace each ``from … import …`` of ours by what it becomes."""
    text, plan, world = renamer.text, renamer.plan, renamer.world
    files = world.result.files
    for statement in renamer.imports:
        if statement.id.split(".")[0] not in OURS:
            continue
        lines: dict[str, list[str]] = defaultdict(list)
        for name, alias in statement.names:
            whole = f"{statement.id}.{name}"
            if whole in files and not (statement.id in files and isinstance(getattr(files[statement.id].names.get(name), "node", None), (Var, FuncDef, TypeInfo))):
                targets = {plan.module(whole)} if alias else (renamer.module_uses.get(whole) or {plan.module(whole)})
                for target in sorted(targets):
                    package, _, base = target.rpartition(".")
                    if not package:
                        lines[""].append(f"import {base}")
                        continue
                    lines[package].append(f"{base} as {alias}" if alias and alias != base else base)
                continue
            inner = files[statement.id].names.get(name) if statement.id in files else None
            node = inner.node if inner else None
            full = getattr(node, "fullname", whole) or whole
            new = renamer.global_name(full, name, node)
            package = plan.splits.get(f"{statement.id}.{name}", plan.module(statement.id))
            lines[package].append(new + (f" as {alias}" if alias and alias != new else ""))
        start = text.starts[statement.line - 1] + statement.column
        end = text.starts[(statement.end_line or statement.line) - 1] + (statement.end_column or 0)
        indent = " " * statement.column
        parts = []
        for package, names in sorted(lines.items()):
            if package:
                body = ", ".join(sorted(set(names)))
                one = f"from {package} import {body}"
                if len(indent + one) > 120:
                    one = f"from {package} import (\n" + "".join(f"{indent}    {n},\n" for n in sorted(set(names))) + f"{indent})"
                parts.append(one)
            else:
                parts += sorted(set(names))
        for key in [k for k in text.edits if start <= k[0] < end]:
            del text.edits[key]
        text.put(start, end - start, ("\n" + indent).join(parts))


def stand_ins(renamer: Renamer, words: str) -> None:
    """Rename keywords, attributes and methods of stand-ins that have no type."""
    text = renamer.text
    pairs = dict(zip(words.split()[::2], words.split()[1::2], strict=True))
    tokens = text.order
    for before, (line, column, name), behind in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if name in pairs and (behind[2] == "=" and before[2] in ("(", ",") or before[2] in (".", "def")):
            at = text.starts[line - 1] + column
            if (at, at + len(name)) not in text.edits:
                text.put(at, len(name), pairs[name])


def slots_and_all(renamer: Renamer) -> None:
    """Rename what stands as text in ``__slots__`` and ``__all__``."""
    text, tree = renamer.text, renamer.tree
    module = ast.parse(text.source)

    def strings(value: ast.expr, new_of: Any) -> None:
        for node in ast.walk(value):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                new = new_of(node.value)
                if new != node.value:
                    text.put(text.starts[node.lineno - 1] + node.col_offset + 1, len(node.value), new)

    def inside(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                info = renamer.world.infos.get(f"{prefix}.{node.name}")
                for statement in node.body:
                    if isinstance(statement, ast.Assign) and info is not None:
                        target = statement.targets[0]
                        if isinstance(target, ast.Name) and target.id in ("__slots__", "__match_args__"):
                            strings(statement.value, lambda name, info=info: renamer.member(info, name))
                inside(node.body, f"{prefix}.{node.name}")
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":

                def new_of(name: str) -> str:
                    symbol = tree.names.get(name)
                    full = getattr(symbol.node, "fullname", "") if symbol else ""
                    return renamer.global_name(full, name, symbol.node if symbol else None) if full else name

                strings(node.value, new_of)

    inside(module.body, tree.fullname)


def docstrings(renamer: Renamer) -> None:
    """Rename parameters and members where docstrings name them in backticks."""
    text = renamer.text
    module = ast.parse(text.source)
    prefix = renamer.tree.fullname

    def doc(node: Any) -> ast.Constant | None:
        if node.body and isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant):
            value = node.body[0].value
            return value if isinstance(value.value, str) else None
        return None

    def parameters(node: Any) -> dict[str, str]:
        return dict(renamer.doc_names.get(node.lineno, {}))

    def visit(node: Any, qualified: str, members: dict[str, str]) -> None:
        for child in node.body if hasattr(node, "body") else []:
            if isinstance(child, ast.ClassDef):
                info = renamer.world.infos.get(f"{qualified}.{child.name}")
                inner: dict[str, str] = {}
                if info is not None:
                    for name in info.names:
                        new = renamer.member(info, name)
                        if new != name:
                            inner[name] = new
                    for one in child.body:
                        if isinstance(one, ast.FunctionDef) and one.name == "__init__":
                            inner.update(parameters(one))
                replace(doc(child), inner)
                visit(child, f"{qualified}.{child.name}", inner)
            elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                replace(doc(child), {**members, **parameters(child)})
                visit(child, qualified, members)

    def replace(constant: ast.Constant | None, words: dict[str, str]) -> None:
        if constant is None or not words:
            return
        start = text.starts[constant.lineno - 1] + constant.col_offset
        end = text.starts[constant.end_lineno - 1] + constant.end_col_offset  # type: ignore[operator]
        raw = text.source.encode()[start:end].decode()
        for match in re.finditer(r"(?<!`)`([A-Za-z_]\w*)(?=[`(])", raw):
            new = words.get(match[1])
            if new and new != match[1]:
                text.put(start + len(raw[: match.start(1)].encode()), len(match[1]), new)

    visit(module, prefix, {})


def references(renamer: Renamer, unique: dict[str, str]) -> None:
    """Rename what comments and docstrings name in backticks: `Class`, `Class.member`, `module.name`."""
    text, tree, world = renamer.text, renamer.tree, renamer.world
    spans: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(text.source).readline):
        if token.type == tokenize.COMMENT:
            line, column = token.start
            spans.append((text.starts[line - 1] + len(text.lines[line - 1].decode()[:column].encode()), token.string))
    for node in ast.walk(ast.parse(text.source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
                start = text.starts[first.value.lineno - 1] + first.value.col_offset
                end = text.starts[(first.value.end_lineno or 0) - 1] + (first.value.end_col_offset or 0)
                spans.append((start, text.source.encode()[start:end].decode()))

    def renamed(chain: list[str]) -> list[str]:
        symbol = tree.names.get(chain[0])
        node = symbol.node if symbol else None
        new = list(chain)
        if isinstance(node, TypeAlias):
            return [renamer.global_name(node.fullname, chain[0], node), *chain[1:]]
        if isinstance(node, TypeInfo):
            new[0] = renamer.global_name(node.fullname, chain[0], node)
            if len(chain) > 1 and node.get(chain[1]) is not None:
                new[1] = renamer.member(node, chain[1])
        elif isinstance(node, MypyFile) and len(chain) > 1:
            new[0] = renamer.plan.home(node.fullname, chain[1]).rsplit(".", 1)[-1]
            inner = node.names.get(chain[1])
            if inner is not None and inner.node is not None:
                new[1] = renamer.global_name(inner.node.fullname, chain[1], inner.node)
        elif node is not None:
            new[0] = renamer.global_name(getattr(node, "fullname", "") or "", chain[0], node)
        elif chain[0] in unique:
            full = unique[chain[0]]
            new[0] = renamer.plan.symbols.get(full, chain[0])
            info = world.infos.get(full)
            if info is not None and len(chain) > 1 and info.get(chain[1]) is not None:
                new[1] = renamer.member(info, chain[1])
        return new

    for start, raw in spans:
        for match in re.finditer(r"(?<!`)`([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?=[`(])", raw):
            chain = match[1].split(".")
            at = start + len(raw[: match.start(1)].encode())
            if (at, at + len(match[1])) in text.edits or any(at <= a < at + len(match[1]) for a, _ in text.edits):
                continue
            new = ".".join(renamed(chain))
            if new != match[1]:
                text.put(at, len(match[1]), new)


def split(text: str, parts: dict[str, set[str]], main: str, new_names: dict[str, str]) -> dict[str, str]:
    """Cut a module's (new) text: `parts` has the new names of the symbols that go to other modules."""
    lines = text.splitlines(keepends=True)
    module = ast.parse(text)
    body = module.body
    spans: list[tuple[int, int, set[str], ast.stmt]] = []
    last = 0
    for statement in body:
        first = last
        end = statement.end_lineno or 0
        names: set[str] = set()
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names = {statement.name}
        elif isinstance(statement, ast.Assign):
            names = {n.id for t in statement.targets for n in ast.walk(t) if isinstance(n, ast.Name)}
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            names = {statement.target.id}
        spans.append((first, end, names, statement))
        last = end
    imports = [lines[a:b] for a, b, _, s in spans if isinstance(s, (ast.Import, ast.ImportFrom, ast.If)) and not _]
    defined = {name: next((m for m, wanted in parts.items() if name in wanted), main) for _, _, n, _ in spans for name in n}
    out = {}
    for target in [main, *parts]:
        kept: list[str] = []
        docline = spans[0][1] if isinstance(body[0], ast.Expr) else 0
        if target == main:
            kept = lines[:docline]
        chunks: list[str] = []
        used: set[str] = set()
        for a, b, names, statement in spans:
            if not names:
                continue
            if next((defined[n] for n in names)) != target:
                continue
            chunks.append("".join(lines[a:b]).strip("\n") + "\n")
            used |= {n.id for n in ast.walk(statement) if isinstance(n, ast.Name)}
        cross: dict[str, set[str]] = defaultdict(set)
        for name in used:
            if name in defined and defined[name] != target:
                cross[defined[name]].add(name)
        head = "".join("".join(one) for one in imports)
        more = "".join(f"from {m} import {', '.join(sorted(n))}\n" for m, n in sorted(cross.items()))
        out[target] = "".join(kept) + ("\n" if kept else "") + head + more + "\n\n" + "".join(("\n\n" if re.match(r"(#.*\n)*(@|def |class |async def )", one) else "") + one for one in chunks)
    return out
