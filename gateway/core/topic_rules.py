"""Topic names and topic rules. The rules come from a TOML file; the first match applies.  (pure)

docs/reference/topic-rules.md describes the file. `gateway/topics.toml` is the default file.
"""

from __future__ import annotations

import enum
import hashlib
import math
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Final, Literal

from gateway.core.recent_messages import HISTORY_BYTES

MAX_TOPIC_LENGTH: Final = 200
MAX_STARS: Final = 9  # in a pattern; a source has the placeholders {1} to {9}
MAX_RULES: Final = 1000  # in a file; each new topic is compared with all of them

# Exact, case-sensitive names. No spaces, which separate the parts of a body (`core.message`), and no braces, which
# delimit hash tags in Redis keys. A * is for patterns.
NAME_CHARACTERS: Final = r"[!-)+-z|~]"
_NAME = re.compile(NAME_CHARACTERS + "{1,200}")
_PATTERN = re.compile(r"[!-z|~]{1,200}")

# The same rules as text, for error messages.
NAME_FORM: Final = f"1 to {MAX_TOPIC_LENGTH} visible ASCII characters without {{ }} *"
PATTERN_FORM: Final = f"1 to {MAX_TOPIC_LENGTH} visible ASCII characters without {{ }}, with at most {MAX_STARS} *"

SYSTEM: Final = "system"
SERVICES: Final = "service"  # the state of all services
BREAKERS: Final = "circuit-breaker"  # the circuit breakers that are not closed
STATS: Final = "gateway:figures"  # the figures that each node publishes every few seconds
OWN_PREFIX: Final = "gateway:"  # reserved for topics of the gateway
RESERVED: Final = frozenset({SYSTEM, SERVICES, BREAKERS})

Act = Literal["subscribe", "publish", "request", "command"]
ACTS: Final[tuple[Act, ...]] = ("subscribe", "publish", "request", "command")  # the acts for which a rule has a need
TOKEN_ACTS: Final = ("subscribe", "request")  # a subscription token also allows reading history and presence
OWNED: Final = (":*", "/*")  # the end of a pattern whose topics have owners

MAX_HISTORY: Final = 100_000
MAX_HISTORY_SECONDS: Final = 30 * 86_400
MAX_HISTORY_BYTES: Final = 1 << 30
MAX_CONFLATE_MS: Final = 60_000
MAX_SOURCE_SECONDS: Final = 86_400

PLACEHOLDER: Final = re.compile(r"\{([a-z]+|[1-9])\}")  # in a source
_SOURCE = re.compile(r"(?:/(?:[A-Za-z0-9_.~%\-]|\{(?:topic|action|user|[1-9])\})+)+")


class Need(enum.Enum):
    """What a client needs for an act on a topic: a user, a role or a token. `check_rule` checks it."""

    ANYONE = "anyone"
    USER = "user"
    ADMIN = "role:admin"  # or superadmin
    SUPERADMIN = "role:superadmin"
    OWNER = "owner"  # the pattern ends with its only *, which must match the user
    TOKEN = "token"  # noqa: S105  # a subscription token that names the topic
    SUBSCRIBER = "subscriber"  # a subscription to the topic; not for `subscribe` itself
    ASK = "ask"  # the back end decides
    NOBODY = "nobody"


