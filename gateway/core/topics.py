"""Topic names, and the rules that hold for each: read from a TOML file, first match wins.  (pure)

docs/topics.md describes the file; `gateway/topics.toml` is the one that holds if no other is given.
"""

from __future__ import annotations

import enum
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Final, Literal

MAX_TOPIC_LENGTH: Final = 200

# Exact, case-sensitive names. No braces and no spaces: a topic stands inside Redis keys and hash tags.
_NAME = re.compile(r"[A-Za-z0-9_:.\-/]{1,200}")
_PATTERN = re.compile(r"[A-Za-z0-9_:.\-/*]{1,200}")

SYSTEM: Final = "system"
SERVICES: Final = "service"  # the state of all services
BREAKERS: Final = "circuit-breaker"  # those circuit breakers that are not closed
FIGURES: Final = "gateway:figures"  # what each node tells of itself every few seconds
RESERVED: Final = frozenset({SERVICES, BREAKERS, FIGURES})  # what the cluster says there nobody else can have said

Act = Literal["subscribe", "publish", "request", "command"]
ACTS: Final[tuple[Act, ...]] = ("subscribe", "publish", "request", "command")  # what a rule may say a need for
TOKEN_ACTS: Final = ("subscribe", "request")  # a REQUEST for history or presence asks for what a hearer hears
OWNED: Final = (":*", "/*")  # how a pattern ends whose topics have owners

MAX_HISTORY: Final = 100_000
MAX_HISTORY_SECONDS: Final = 30 * 86_400
MAX_CONFLATE_MS: Final = 60_000
MAX_SOURCE_SECONDS: Final = 86_400

PLACEHOLDER: Final = re.compile(r"\{([a-z]+|[1-9])\}")  # in a source
_SOURCE = re.compile(r"(?:/(?:[A-Za-z0-9_.~%\-]|\{(?:topic|action|user|[1-9])\})+)+")


class Need(enum.Enum):
    """What a client must be, or bring, for an act on a topic; `permits` weighs it."""

    ANYONE = "anyone"
    USER = "user"
    ADMIN = "role:admin"  # superadmins are administrators too
    SUPERADMIN = "role:superadmin"
    OWNER = "owner"  # what stands for the pattern's only *, its end, is the user
    TOKEN = "token"  # noqa: S105  # a subscription token that names the topic
    ASK = "ask"  # the back end knows
    NOBODY = "nobody"


class RulesError(ValueError):
    """A rules file that cannot be understood; the message names file, line and reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What holds for the topics that match `pattern`, in which each ``*`` stands for any run of characters."""

    pattern: str
    history: int = 0  # messages kept; 0: none
    history_seconds: int = 3600  # and for how long
    snapshot: bool = False  # the last value comes with the subscription
    presence: bool = False  # who is here is told
    subscribe: Need = Need.ANYONE
    publish: Need = Need.USER
    request: Need | None = None  # None: what `subscribe` needs
    command: Need = Need.USER
    conflate_ms: int = 0  # of what comes within this time only the last is sent; 0: everything is
    source: str = ""  # where the back end answers a REQUEST on it; "": nowhere
    source_seconds: int = 10  # for how long an answer serves, if the back end says nothing else
    source_stale_seconds: int = 0  # and for how much longer, while a new one is fetched
    aliases: tuple[str, ...] = ()  # other names: what is published to one goes out under each

    def need(self, act: Act) -> Need:
        """What a client must be, or bring, for `act` on such a topic."""
        match act:
            case "subscribe":
                return self.subscribe
            case "publish":
                return self.publish
            case "request":
                return self.request or self.subscribe
            case "command":
                return self.command


# The gateway's own topics are the same under any file of rules: one that forgot them must not open them.
# The figures of 160 nodes for ten minutes.
OWN: Final = (
    Rule(pattern=FIGURES, history=20_000, history_seconds=600, subscribe=Need.ADMIN, publish=Need.NOBODY),
    Rule(pattern=SERVICES, snapshot=True, subscribe=Need.ADMIN, publish=Need.NOBODY),
    Rule(pattern=BREAKERS, snapshot=True, subscribe=Need.ADMIN, publish=Need.NOBODY),
)


class TopicRules:
    """All rules of a node, in order: the gateway's own, `rules`, and one that matches everything."""

    def __init__(self, rules: Sequence[Rule], text: str = "") -> None:
        self.text = text  # what they were read from
        self._rules = (*OWN, *rules, Rule(pattern="*"))
        names = [{rule.pattern, *rule.aliases} for rule in rules if rule.aliases]
        self._names = {name: tuple(sorted(group)) for group in names for name in group}
        self.of = lru_cache(maxsize=65_536)(self._of)

    def _of(self, topic: str) -> Rule:
        """The rule for `topic`: the first whose pattern, or one of whose aliases, matches."""
        return next(rule for rule in self._rules if topic in rule.aliases or matches(rule.pattern, topic))

    def names(self, topic: str) -> tuple[str, ...]:
        """All names under which something published to `topic` goes out."""
        return self._names.get(topic, (topic,))


