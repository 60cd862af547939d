"""The mutants of a source text: each changes one operator, number, condition or statement of Python or Lua.

What no test should notice is left alone: log calls, strings, annotations, decorators, assertions, `__slots__`,
`__repr__`, `if TYPE_CHECKING`.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

_COMPARISONS: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_ARITHMETIC: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
_UNSEEN: Final = ("__slots__", "__all__", "__repr__", "__str__", "__match_args__")
_LOGS: Final = re.compile(r"(^|\.)_?log(ger)?\b|^logs?\.|^warnings\.")
_COUNTED: Final = 16  # a larger number is doubled: one more of 1,000 is hardly a fault


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one file."""

    path: str
    start: int  # in characters of the text
    end: int
    new: str
    first: int  # the lines whose execution runs it
    last: int
    by_import: bool = False  # not in the body of a function

    def apply(self, text: str) -> str:
        """The mutated text."""
        return text[: self.start] + self.new + text[self.end :]

    def describe(self, text: str) -> str:
        """``file:line  old -> new``."""
        old, new = (" ".join(part.split()) for part in (text[self.start : self.end], self.new))
        at = text.count("\n", 0, self.start) + 1
        return f"{self.path}:{at}  {old[:90]}  ->  {new[:90] or '(deleted)'}"


def mutants(path: str, text: str) -> list[Mutant]:
    """All mutants of a file, in the order of the text."""
    return list((_lua if path.endswith(".lua") else _Python(path, text).walk)(path, text))


def number(value: float) -> str:
    """Another number: the next, or twice as much where it is large or a fraction."""
    return repr(value + 1 if value == int(value) and abs(value) <= _COUNTED else value * 2)


# ---- Python


class _Python:
    def __init__(self, path: str, text: str) -> None:
        self._path = path
        self._lines = text.splitlines(keepends=True)
        self._depth = 0  # of functions
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line))

    def walk(self, _path: str, text: str) -> Iterator[Mutant]:
        for statement in ast.parse(text).body:
            yield from self._statement(statement)

    def _statement(self, node: ast.stmt, *, prepares: bool = False) -> Iterator[Mutant]:
        if _unseen(node):
            return
        # Without an attribute that __init__ sets, any test of the class fails: that says nothing about the tests.
        if (replaced := _statement_replaced(node)) is not None and not (prepares and isinstance(node, ast.Assign)):
            yield self._mutant(node, replaced, node)
        prepares = isinstance(node, ast.FunctionDef) and node.name == "__init__"
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in _children(node):
            if isinstance(child, ast.stmt):
                self._depth += inside
                yield from self._statement(child, prepares=prepares)
                self._depth -= inside
            else:
                yield from self._expression(child, node)

    def _expression(self, node: ast.AST, statement: ast.stmt) -> Iterator[Mutant]:
        if isinstance(node, ast.Call) and _LOGS.search(ast.unparse(node.func)):
            return
        if isinstance(node, ast.JoinedStr):
            return  # its parts have no exact place before Python 3.12
        if isinstance(node, ast.expr):
            yield from (self._mutant(node, text, statement) for text in _expression_replaced(node))
        for child in _children(node):
            yield from self._statement(child) if isinstance(child, ast.stmt) else self._expression(child, statement)

    def _mutant(self, node: ast.expr | ast.stmt, new: str, statement: ast.stmt) -> Mutant:
        assert node.end_lineno is not None and node.end_col_offset is not None
        start, end = self._at(node.lineno, node.col_offset), self._at(node.end_lineno, node.end_col_offset)
        first = min(statement.lineno, node.lineno)
        return Mutant(self._path, start, end, new, first, node.end_lineno, by_import=not self._depth)

    def _at(self, line: int, octets: int) -> int:
        return self._starts[line - 1] + len(self._lines[line - 1].encode()[:octets].decode())


def _children(node: ast.AST) -> Iterator[ast.AST]:
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns", "decorator_list", "type_params"):
            yield from (part for part in (value if isinstance(value, list) else [value]) if isinstance(part, ast.AST))


def _unseen(node: ast.stmt) -> bool:
    match node:
        case ast.Assert() | ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant()):
            return True
        case ast.FunctionDef(name=name) | ast.Assign(targets=[ast.Name(id=name)]):
            return name in _UNSEEN
        case ast.If(test=test):
            return ast.unparse(test) == "TYPE_CHECKING"
    return False