class RulesError(ValueError):
    """A rules file is invalid. The message names file, line and reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The rule for the topics that match `pattern`. Each ``*`` in it matches any characters, or none."""

    pattern: str
    history: int = 0  # messages kept; 0: none
    history_seconds: int = 3600  # how long messages are kept
    history_bytes: int = HISTORY_BYTES  # the limit for all kept messages; each counts its text and 64 bytes
    snapshot: bool = False  # a new subscriber receives the last message
    presence: bool = False  # subscribers are notified of joins and leaves
    force_join_leave: bool = False  # the same for Centrifugo's clients that have not asked for it
    subscribe: Need = Need.ANYONE
    publish: Need = Need.USER
    request: Need | None = None  # None: the same as `subscribe`
    command: Need = Need.USER
    conflate_ms: int = 0  # within this time only the last message is delivered; 0: every message is
    source: str = ""  # the back end's path that answers a REQUEST; "": the back end does not answer
    source_seconds: int = 10  # how long an answer is fresh, unless the back end sets a time
    source_stale_seconds: int = 0  # how long a stale answer may be used during a new fetch
    aliases: tuple[str, ...] = ()  # other names; a message published to one name is delivered under each

    @property
    def price(self) -> int:
        """The price of a subscription for the rate limit: 1, and 1 more for each kind of data read from Redis."""
        return 1 + bool(self.history or self.snapshot) + self.presence

    @property
    def subscription_terms(self) -> tuple[object, ...]:
        """What a subscription depends on: who may have it, and what nodes keep for it."""
        owned = self.pattern if self.subscribe is Need.OWNER else ""
        kept = (self.history, self.history_seconds, self.history_bytes, self.snapshot, self.presence)
        return self.subscribe, owned, *kept

    def need(self, act: Act) -> Need:
        """What a client needs for `act` on such a topic."""
        match act:
            case "subscribe":
                return self.subscribe
            case "publish":
                return self.publish
            case "request":
                return self.request or self.subscribe
            case "command":
                return self.command


# The rules of the gateway's own topics. A rules file cannot change them.
# The history of FIGURES holds ten minutes of 160 nodes.
OWN: Final = (
    Rule(pattern=SYSTEM, publish=Need.NOBODY),
    Rule(pattern=STATS, history=20_000, history_seconds=600, subscribe=Need.ADMIN, publish=Need.NOBODY),
    Rule(pattern=SERVICES, snapshot=True, subscribe=Need.ADMIN, publish=Need.NOBODY),
    Rule(pattern=BREAKERS, snapshot=True, subscribe=Need.ADMIN, publish=Need.NOBODY),
    Rule(pattern=f"{OWN_PREFIX}*", subscribe=Need.ADMIN, publish=Need.NOBODY),
)


ANY_OTHER: Final = Rule(pattern="*")  # for topics that no rule matches, unless a setting changes it


class TopicRules:
    """All rules of a node, in order: the gateway's own, the `rules` of the file, and `default` for all other topics."""

    def __init__(
        self, rules: Sequence[Rule], text: str = "", default: Rule = ANY_OTHER, *, strict_namespaces: bool = False
    ) -> None:
        self.text = text  # of the rules file
        self.rules = tuple(rules)
        self.strict_namespaces = strict_namespaces  # a topic `ns:rest` needs a rule whose pattern has a colon
        self._rules = ordered = (*OWN, *rules, default)
        # A SUBSCRIBE may name thousands of topics, so exact names are looked up in a dict, and a pattern is only
        # matched if the topic begins as it does.
        self._exact: dict[str, tuple[int, Rule]] = {}
        self._patterns = []
        for at, rule in enumerate(ordered):
            start, star, rest = rule.pattern.partition("*")
            if star:
                self._patterns.append((at, start, bool(rest), rule))
        for at, rule in enumerate(ordered):
            for name in (rule.pattern, *rule.aliases):
                self._exact.setdefault(name, (at, rule))
        names = [{rule.pattern, *rule.aliases} for rule in rules if rule.aliases]
        self._names = {name: tuple(sorted(group)) for group in names for name in group}
        self.of = lru_cache(maxsize=65_536)(self._of)

    def replace(self, other: TopicRules) -> None:
        """Become equal to `other`. The parts of a node share one object, so all of them have the new rules at once."""
        vars(self).update(vars(other))

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that identify the rules. Nodes with different digests have different rules."""
        values = [
            [(f.name, repr(value)) for f in fields(rule) if (value := getattr(rule, f.name)) != f.default]
            for rule in self._rules
        ]
        strict = "strict" if self.strict_namespaces else ""
        return hashlib.sha256((repr(values) + strict).encode()).hexdigest()[:16]

    def _of(self, topic: str) -> Rule:
        """The rule for `topic`: the first whose pattern or alias matches."""
        first, found = self._exact.get(topic, (math.inf, None))
        for at, start, more, rule in self._patterns:
            if at > first:
                break
            if topic.startswith(start) and (not more or matches(rule.pattern, topic)):
                return rule
        assert found is not None, "the last pattern matches everything"
        return found

    def is_unknown(self, topic: str) -> bool:
        """Whether `topic` has a namespace, the part before its first colon, that no rule names."""
        if not self.strict_namespaces or ":" not in topic:
            return False
        rule = self.of(topic)
        return ":" not in rule.pattern and topic not in rule.aliases

    def names(self, topic: str) -> tuple[str, ...]:
        """All names under which a message published to `topic` is delivered."""
        return self._names.get(topic, (topic,))


def is_topic(name: object) -> bool:
    """Whether `name` is a valid topic. Every topic that enters the gateway passes this check."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def is_reserved(topic: str) -> bool:
    """Whether `topic` is reserved: only the gateway itself publishes there."""
    return topic in RESERVED or topic.startswith(OWN_PREFIX)


