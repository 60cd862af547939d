"""Topic names, and the rules that hold for each: read from a TOML file, first match wins.  (pure)

docs/topics.md describes the file; `gateway/topics.toml` is the one that holds if no other is given.
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

from gateway.core.recent import HISTORY_BYTES

MAX_TOPIC_LENGTH: Final = 200
MAX_STARS: Final = 9  # in a pattern, whoever wrote it: a source can name nine
MAX_RULES: Final = 1000  # in a file: each topic seen for the first time is compared with all of them

# Exact, case-sensitive names. No braces and no spaces: a topic stands inside Redis keys and hash tags.
_NAME = re.compile(r"[A-Za-z0-9_:.\-/]{1,200}")
_PATTERN = re.compile(r"[A-Za-z0-9_:.\-/*]{1,200}")

# What the two allow, for the errors that refuse something else.
NAME_FORM: Final = f"1 to {MAX_TOPIC_LENGTH} characters of A-Z a-z 0-9 _ : . - /"
PATTERN_FORM: Final = f"1 to {MAX_TOPIC_LENGTH} characters of A-Z a-z 0-9 _ : . - / and at most {MAX_STARS} *"

SYSTEM: Final = "system"
SERVICES: Final = "service"  # the state of all services
BREAKERS: Final = "circuit-breaker"  # those circuit breakers that are not closed
FIGURES: Final = "gateway:figures"  # what each node tells of itself every few seconds
OWN_PREFIX: Final = "gateway:"  # of all other topics that the gateway may ever use
RESERVED: Final = frozenset({SYSTEM, SERVICES, BREAKERS})

Act = Literal["subscribe", "publish", "request", "command"]
ACTS: Final[tuple[Act, ...]] = ("subscribe", "publish", "request", "command")  # what a rule may say a need for
TOKEN_ACTS: Final = ("subscribe", "request")  # a REQUEST for history or presence asks for what a hearer hears
OWNED: Final = (":*", "/*")  # how a pattern ends whose topics have owners

MAX_HISTORY: Final = 100_000
MAX_HISTORY_SECONDS: Final = 30 * 86_400
MAX_HISTORY_BYTES: Final = 1 << 30
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
    history_bytes: int = HISTORY_BYTES  # and at most so many bytes of them, 64 for each message beside its text
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

    @property
    def price(self) -> int:
        """What a topic counts for among the topics subscribed to: what must be read from Redis counts once more."""
        return 1 + bool(self.history or self.snapshot) + self.presence

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


# The gateway's own topics are the same under any file of rules, whose own rules for them count for nothing.
# The figures of 160 nodes for ten minutes.
OWN: Final = (
    Rule(pattern=SYSTEM, publish=Need.NOBODY),
    Rule(pattern=FIGURES, history=20_000, history_seconds=600, subscribe=Need.ADMIN, publish=Need.NOBODY),
    Rule(pattern=SERVICES, snapshot=True, subscribe=Need.ADMIN, publish=Need.NOBODY),
    Rule(pattern=BREAKERS, snapshot=True, subscribe=Need.ADMIN, publish=Need.NOBODY),
    Rule(pattern=f"{OWN_PREFIX}*", subscribe=Need.ADMIN, publish=Need.NOBODY),
)


ANY_OTHER: Final = Rule(pattern="*")  # for the topics that no rule matches, unless a setting says otherwise


class TopicRules:
    """All rules of a node, in order: the gateway's own, the file's `rules`, and `default`, which matches everything."""

    def __init__(self, rules: Sequence[Rule], text: str = "", default: Rule = ANY_OTHER) -> None:
        self.text = text  # what they were read from
        self.rules = tuple(rules)
        self._rules = ordered = (*OWN, *rules, default)
        # A SUBSCRIBE may name thousands of topics: exact names are looked up, and of patterns few get past their start.
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

    @property
    def digest(self) -> str:
        """16 hexadecimal digits, the same for files that say the same: nodes with another digest have other rules."""
        said = [
            [(f.name, repr(value)) for f in fields(rule) if (value := getattr(rule, f.name)) != f.default]
            for rule in self._rules
        ]
        return hashlib.sha256(repr(said).encode()).hexdigest()[:16]

    def _of(self, topic: str) -> Rule:
        """The rule for `topic`: the first whose pattern, or one of whose aliases, matches."""
        first, found = self._exact.get(topic, (math.inf, None))
        for at, start, more, rule in self._patterns:
            if at > first:
                break
            if topic.startswith(start) and (not more or matches(rule.pattern, topic)):
                return rule
        assert found is not None, "the last pattern matches everything"
        return found

    def names(self, topic: str) -> tuple[str, ...]:
        """All names under which something published to `topic` goes out."""
        return self._names.get(topic, (topic,))


def is_topic(name: object) -> bool:
    """Whether `name` is a string that can be a topic. Every name that enters the gateway passes this check."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def is_reserved(topic: str) -> bool:
    """Whether `topic` is the gateway's own: what is said there, the gateway itself has said."""
    return topic in RESERVED or topic.startswith(OWN_PREFIX)


def is_pattern(text: object) -> bool:
    """Whether `text` is a string that can be a topic or a pattern: of bounded length, with few ``*``."""
    return isinstance(text, str) and text.count("*") <= MAX_STARS and _PATTERN.fullmatch(text) is not None


def matches(pattern: str, topic: str) -> bool:
    """Whether `topic` is what `pattern` describes, in which each ``*`` stands for any run of characters."""
    return captures(pattern, topic) is not None


def captures(pattern: str, topic: str) -> tuple[str, ...] | None:
    """What each ``*`` of `pattern` stands for in `topic`, an earlier one for as much as it can; None: no match.

    There is no backtracking. From the right, each part between two ``*`` takes the last place that fits, which leaves
    the most to the parts before it; so the whole is one search of `topic` for each part.
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
    """What is open under `rules` and protected by `shipped`, and rules that have no effect; a sentence each."""
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
                f"more clients may {deed} {', '.join(names)} than under the topic rules that the gateway brings: "
                f"give each of them a rule in the file of GATEWAY_TOPICS, or set GATEWAY_DEFAULT_{act.upper()}"
            )
    idle = [rule.pattern for rule in rules.rules if is_reserved(rule.pattern)]
    if idle:
        found.append(f"the topic rules for {', '.join(idle)} have no effect: these topics are the gateway's own")
    return found


def _openness(rule: Rule, act: Act) -> int:
    return {Need.ANYONE: 2, Need.USER: 1}.get(rule.need(act), 0)


def parse(text: str, file: str, default: Rule = ANY_OTHER) -> TopicRules:
    """The rules in `text`, TOML with a ``[[topic]]`` table a rule; `file` is its name for messages.

    `default` holds for the topics that none of them matches.

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
    return TopicRules(rules, text, default)


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
    own = next((name for name in (pattern, *aliases) if aliases and is_reserved(name)), None)
    if own is not None:
        raise ValueError(f"{own} is the gateway's own topic: it has no aliases, and is none")
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