def _statement_replaced(node: ast.stmt) -> str | None:
    match node:
        case ast.Expr(value=ast.Call(func=called) | ast.Await(value=ast.Call(func=called))):
            return None if _LOGS.search(ast.unparse(called)) else "pass"
        case ast.Expr(value=ast.Await()) | ast.AugAssign() | ast.Delete():
            return "pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            return "pass"
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and not value.value):
            return "return None"
        case ast.Break():
            return "continue"
        case ast.Continue():
            return "break"
    return None


def _expression_replaced(node: ast.expr) -> Iterator[str]:
    match node:
        case ast.Compare(ops=ops):
            for at, op in enumerate(ops):
                yield _changed(node, lambda other, at=at, op=op: other.ops.__setitem__(at, _COMPARISONS[type(op)]()))
        case ast.BoolOp(op=op):
            yield _changed(node, lambda other: setattr(other, "op", ast.And() if isinstance(op, ast.Or) else ast.Or()))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield f"({ast.unparse(operand)})"
        case ast.BinOp(op=operator) if type(operator) in _ARITHMETIC and not _is_text(node):
            yield _changed(node, lambda other: setattr(other, "op", _ARITHMETIC[type(operator)]()))
        case ast.Constant(value=bool() as flag):
            yield str(not flag)
        case ast.Constant(value=int() | float() as value):
            yield number(value)
        case ast.IfExp(body=body, orelse=orelse):
            yield f"({ast.unparse(ast.IfExp(node.test, orelse, body))})"


def _changed(node: ast.expr, change: Callable[..., object]) -> str:
    other = copy.deepcopy(node)
    change(other)
    return f"({ast.unparse(other)})"


def _is_text(node: ast.BinOp) -> bool:
    """Whether it joins or formats strings, or is a union of types."""
    return any(
        isinstance(side, ast.JoinedStr)
        or (isinstance(side, ast.Constant) and isinstance(side.value, str | bytes | None))
        for side in (node.left, node.right)
    )


# ---- Lua

_HIDDEN: Final = re.compile(r"--[^\n]*|'[^'\n]*'|\"[^\"\n]*\"")
_WORDS: Final = {
    "==": "~=", "~=": "==", "<=": "<", ">=": ">", "<": "<=", ">": ">=", "and": "or", "or": "and", "not": "",
    "true": "false", "false": "true", "math.max": "math.min", "math.min": "math.max", "math.floor": "math.ceil",
    "math.ceil": "math.floor", "+": "-", "-": "+", "*": "/", "/": "*",
}  # fmt: skip
_TOKEN: Final = re.compile(
    r"==|~=|<=|>=|<|>|\b(?:and|or|not|true|false)\b|math\.(?:max|min|floor|ceil)|(?<=[\w)\]] )[-+*/](?= )"
    r"|(?<![\w.])\d+(?:\.\d+)?(?![\w.])"
)
_CONDITION: Final = re.compile(r"\b(?:if|elseif)\b(.*?)\bthen\b", re.DOTALL)
_CALL: Final = re.compile(r"^ *(redis\.p?call\([^\n]*\)) *$|\bthen (redis\.p?call\([^\n]*\)) end", re.MULTILINE)
_RETURN: Final = re.compile(r"(?:^ *|then )return (?!0\b)([^\n]+?)(?= end\b *$| *$)", re.MULTILINE)


def _lua(path: str, text: str) -> Iterator[Mutant]:
    code = _HIDDEN.sub(lambda found: re.sub(r"[^\n]", "_" if found[0][0] != "-" else " ", found[0]), text)

    def mutant(start: int, end: int, new: str) -> Mutant:
        line = text.count("\n", 0, start) + 1
        return Mutant(path, start, end, new, line, line)

    for found in _TOKEN.finditer(code):
        word = found[0]
        new = _WORDS[word] if word in _WORDS else number(float(word) if "." in word else int(word))
        yield mutant(*found.span(), new)
    for found in _CONDITION.finditer(code):
        yield mutant(*found.span(1), " true ")
        yield mutant(*found.span(1), " false ")
    for found in _CALL.finditer(code):
        yield mutant(*found.span(1 if found[1] else 2), "")
    for found in _RETURN.finditer(code):
        yield mutant(*found.span(1), "0")
