"""The rule, and not the client, decides which URL of the back end gets a REQUEST."""

from __future__ import annotations

import posixpath
import time
import unicodedata
from typing import Any
from urllib.parse import parse_qsl, unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.backend_targets import MAX_TARGET_LENGTH, backend_target, is_path_segment
from gateway.core.commands import Request
from gateway.core.errors import ErrorReason, ProtocolError
from gateway.core.topic_rules import Rule


def target(
    source: str, topic: str = "contest:5", action: str = "show", user: str | None = "ann", pattern: str = "contest:*",
    **parameters: Any,
) -> str:  # fmt: skip
    return backend_target(Rule(pattern=pattern, source=source), Request(topic, action, parameters, "r"), user)


def refusal(*args: Any, **more: Any) -> ErrorReason:
    with pytest.raises(ProtocolError) as refused:
        target(*args, **more)
    assert refused.value.request_id == "r"
    return refused.value.reason


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("/contests", "/contests?action=show"),
        ("/contests/{1}", "/contests/5?action=show"),
        ("/{topic}/{action}", "/contest%3A5/show"),
        ("/of-{user}.json", "/of-ann.json?action=show"),
    ],
)
def test_what_a_source_names_is_put_in(source: str, expected: str) -> None:
    assert target(source) == expected


def test_each_star_has_a_number() -> None:
    assert target("/{2}/{1}", "a:1:b:2", pattern="a:*:b:*") == "/2/1?action=show"


def test_parameters_are_the_query_in_one_order() -> None:
    expected = "/c?action=show&all=true&names=%5B%22a%22%5D&page=2&text=a+%26+b&what=null"
    assert target("/c", text="a & b", page=2, all=True, names=["a"], what=None) == expected
    assert target("/c", what=None, names=["a"], all=True, page=2, text="a & b") == expected


def test_the_action_is_the_requests() -> None:
    assert target("/c", action="show") == "/c?action=show"
    request = Request("contest:5", "show", {"action": "drop"}, "r")
    assert backend_target(Rule(pattern="*", source="/c"), request, None) == "/c?action=show"


def test_a_path_with_a_user_rejects_anonymous_clients() -> None:
    assert refusal("/users/{user}", user=None) is ErrorReason.AUTHENTICATION_NEEDED
    assert target("/contests", user=None) == "/contests?action=show"


@pytest.mark.parametrize("part", ["", ".", ".."])
def test_an_empty_or_dot_segment_is_rejected(part: str) -> None:
    assert refusal("/contests/{1}", f"contest:{part}") is ErrorReason.UNKNOWN_TOPIC
    assert refusal("/contests/{action}", action=part) is ErrorReason.UNKNOWN_TOPIC


@pytest.mark.parametrize("part", ["../internal/keys", "a/b", "/", "a/../b", "./a", "a/", "..//"])
def test_a_part_of_a_topic_with_a_slash_is_refused_everywhere(part: str) -> None:
    for source in ("/contests/{1}", "/contests/of-{1}.json", "/{topic}"):
        assert refusal(source, f"contest:{part}") is ErrorReason.UNKNOWN_TOPIC
    assert target("/contests", f"contest:{part}") == "/contests?action=show"  # where it is not put in it does no harm


@pytest.mark.parametrize(
    "value",
    [
        "../x", "a/b", "a\\b", "..\\x", "%2F", "%2e%2e", "..%5cx", "%252f", "100%", "a\0b", "a\nb", "\r", "\x7f",
        " ", " .. ", "..;x", ".;", ";", "\u2025", "\uff0e\uff0e", "\uff0e.", "a\uff0fb", "a\u2215b", "a\u2044b",
        "a\uff3cb", "a\u29f8b",
        "\u2024\u2024", "\u202e..", "a\u200bb", "\u2028", "\uff052f", "a\xa0",
    ],
)  # fmt: skip
def test_no_value_leads_elsewhere_however_a_server_reads_it(value: str) -> None:
    assert refusal("/users/{user}", user=value) is ErrorReason.UNKNOWN_TOPIC
    assert refusal("/of-{user}.json", user=value) is ErrorReason.UNKNOWN_TOPIC
    assert refusal("/contests/{action}", action=value) is ErrorReason.UNKNOWN_TOPIC


@pytest.mark.parametrize(
    ("value", "expected"),
    [("ann", "ann"), ("ann@example.com", "ann%40example.com"), ("josé", "jos%C3%A9"), ("a b", "a%20b"), ("...", "..."),
     (".a", ".a"), ("0x12ab", "0x12ab"), ("a?b#c", "a%3Fb%23c"), ("李", "%E6%9D%8E")],
)  # fmt: skip
def test_other_values_are_one_segment(value: str, expected: str) -> None:
    assert target("/users/{user}", user=value) == f"/users/{expected}?action=show"


def test_values_beside_each_other_make_no_dots() -> None:
    assert refusal("/{1}{2}", "a:.:.", pattern="a:*:*") is ErrorReason.UNKNOWN_TOPIC


def test_an_earlier_star_stands_for_as_much_as_it_can() -> None:
    assert target("/{1}/{2}", "a:1:2:3", pattern="a:*:*") == "/1%3A2/3?action=show"


@pytest.mark.parametrize("topic", ["multi:" + ":" * 190, "multi:" + "a:" * 96])
def test_many_stars_cost_one_pass(topic: str) -> None:
    started = time.perf_counter()
    for _ in range(100):
        target("/a", topic, pattern="multi:*:*:*:*")
    assert time.perf_counter() - started < 0.5


def test_parameters_have_a_length() -> None:
    assert refusal("/c", text="x" * MAX_TARGET_LENGTH) is ErrorReason.DATA_REFUSED


@settings(deadline=None)
@given(
    st.from_regex(r"[!-)+-z|~]{1,50}", fullmatch=True), st.text(min_size=1, max_size=50).filter(str.isprintable),
    st.text(min_size=1, max_size=50), st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=4),
)  # fmt: skip
def test_a_clients_value_stays_in_its_part_of_the_url(
    part: str, action: str, user: str, parameters: dict[str, str]
) -> None:
    request = Request(f"contest:{part}", action, parameters, "r")
    try:
        found = backend_target(Rule(pattern="contest:*", source="/a/{1}/b/{action}/c/{user}"), request, user)
    except ProtocolError:
        assert not all(map(is_path_segment, (part, action, user)))
        return
    path, _, query = found.partition("?")
    assert found.isascii() and found.isprintable() and " " not in found
    careless = unicodedata.normalize("NFKC", unquote(unquote(path))).replace("\\", "/")
    assert posixpath.normpath(careless).count("/") == path.count("/") == 6
    assert [unquote(segment) for segment in path.split("/")] == ["", "a", part, "b", action, "c", user]
    said = dict(parse_qsl(query, keep_blank_values=True))
    assert said == {name: text for name, text in parameters.items() if name != "action"}
