"""Topic names, and the rules for subscribing and publishing."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core import topic_rules
from gateway.core.topic_rules import ACTS, Need, Rule, TopicRules, captures, matches
from gateway.node.configuration import load_rules

DEFAULT = load_rules("")  # the package's own
PLAIN = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in "{}*")


@settings(deadline=None)
@given(st.text(PLAIN, min_size=1, max_size=200))
def test_any_name_of_the_allowed_characters_is_a_topic(name: str) -> None:
    assert topic_rules.is_topic(name)


@settings(deadline=None, max_examples=300)
@given(st.text(PLAIN, max_size=6), st.characters(exclude_characters=PLAIN), st.text(PLAIN, max_size=6))
def test_one_other_character_anywhere_makes_it_none(before: str, other: str, after: str) -> None:
    assert not topic_rules.is_topic(before + other + after)


@pytest.mark.parametrize(
    "name",
    ["", "a" * 201, "a\n", "\na", "a b", "{a}", "a{", "a}", "a\x7f", "a\t", "a*", "é", "\u0661", "a\0", "a\ud800"],
)
def test_these_are_no_topics(name: str) -> None:
    assert not topic_rules.is_topic(name)


@pytest.mark.parametrize("name", [None, 1, 1.5, True, b"contest", ["contest"], {"contest": 1}])
def test_what_is_no_string_is_no_topic(name: object) -> None:
    assert not topic_rules.is_topic(name)


def test_a_name_has_at_most_200_characters() -> None:
    assert topic_rules.MAX_TOPIC_LENGTH == 200
    assert topic_rules.is_topic("a" * 200)


@pytest.mark.parametrize(
    ("topic", "to_hear", "to_say"),
    [
        ("contest", Need.ANYONE, Need.USER),
        ("token:price:ABC", Need.ANYONE, Need.ADMIN),
        ("Portfolio", Need.ANYONE, Need.USER),
        ("portfolio", Need.USER, Need.USER),
        ("user", Need.USER, Need.USER),
        ("wallet", Need.USER, Need.USER),
        ("skyduel", Need.USER, Need.USER),
        ("admin", Need.ADMIN, Need.ADMIN),
        ("system", Need.ANYONE, Need.NOBODY),
    ],
)
def test_permissions_of_the_default_rules(topic: str, to_hear: Need, to_say: Need) -> None:
    assert (DEFAULT.of(topic).subscribe, DEFAULT.of(topic).publish) == (to_hear, to_say)


@settings(deadline=None)
@given(st.text(PLAIN, min_size=1, max_size=20))
def test_no_topic_is_easier_to_say_something_on_than_to_hear(topic: str) -> None:
    order = [Need.ANYONE, Need.USER, Need.ADMIN, Need.NOBODY]
    assert order.index(DEFAULT.of(topic).publish) >= order.index(DEFAULT.of(topic).subscribe)


# ---- rules


def parse(text: str) -> topic_rules.TopicRules:
    return topic_rules.parse(text, "rules.toml")


def rule(fields: str) -> str:
    return f"[[topic]]\n{fields}\n"


def test_the_first_rule_that_matches_holds() -> None:
    rules = parse(rule('pattern = "price:*:usd"\nhistory = 1') + rule('pattern = "price:*"\nhistory = 2'))
    assert [rules.of(topic).history for topic in ("price:a:usd", "price:a", "price:", "Price:a", "aprice:a")] == [
        1, 2, 2, 0, 0,
    ]  # fmt: skip


def test_a_star_is_any_run_of_characters_and_nothing_else_is_special() -> None:
    rules = parse(rule('pattern = "a.b*c"\nhistory = 1'))
    assert [rules.of(topic).history for topic in ("a.bc", "a.b/x:c", "aXbc", "a.bcd")] == [1, 1, 0, 0]


def test_what_no_rule_matches_is_anyones_to_hear_and_a_users_to_say() -> None:
    plain = parse("").of("anything")
    assert (plain.subscribe, plain.publish, plain.history, plain.snapshot) == (Need.ANYONE, Need.USER, 0, False)


def test_aliases_are_one_topic_under_several_names() -> None:
    rules = parse(rule('pattern = "market-data"\naliases = ["market_data"]\nsnapshot = true'))
    assert rules.names("market_data") == rules.names("market-data") == ("market-data", "market_data")
    assert rules.of("market_data").snapshot
    assert rules.names("contest") == ("contest",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = ", "rules.toml: "),
        ("[topic]\npattern = 'a'", "two brackets"),
        ("[[topics]]\npattern = 'a'", "'topics' is not known"),
        (rule("history = 1"), "line 1: pattern must be"),
        (rule('pattern = "a b"'), "line 1: pattern must be"),
        ("# first\n" + rule('pattern = "a"') + rule('pattern = "b"\nhistroy = 1'), "line 4: 'histroy' is not a field"),
        (rule('pattern = "a"\nhistory = -1'), "history must be a whole number from 0 to 100000, not -1"),
        (rule('pattern = "a"\nhistory = true'), "history must be a whole number"),
        (rule('pattern = "a"\nsnapshot = 1'), "snapshot must be true or false, not 1"),
        (
            rule('pattern = "a"\nsubscribe = "everyone"'),
            "subscribe must be one of anyone, user, role:admin, ",
        ),
        (
            rule('pattern = "a"\nsubscribe = "subscriber"'),
            'subscribe cannot be "subscriber": no client could subscribe',
        ),
        (rule('pattern = "a"\npublish = "token"'), 'publish cannot be "token": only SUBSCRIBE carries'),
        (
            rule('pattern = "a"\npublish = "x"'),
            "anyone, user, role:admin, role:superadmin, owner, subscriber, ask, nobody,",
        ),
        (
            rule('pattern = "a"\nsubscribe = "x"'),
            "anyone, user, role:admin, role:superadmin, owner, token, ask, nobody,",
        ),
        (rule('pattern = "a*"\naliases = ["b"]'), "aliases need a pattern"),
        (rule('pattern = "a"\naliases = ["b c"]'), "aliases must be a list of topic names"),
        (
            rule('pattern = "a"\naliases = ["b"]') + rule('pattern = "c"\naliases = ["b"]'),
            "line 4: 'b' is in two rules",
        ),
        (rule('pattern = "a"\nhistory = 1\nconflate_ms = 5'), "remove one of the two"),
        ("topic = [1]", "in two brackets"),
        ("a = " + "[" * 5000, "nested too deeply"),
    ],
)
def test_a_bad_file_is_refused_with_file_line_and_reason(text: str, said: str) -> None:
    with pytest.raises(topic_rules.RulesError) as refused:
        parse(text)
    assert str(refused.value).startswith("rules.toml")
    assert said in str(refused.value)


@settings(deadline=None)
@given(st.text())
def test_any_text_is_rules_or_a_rules_error(text: str) -> None:
    with suppress(topic_rules.RulesError):
        parse(text)


def test_the_gateways_own_topic_is_closed_under_any_file() -> None:
    rules = topic_rules.parse('[[topic]]\npattern = "*"\npublish = "anyone"', "t.toml")
    rule = rules.of(topic_rules.STATS)
    assert (rule.subscribe, rule.publish) == (Need.ADMIN, Need.NOBODY)
    assert rule.history
    assert rules.of("gateway").publish is Need.ANYONE


@pytest.mark.parametrize(
    ("pattern", "topic", "does"),
    [
        ("a", "a", True), ("a", "ab", False), ("a*", "a", True), ("a*", "abc", True), ("*a", "ba", True),
        ("a*a", "a", False), ("a*a", "aa", True), ("a*b*c", "axbxc", True), ("a*b*c", "acb", False), ("*", "", True),
        ("a*bc*c", "abc", False), ("a*bc*c", "abcc", True), ("a.c", "abc", False), ("**", "x", True),
    ],
)  # fmt: skip
def test_what_a_pattern_matches(pattern: str, topic: str, does: bool) -> None:
    assert matches(pattern, topic) is does


@given(st.text("ab*", max_size=8), st.text("ab", max_size=10))
def test_a_pattern_matches_as_a_regular_expression_would(pattern: str, topic: str) -> None:
    wanted = re.fullmatch("(.*)".join(map(re.escape, pattern.split("*"))), topic)
    assert matches(pattern, topic) is (wanted is not None)
    assert captures(pattern, topic) == (wanted.groups() if wanted is not None else None)


class Counted(str):
    """A topic that counts how often it is searched."""

    searches = 0

    def rfind(self, *args: Any) -> int:
        self.searches += 1
        return super().rfind(*args)

    find = index = rindex = count = None  # type: ignore[assignment]  # by no other way


@settings(deadline=None)
@given(st.text("ab:*", max_size=200), st.text("ab:", max_size=200))
def test_a_topic_is_searched_once_for_each_star_at_most(pattern: str, topic: str) -> None:
    counted = Counted(topic)
    captures(pattern, counted)
    assert counted.searches <= max(0, pattern.count("*") - 1)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("*" * 9, True), ("*" * 10, False), ("a*" * 9, True), ("a*" * 10, False), ("a" * 200, True), ("a" * 201, False),
        ("a b*", False), ("a*\n", False), ("", False), (None, False), (["*"], False), ("é*", False),
    ],
)  # fmt: skip
def test_a_pattern_is_bounded_in_length_and_stars(text: object, is_one: bool) -> None:
    assert topic_rules.is_pattern(text) is is_one


# ---- the gateway's own topics

OWN = ["system", "service", "circuit-breaker", "gateway:figures", "gateway:", "gateway:x", "gateway:x:y"]
LAX = '[[topic]]\npattern = "*"\nsubscribe = "anyone"\npublish = "anyone"\nhistory = 5'


@pytest.mark.parametrize("topic", OWN)
@pytest.mark.parametrize("text", ["", LAX, LAX.replace("*", "TOPIC")], ids=["no rules", "all open", "named"])
def test_the_gateways_own_topics_are_reserved_under_any_file(text: str, topic: str) -> None:
    rule = topic_rules.parse(text.replace("TOPIC", topic), "t").of(topic)
    assert rule.publish is Need.NOBODY
    assert rule.subscribe is (Need.ANYONE if topic == "system" else Need.ADMIN)
    assert topic_rules.is_reserved(topic)
    assert bool(rule.history) is (topic == "gateway:figures")


@pytest.mark.parametrize("topic", ["gateway", "System", "services", "circuit_breaker", "my:gateway:x", "system:x"])
def test_other_names_are_not(topic: str) -> None:
    assert not topic_rules.is_reserved(topic)


@pytest.mark.parametrize("topic", OWN)
def test_no_alias_leads_to_the_gateways_own_topics(topic: str) -> None:
    with pytest.raises(topic_rules.RulesError, match="is the gateway's own topic"):
        topic_rules.parse(f'[[topic]]\npattern = "a"\naliases = ["b", "{topic}"]', "t")
    with pytest.raises(topic_rules.RulesError, match="is the gateway's own topic"):
        topic_rules.parse(f'[[topic]]\npattern = "{topic}"\naliases = ["b"]', "t")


def test_topics_without_a_rule_follow_the_default() -> None:
    default = topic_rules.Rule(pattern="*", subscribe=Need.USER, publish=Need.NOBODY)
    rules = topic_rules.parse('[[topic]]\npattern = "a"', "t", default)
    assert [(rules.of(topic).subscribe, rules.of(topic).publish) for topic in ("a", "b")] == [
        (Need.ANYONE, Need.USER), (Need.USER, Need.NOBODY),
    ]  # fmt: skip
    assert rules.of("system").subscribe is Need.ANYONE


def test_open_topics_of_a_rules_file_are_reported() -> None:
    left_open_topics = topic_rules.left_open(parse('[[topic]]\npattern = "chat"'), DEFAULT)
    assert len(left_open_topics) == 2
    assert (
        "subscribe to admin, portfolio, user, wallet, skyduel than" in left_open_topics[0]
        and "DEFAULT_SUBSCRIBE" in left_open_topics[0]
    )
    assert (
        "publish on admin, market-data, market_data, token:price:* than" in left_open_topics[1]
        and "DEFAULT_PUBLISH" in left_open_topics[1]
    )
    one = topic_rules.left_open(
        parse('[[topic]]\npattern = "portfolio"\nsubscribe = "owner"'.replace("owner", "token")), DEFAULT
    )
    assert "portfolio" not in one[0]
    assert not topic_rules.left_open(DEFAULT, DEFAULT)
    closed = topic_rules.parse("", "t", topic_rules.Rule(pattern="*", subscribe=Need.USER, publish=Need.NOBODY))
    assert "admin than" in topic_rules.left_open(closed, DEFAULT)[0]
    assert not topic_rules.left_open(
        topic_rules.parse("", "t", topic_rules.Rule(pattern="*", subscribe=Need.ASK, publish=Need.ASK)), DEFAULT
    )


@pytest.mark.parametrize(
    ("subscribe", "is_open"), [("anyone", True), ("user", True), ("role:admin", False), ("nobody", False)]
)
def test_what_subscribers_may_publish_is_as_open_as_subscribing(subscribe: str, is_open: bool) -> None:
    rules = parse(f'[[topic]]\npattern = "market-data"\nsubscribe = "{subscribe}"\npublish = "subscriber"')
    assert ("market-data" in topic_rules.left_open(rules, DEFAULT)[-1]) is is_open


def test_a_rule_for_the_gateways_own_topic_gets_a_warning() -> None:
    left_open_topics = topic_rules.left_open(
        topic_rules.parse('[[topic]]\npattern = "system"\npublish = "user"', "t"), DEFAULT
    )
    assert "topic rules for system have no effect" in left_open_topics[-1]


def test_a_file_has_a_bounded_number_of_rules() -> None:
    text = "".join(f'[[topic]]\npattern = "t{at}"\n' for at in range(topic_rules.MAX_RULES))
    assert topic_rules.parse(text, "t").of("t7").pattern == "t7"
    with pytest.raises(topic_rules.RulesError, match="1001 rules are more than the 1000"):
        topic_rules.parse(text + '[[topic]]\npattern = "x"\n', "t")


def test_a_hostile_pattern_costs_little() -> None:
    started = time.perf_counter()
    assert not matches("*a" * 100, "a" * 99 + "b" * 101)
    assert time.perf_counter() - started < 0.1


def test_a_request_needs_the_subscribe_permission_unless_a_rule_differs() -> None:
    rules = parse('[[topic]]\npattern = "a"\nsubscribe = "user"\n[[topic]]\npattern = "b"\nrequest = "ask"')
    assert [rules.of("a").need(act) for act in ACTS] == [Need.USER, Need.USER, Need.USER, Need.USER]
    assert [rules.of("b").need(act) for act in ACTS] == [Need.ANYONE, Need.USER, Need.ASK, Need.USER]


# ---- sources


def source_rule(**fields: str) -> str:
    return "[[topic]]\n" + "\n".join(f"{name} = {value}" for name, value in fields.items())


@pytest.mark.parametrize("source", ["/contests", "/v1/c-{1}.json/{2}", "/{topic}/{action}/{user}", "/a%20b", ""])
def test_a_rule_has_a_source(source: str) -> None:
    rule = topic_rules.parse(source_rule(pattern='"a:*:*"', source=f'"{source}"'), "t").of("a:1:2")
    assert (rule.source, rule.source_seconds, rule.source_stale_seconds) == (source, 10, 0)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ('"contests"', "must be a path"), ('"http://api/"', "must be a path"), ('"/a?b"', "must be a path"),
        ('"/a b"', "must be a path"), ('"/{0}"', "must be a path"), ('"/{role}"', "must be a path"),
        ('"//a"', "must be a path"), ('"/a/"', "must be a path"), ("1", "must be a path"), ("true", "must be a path"),
        ('"/{3}"', r"source names \{3\}, but the pattern has only 2"),
    ],
)  # fmt: skip
def test_a_bad_source_is_named(source: str, says: str) -> None:
    with pytest.raises(topic_rules.RulesError, match=says):
        topic_rules.parse(source_rule(pattern='"a:*:*"', source=source), "t")


def test_the_digest_is_the_same_for_files_that_say_the_same_and_for_no_others() -> None:
    said = '[[topic]]\npattern = "a"\nhistory = 5\n'
    same = '# a comment\n[[topic]]\nhistory = 5\npattern = "a"\npresence = false\n'
    assert topic_rules.parse(said, "f").digest == topic_rules.parse(same, "f").digest
    assert re.fullmatch("[0-9a-f]{16}", topic_rules.parse(said, "f").digest)
    others = [said.replace("5", "6"), said + '[[topic]]\npattern = "b"\n', said.replace('"a"', '"b"'), ""]
    assert len({topic_rules.parse(text, "f").digest for text in [said, *others]}) == 5


@given(
    st.lists(st.tuples(st.text("ab:*", min_size=1, max_size=4), st.lists(st.text("ab:", min_size=1, max_size=3)))),
    st.text("ab:", min_size=1, max_size=4),
)
def test_the_first_rule_that_matches_holds_however_it_is_found(
    written: list[tuple[str, list[str]]], topic: str
) -> None:
    rules = [Rule(pattern=pattern, aliases=() if "*" in pattern else tuple(names)) for pattern, names in written]
    first = next((rule for rule in rules if topic in rule.aliases or matches(rule.pattern, topic)), None)
    found = TopicRules(rules).of(topic)
    assert found is first if first is not None else found.pattern == "*"


STRICT = """
strict_namespaces = true

[[topic]]
pattern = "chat:*"
presence = true

[[topic]]
pattern = "plain"
aliases = ["old:plain"]

[[topic]]
pattern = "*"
"""


@pytest.mark.parametrize(
    ("topic", "unknown"),
    [("chat:1", False), ("news", False), ("#42", False), ("old:plain", False), ("news:1", True), ("$chat:1", True)],
)
def test_strict_rules_know_only_namespaces_that_a_rule_names(topic: str, unknown: bool) -> None:
    assert topic_rules.parse(STRICT, "f").is_unknown(topic) is unknown
    assert not topic_rules.parse(STRICT.replace("true", "false", 1), "f").is_unknown(topic)


def test_strictness_is_part_of_the_digest_and_must_be_a_flag() -> None:
    strict, loose = (topic_rules.parse(text, "f") for text in (STRICT, STRICT.replace("true", "false", 1)))
    assert strict.digest != loose.digest
    with pytest.raises(topic_rules.RulesError, match="strict_namespaces must be true or false, not 1"):
        topic_rules.parse("strict_namespaces = 1", "f")