def is_pattern(text: object) -> bool:
    """Whether `text` is a valid topic or pattern, with at most `MAX_STARS` ``*``."""
    return isinstance(text, str) and text.count("*") <= MAX_STARS and _PATTERN.fullmatch(text) is not None


def matches(pattern: str, topic: str) -> bool:
    """Whether `topic` matches `pattern`. Each ``*`` matches any characters, or none."""
    return captures(pattern, topic) is not None


def captures(pattern: str, topic: str) -> tuple[str, ...] | None:
    """The text that each ``*`` of `pattern` matches in `topic`; None if `topic` does not match.

    An earlier ``*`` matches as much as possible. There is no backtracking: from right to left, each part between two
    ``*`` takes the last place where it occurs. So the cost is one search of `topic` per part.
    """
    first, *rest = pattern.split("*")
    if not rest:
        return () if pattern == topic else None
    *middle, last = rest
    begin, end = len(first), len(topic) - len(last)
    if begin > end or not topic.startswith(first) or not topic.endswith(last):
        return None
    found = []
    for part in reversed(middle):
        at = topic.rfind(part, begin, end)
        if at < 0:
            return None
        found.append(topic[at + len(part) : end])
        end = at
    found.append(topic[begin:end])
    return tuple(reversed(found))


def left_open(rules: TopicRules, shipped: TopicRules) -> list[str]:
    """Warnings about `rules`, one sentence each: topics less protected than by `shipped`, and rules without effect."""
    found = []
    deeds: tuple[tuple[Act, str], ...] = (("subscribe", "subscribe to"), ("publish", "publish on"))
    for act, deed in deeds:
        names = [
            name
            for rule in shipped.rules
            for name in (rule.pattern, *rule.aliases)
            if _openness(rule, act) < _openness(ANY_OTHER, act)
            and _openness(rule, act) < _openness(rules.of(name.replace("*", "x")), act)
        ]
        if names:
            found.append(
                f"more clients may {deed} {', '.join(names)} than under the default topic rules: "
                f"give each of them a rule in the file of GATEWAY_TOPICS, or set GATEWAY_DEFAULT_{act.upper()}"
            )
    idle = [rule.pattern for rule in rules.rules if is_reserved(rule.pattern)]
    if idle:
        found.append(f"the topic rules for {', '.join(idle)} have no effect: these topics are the gateway's own")
    return found


def _openness(rule: Rule, act: Act) -> int:
    need = rule.subscribe if rule.need(act) is Need.SUBSCRIBER else rule.need(act)
    return {Need.ANYONE: 2, Need.USER: 1}.get(need, 0)