def is_topic(name: object) -> bool:
    """Whether `name` is a string that can be a topic."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def is_pattern(text: object) -> bool:
    """Whether `text` is a string that can be a topic or a pattern."""
    return isinstance(text, str) and _PATTERN.fullmatch(text) is not None


def matches(pattern: str, topic: str) -> bool:
    """Whether `topic` is what `pattern` describes, in which each ``*`` stands for any run of characters.

    The first place that fits is taken for each part, so even a hostile pattern costs no more than a few passes.
    """
    first, *rest = pattern.split("*")
    if not rest:
        return pattern == topic
    *middle, last = rest
    if not topic.startswith(first):
        return False
    at = len(first)
    for part in middle:
        at = topic.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return topic.endswith(last) and at <= len(topic) - len(last)


def parse(text: str, file: str) -> TopicRules:
    """The rules in `text`, TOML with a ``[[topic]]`` table a rule; `file` is its name for messages.

    Raises:
        RulesError: It is not TOML, or a rule says something that cannot be.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RulesError(f"{file}: {error}") from None
    except RecursionError:
        raise RulesError(f"{file}: brackets are nested too deeply") from None
    lines = [number for number, line in enumerate(text.splitlines(), 1) if re.match(r"\s*\[\[\s*topic\s*\]\]", line)]
    unknown = document.keys() - {"topic"}
    if unknown:
        raise RulesError(f"{file}: {min(unknown)!r} is not known; rules are [[topic]] tables")
    tables = document.get("topic", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise RulesError(f"{file}: write [[topic]], in two brackets, for each rule")
    rules = []
    for at, table in enumerate(tables):
        try:
            rules.append(_rule(table))
        except ValueError as error:
            where = f"{file}, line {lines[at]}" if at < len(lines) else file
            raise RulesError(f"{where}: {error}") from None
    _check_aliases(rules, lines, file)
    return TopicRules(rules, text)


def _rule(table: dict[str, Any]) -> Rule:
    unknown = table.keys() - {f.name for f in fields(Rule)}
    if unknown:
        raise ValueError(f"{min(unknown)!r} is not a field of a topic rule")
    pattern = table.get("pattern")
    if not isinstance(pattern, str) or not _PATTERN.fullmatch(pattern):
        raise ValueError("pattern must be 1 to 200 of A-Z a-z 0-9 _ : . - / and *")
    for name, low, high in (
        ("history", 0, MAX_HISTORY), ("history_seconds", 1, MAX_HISTORY_SECONDS), ("conflate_ms", 0, MAX_CONFLATE_MS),
        ("source_seconds", 1, MAX_SOURCE_SECONDS), ("source_stale_seconds", 0, MAX_SOURCE_SECONDS),
    ):  # fmt: skip
        value = table.get(name, low)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{name} must be a whole number from {low} to {high}, not {value!r}")
    for name in ("snapshot", "presence"):
        if not isinstance(table.get(name, False), bool):
            raise ValueError(f"{name} must be true or false, not {table[name]!r}")  # noqa: TRY004
    values = dict(table)
    for name in ACTS:
        if name in table:
            values[name] = _need(name, table[name], pattern)
    _check_source(table.get("source", ""), pattern)
    aliases = table.get("aliases", [])
    if not isinstance(aliases, list) or not all(is_topic(alias) for alias in aliases):
        raise ValueError("aliases must be a list of topic names")
    if aliases and "*" in pattern:
        raise ValueError("aliases go with one topic, not with a pattern")
    if table.get("conflate_ms") and table.get("history"):
        raise ValueError("conflate_ms leaves messages out, and history promises all of them: choose one")
    return Rule(**{**values, "aliases": tuple(aliases)})


def _check_source(source: object, pattern: str) -> None:
    if source == "":
        return
    if not isinstance(source, str) or not _SOURCE.fullmatch(source):
        raise ValueError(
            "source must be a path such as /contests/{1}; {topic}, {action}, {user}, {1} to {9} are put in"
        )
    wanted = max((int(name) for name in PLACEHOLDER.findall(source) if name.isdigit()), default=0)
    if wanted > pattern.count("*"):
        raise ValueError(f"source names {{{wanted}}}, and pattern has {pattern.count('*')} *")


def _check_aliases(rules: Sequence[Rule], lines: Sequence[int], file: str) -> None:
    seen: set[str] = set()
    for line, rule in zip(lines, rules, strict=False):
        for name in {rule.pattern, *rule.aliases} if rule.aliases else set():
            if name in seen:
                raise RulesError(f"{file}, line {line}: {name!r} is named by two rules with aliases")
            seen.add(name)


def _need(act: str, word: object, pattern: str) -> Need:
    try:
        need = Need(word)
    except ValueError:
        if word in ("admin", "superadmin"):
            raise ValueError(f'{act} = "{word}" is written "role:{word}"') from None
        words = ", ".join(need.value for need in Need if act in TOKEN_ACTS or need is not Need.TOKEN)
        raise ValueError(f"{act} must be one of {words}, not {word!r}") from None
    if need is Need.TOKEN and act not in TOKEN_ACTS:
        raise ValueError(f'{act} cannot be "token": subscription tokens come with SUBSCRIBE alone')
    if need is Need.OWNER and not (pattern.endswith(OWNED) and pattern.count("*") == 1):
        raise ValueError(f'{act} = "owner" needs a pattern whose only * is its last part, as in wallet-balance:*')
    return need
