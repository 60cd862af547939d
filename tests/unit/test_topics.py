"""Topic names, and who may hear and say what."""

from __future__ import annotations

import re
import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.app import load_rules
from gateway.core import topics
from gateway.core.topics import ACTS, Need, matches

DEFAULT = load_rules("")  # the package's own
PLAIN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_:.-/"


@settings(deadline=None)
@given(st.text(PLAIN, min_size=1, max_size=200))
def test_any_name_of_the_allowed_characters_is_a_topic(name: str) -> None:
    assert topics.is_topic(name)


@settings(deadline=None, max_examples=300)
@given(st.text(PLAIN, max_size=6), st.characters(exclude_characters=PLAIN), st.text(PLAIN, max_size=6))
def test_one_other_character_anywhere_makes_it_none(before: str, other: str, after: str) -> None:
    assert not topics.is_topic(before + other + after)


@pytest.mark.parametrize("name", ["", "a" * 201, "a\n", "\na", "a b", "{a}", "a*", "é", "\u0661", "a\0", "a\ud800"])
def test_these_are_no_topics(name: str) -> None:
    assert not topics.is_topic(name)


@pytest.mark.parametrize("name", [None, 1, 1.5, True, b"contest", ["contest"], {"contest": 1}])
def test_what_is_no_string_is_no_topic(name: object) -> None:
    assert not topics.is_topic(name)


def test_a_name_has_at_most_200_characters() -> None:
    assert topics.MAX_TOPIC_LENGTH == 200
    assert topics.is_topic("a" * 200)


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
def test_who_may_hear_and_say_what(topic: str, to_hear: Need, to_say: Need) -> None:
    assert (DEFAULT.of(topic).subscribe, DEFAULT.of(topic).publish) == (to_hear, to_say)


@settings(deadline=None)
@given(st.from_regex(re.compile(r"[A-Za-z0-9_:.\-/]{1,20}"), fullmatch=True))
def test_no_topic_is_easier_to_say_something_on_than_to_hear(topic: str) -> None:
    order = [Need.ANYONE, Need.USER, Need.ADMIN, Need.NOBODY]
    assert order.index(DEFAULT.of(topic).publish) >= order.index(DEFAULT.of(topic).subscribe)


# ---- rules


def parse(text: str) -> topics.TopicRules:
    return topics.parse(text, "rules.toml")


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
        (rule('pattern = "a*"\naliases = ["b"]'), "aliases go with one topic"),
        (rule('pattern = "a"\naliases = ["b c"]'), "aliases must be a list of topic names"),
        (
            rule('pattern = "a"\naliases = ["b"]') + rule('pattern = "c"\naliases = ["b"]'),
            "line 4: 'b' is named by two",
        ),
        (rule('pattern = "a"\nhistory = 1\nconflate_ms = 5'), "choose one"),
        ("topic = [1]", "in two brackets"),
        ("a = " + "[" * 5000, "nested too deeply"),
    ],
)
def test_a_bad_file_is_refused_with_file_line_and_reason(text: str, said: str) -> None:
    with pytest.raises(topics.RulesError) as refused:
        parse(text)
    assert str(refused.value).startswith("rules.toml")
    assert said in str(refused.value)


@settings(deadline=None)
@given(st.text())
def test_any_text_is_rules_or_a_rules_error(text: str) -> None:
    with suppress(topics.RulesError):
        parse(text)


def test_the_gateways_own_topic_is_closed_under_any_file() -> None:
    rules = topics.parse('[[topic]]\npattern = "*"\npublish = "anyone"', "t.toml")
    rule = rules.of(topics.FIGURES)
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
    wanted = re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), topic)
    assert matches(pattern, topic) is (wanted is not None)


def test_a_hostile_pattern_costs_little() -> None:
    started = time.perf_counter()
    assert not matches("*a" * 100, "a" * 99 + "b" * 101)
    assert time.perf_counter() - started < 0.1


def test_a_request_needs_what_hearing_needs_unless_the_rule_says_otherwise() -> None:
    rules = parse('[[topic]]\npattern = "a"\nsubscribe = "user"\n[[topic]]\npattern = "b"\nrequest = "ask"')
    assert [rules.of("a").need(act) for act in ACTS] == [Need.USER, Need.USER, Need.USER, Need.USER]
    assert [rules.of("b").need(act) for act in ACTS] == [Need.ANYONE, Need.USER, Need.ASK, Need.USER]


# ---- sources


def source_rule(**fields: str) -> str:
    return "[[topic]]\n" + "\n".join(f"{name} = {value}" for name, value in fields.items())


@pytest.mark.parametrize("source", ["/contests", "/v1/c-{1}.json/{2}", "/{topic}/{action}/{user}", "/a%20b", ""])
def test_a_rule_has_a_source(source: str) -> None:
    rule = topics.parse(source_rule(pattern='"a:*:*"', source=f'"{source}"'), "t").of("a:1:2")
    assert (rule.source, rule.source_seconds, rule.source_stale_seconds) == (source, 10, 0)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ('"contests"', "must be a path"), ('"http://api/"', "must be a path"), ('"/a?b"', "must be a path"),
        ('"/a b"', "must be a path"), ('"/{0}"', "must be a path"), ('"/{role}"', "must be a path"),
        ('"//a"', "must be a path"), ('"/a/"', "must be a path"), ("1", "must be a path"), ("true", "must be a path"),
        ('"/{3}"', r"source names \{3\}, and pattern has 2"),
    ],
)  # fmt: skip
def test_a_bad_source_is_named(source: str, says: str) -> None:
    with pytest.raises(topics.RulesError, match=says):
        topics.parse(source_rule(pattern='"a:*:*"', source=source), "t")