def parse(text: str, file: str, default: Rule = ANY_OTHER) -> TopicRules:
    """Parse a rules file.

    Args:
        text: TOML with one ``[[topic]]`` table per rule, and before them perhaps ``strict_namespaces = true``.
        file: The name of the file, for error messages.
        default: The rule for topics that no other rule matches.

    Raises:
        RulesError: `text` is not TOML, or a rule is invalid.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RulesError(f"{file}: {error}") from None
    except RecursionError:
        raise RulesError(f"{file}: brackets are nested too deeply") from None
    lines = [number for number, line in enumerate(text.splitlines(), 1) if re.match(r"\s*\[\[\s*topic\s*\]\]", line)]
    unknown = document.keys() - {"topic", "strict_namespaces"}
    if unknown:
        raise RulesError(f"{file}: {min(unknown)!r} is not known; rules are [[topic]] tables")
    strict = document.get("strict_namespaces", False)
    if not isinstance(strict, bool):
        raise RulesError(f"{file}: strict_namespaces must be true or false, not {strict!r}")
    tables = document.get("topic", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise RulesError(f"{file}: write [[topic]], in two brackets, for each rule")
    if len(tables) > MAX_RULES:
        raise RulesError(f"{file}: {len(tables)} rules are more than the {MAX_RULES} that a file may have")
    rules = []
    for at, table in enumerate(tables):
        try:
            rules.append(_rule(table))
        except ValueError as error:
            where = f"{file}, line {lines[at]}" if at < len(lines) else file
            raise RulesError(f"{where}: {error}") from None
    _check_aliases(rules, lines, file)
    return TopicRules(rules, text, default, strict_namespaces=strict)


def _rule(table: dict[str, Any]) -> Rule:
    unknown = table.keys() - {f.name for f in fields(Rule)}
    if unknown:
        raise ValueError(f"{min(unknown)!r} is not a field of a topic rule")
    pattern = table.get("pattern")
    if not isinstance(pattern, str) or not is_pattern(pattern):
        raise ValueError(f"pattern must be {PATTERN_FORM}")
    for name, low, high in (
        ("history", 0, MAX_HISTORY), ("history_seconds", 1, MAX_HISTORY_SECONDS), ("conflate_ms", 0, MAX_CONFLATE_MS),
        ("history_bytes", 1024, MAX_HISTORY_BYTES),
        ("source_seconds", 1, MAX_SOURCE_SECONDS), ("source_stale_seconds", 0, MAX_SOURCE_SECONDS),
    ):  # fmt: skip
        value = table.get(name, low)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{name} must be a whole number from {low} to {high}, not {value!r}")
    for name in ("snapshot", "presence", "force_join_leave"):
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
        raise ValueError("aliases need a pattern without *")
    own = next((name for name in (pattern, *aliases) if aliases and is_reserved(name)), None)
    if own is not None:
        raise ValueError(f"{own} is the gateway's own topic: it cannot have aliases or be one")
    if table.get("conflate_ms") and table.get("history"):
        raise ValueError("conflate_ms drops messages, but history promises all of them: remove one of the two")
    return Rule(**{**values, "aliases": tuple(aliases)})


def _check_source(source: object, pattern: str) -> None:
    if source == "":
        return
    if not isinstance(source, str) or not _SOURCE.fullmatch(source):
        raise ValueError(
            "source must be a path such as /contests/{1}, with placeholders {topic}, {action}, {user}, {1} to {9}"
        )
    wanted = max((int(name) for name in PLACEHOLDER.findall(source) if name.isdigit()), default=0)
    if wanted > pattern.count("*"):
        raise ValueError(f"source names {{{wanted}}}, but the pattern has only {pattern.count('*')} *")


def _check_aliases(rules: Sequence[Rule], lines: Sequence[int], file: str) -> None:
    seen: set[str] = set()
    for line, rule in zip(lines, rules, strict=False):
        for name in {rule.pattern, *rule.aliases} if rule.aliases else set():
            if name in seen:
                raise RulesError(f"{file}, line {line}: {name!r} is in two rules with aliases; remove it from one")
            seen.add(name)


def _need(act: str, word: object, pattern: str) -> Need:
    try:
        need = Need(word)
    except ValueError:
        if word in ("admin", "superadmin"):
            raise ValueError(f'{act} = "{word}" is not valid: write "role:{word}"') from None
        words = ", ".join(need.value for need in Need if _fits(act, need))
        raise ValueError(f"{act} must be one of {words}, not {word!r}") from None
    if not _fits(act, need):
        reason = "only SUBSCRIBE carries subscription tokens" if need is Need.TOKEN else "no client could subscribe"
        raise ValueError(f'{act} cannot be "{need.value}": {reason}')
    if need is Need.OWNER and not (pattern.endswith(OWNED) and pattern.count("*") == 1):
        raise ValueError(f'{act} = "owner" needs a pattern whose only * is its last part, as in wallet-balance:*')
    return need


def _fits(act: str, need: Need) -> bool:
    """Whether a rule may state `need` for `act`."""
    return (need is not Need.TOKEN or act in TOKEN_ACTS) and (need is not Need.SUBSCRIBER or act != "subscribe")
