"""The pure parts of the Python client: its place in a topic, when it tries again, when a server is dead."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.client import Event, Gap, Gateway, Message, Recovered
from gateway.client.address import address, shown
from gateway.client.backoff import MISSED_PONGS, Backoff, FailureLog, PingMonitor, refresh_seconds
from gateway.client.events import message
from gateway.client.server_limits import SendRate, batches
from gateway.client.topic_position import TopicPosition

NOW = "2026-01-31T12:00:00.000Z"


def said(offset: int | None, epoch: str | None = "e", *, initial: bool = False) -> Message:
    return Message("t", offset, NOW, offset, epoch if offset is not None else None, initial)


def at(offset: int, epoch: str = "e", **more: Any) -> dict[str, Any]:
    return {"epoch": epoch, "offset": offset, **more}


def joined(offset: int = 10) -> TopicPosition:
    position = TopicPosition("t")
    assert position.acknowledged(at(offset)) == []
    return position


def away(offset: int = 10) -> TopicPosition:
    position = joined(offset)
    position.disconnected()
    return position


# ---- its place


def test_a_first_subscription_recovers_nothing_and_tells_nothing() -> None:
    position = TopicPosition("t")
    assert position.recover() is None
    assert position.acknowledged(at(10)) == []
    assert position.message_received(said(11)) == [said(11)]


def test_what_was_had_is_not_handed_on_again() -> None:
    position = joined(10)
    assert position.message_received(said(10)) == []
    assert position.message_received(said(11)) == [said(11)]
    assert position.message_received(said(11)) == []


def test_an_offset_that_jumps_is_no_gap_since_the_message_between_may_have_excluded_us() -> None:
    assert joined(10).message_received(said(12)) == [said(12)]


def test_it_recovers_from_the_last_message_it_had() -> None:
    position = joined(10)
    position.message_received(said(11))
    assert position.recover() is None  # it is here
    position.disconnected()
    assert position.recover() == at(11)


def test_what_was_missed_comes_before_the_word_that_all_of_it_came() -> None:
    position = away(10)
    assert position.message_received(said(11)) == [said(11)]
    assert position.acknowledged(at(11, recovered=True)) == [Recovered("t")]
    assert position.message_received(said(11)) == []


def test_what_cannot_be_recovered_is_a_gap_and_it_goes_on_from_the_new_place() -> None:
    position = away(10)
    [gap] = position.acknowledged(at(5, "other", recovered=False))
    assert isinstance(gap, Gap)
    assert position.message_received(said(6, "other")) == [said(6, "other")]
    assert position.message_received(said(5, "other")) == []


def test_a_topic_without_history_has_a_gap_at_each_reconnect() -> None:
    position = TopicPosition("t")
    assert position.acknowledged(None) == []
    assert position.message_received(said(None)) == [said(None)]
    position.disconnected()
    assert position.recover() is None
    [gap] = position.acknowledged(None)
    assert isinstance(gap, Gap)


def test_an_acknowledgement_of_the_same_connection_tells_nothing() -> None:
    position = joined(10)
    assert position.acknowledged(at(12)) == []


def test_after_a_gap_anything_is_news() -> None:
    position = joined(10)
    assert position.lost("why") == [Gap("t", "why")]
    assert position.message_received(said(3)) == [said(3)]
    assert position.message_received(said(3)) == []


def test_a_client_that_disconnects_after_a_gap_gets_the_gap_again() -> None:
    position = joined(10)
    position.lost("why")
    position.disconnected()
    assert position.recover() is None
    [gap] = position.acknowledged(at(20))
    assert isinstance(gap, Gap)


def test_another_epoch_is_a_gap_before_its_first_message() -> None:
    position = joined(10)
    gap, first = position.message_received(said(1, "new"))
    assert isinstance(gap, Gap)
    assert first == said(1, "new")
    assert position.message_received(said(2, "new")) == [said(2, "new")]


def test_a_snapshot_is_handed_on_and_is_no_place() -> None:
    position = away(10)
    snapshot = said(20, "new", initial=True)
    assert position.message_received(snapshot) == [snapshot]
    assert position.recover() == at(10)


def test_a_client_that_never_connected_misses_nothing() -> None:
    position = TopicPosition("t")
    position.disconnected()
    assert position.recover() is None
    assert position.acknowledged(at(3)) == []


@settings(deadline=None)
@given(st.lists(st.sampled_from(["publish", "cut", "double"]), max_size=60), st.integers(0, 100))
def test_every_message_arrives_once_and_in_order_in_random_histories(steps: list[str], start: int) -> None:
    """Against a server that keeps its promises: all that was published while away comes upon `recover`."""
    position, top, had, here = joined(start), start, [], True

    def come_back() -> None:
        since = position.recover()
        assert since is not None
        for offset in range(since["offset"] + 1, top + 1):
            had.extend(position.message_received(said(offset)))
        assert position.acknowledged(at(top, recovered=True)) == [Recovered("t")]

    for step in steps:
        if step == "publish":
            top += 1
        if step == "cut" and here:
            position.disconnected()
            here = False
        elif step == "cut":
            come_back()
            here = True
        elif here:
            had += position.message_received(said(top))
    if not here:
        come_back()
    assert had == [said(offset) for offset in range(start + 1, top + 1)]


# ---- a message


def test_what_the_publisher_gave_beside_the_data_is_an_extra() -> None:
    frame = {
        "type": "DATA", "topic": "t", "data": {"a": 1}, "timestamp": NOW, "offset": 3, "epoch": "e", "action": "go",
    }  # fmt: skip
    assert message(frame) == replace(said(3), data={"a": 1}, extras={"action": "go"})
    assert message({**frame, "initialData": True}).initial


# ---- when to try again


def test_each_wait_is_anywhere_between_nothing_and_a_bound_that_doubles_up_to_the_cap() -> None:
    bounds: list[tuple[float, float]] = []

    def highest(low: float, high: float) -> float:
        bounds.append((low, high))
        return high

    backoff = Backoff(1, 20, highest)
    assert [backoff.seconds() for _ in range(7)] == [1, 2, 4, 8, 16, 20, 20]
    assert {low for low, _ in bounds} == {0}
    backoff.reset()
    assert backoff.seconds() == 1


def test_the_client_obeys_the_servers_reconnect_delay() -> None:
    backoff = Backoff(1, 20, lambda _low, high: high)
    assert backoff.seconds(reconnect_ms=1234) == pytest.approx(1.234)


def test_it_never_overflows_however_long_the_outage() -> None:
    backoff = Backoff(1, 20, lambda _low, high: high)
    assert [backoff.seconds() for _ in range(5000)][-1] == 20


# ---- when a server is dead


def test_three_pings_without_a_sign_of_life_are_enough() -> None:
    heartbeat = PingMonitor()
    assert all(heartbeat.ping_due() for _ in range(MISSED_PONGS))
    assert not heartbeat.ping_due()


def test_any_message_is_a_sign_of_life() -> None:
    heartbeat = PingMonitor()
    for _ in range(20):
        assert heartbeat.ping_due()
        assert heartbeat.ping_due()
        heartbeat.received()


# ---- one logic: the browser client is held to the same table, by tests/node/logic.test.mjs

LOGIC = json.loads((Path(__file__).parents[2] / "client_logic.json").read_text())


@pytest.mark.parametrize("case", LOGIC["place"], ids=lambda case: case["name"])
def test_its_place_is_the_browser_clients(case: dict[str, Any]) -> None:
    position = TopicPosition("t")
    for step, *rest in case["steps"]:
        given: Any = rest[0] if rest else None
        expected = rest[1] if rest else None
        match step:
            case "disconnected":
                position.disconnected()
            case "recover":
                assert position.recover() == expected
            case "take":
                assert [described(event) for event in position.message_received(said(given[1], given[0]))] == expected
            case _:
                assert [described(event) for event in getattr(position, step)(given)] == expected


def described(event: Event) -> str:
    return f"gap: {event.reason}" if isinstance(event, Gap) else type(event).__name__.lower()


def test_its_waits_are_the_browser_clients() -> None:
    table = LOGIC["backoff"]
    backoff = Backoff(table["base_ms"] / 1000, table["cap_ms"] / 1000, lambda _low, high: high * table["share"])
    assert [backoff.seconds() * 1000 for _ in table["waits_ms"]] == table["waits_ms"]
    assert backoff.seconds(table["told_ms"]) * 1000 == table["told_ms"]
    assert LOGIC["heartbeat"]["pings"] == MISSED_PONGS


@pytest.mark.parametrize("case", LOGIC["batches"], ids=lambda case: case["name"])
def test_its_batches_are_the_browser_clients(case: dict[str, Any]) -> None:
    made = list(batches(case["topics"], case.get("recover", {}).get, *case["most"]))
    assert [len(batch) for batch in made] == case["sizes"]
    assert list(itertools.chain(*made)) == case["topics"]


def test_its_pace_is_the_browser_clients() -> None:
    pace = SendRate(LOGIC["pace"]["per_second"])
    assert pace.most == LOGIC["pace"]["most"]
    for step, *values in LOGIC["pace"]["steps"]:
        *counts, at_ms = values if step != "ms" else values[:2]
        if step == "ms":
            assert round(pace.delay(counts[0], at_ms / 1000) * 1000) == values[2], values
        else:
            getattr(pace, step)(*counts, at_ms / 1000)


# ---- what is worth a line in the log


def test_a_new_reason_is_reported_at_once_and_a_lasting_one_once_a_minute() -> None:
    reports = FailureLog()
    described = [now for now in range(0, 200, 5) if reports.due("refused", now)]
    assert described == [0, 60, 120, 180]
    assert reports.due("timed out", 181)
    assert not reports.due("timed out", 182)
    assert reports.due("refused", 183)
    reports.reset()
    assert reports.due("refused", 184)


# ---- the address


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("ws://site:8080/ws", "ws://site:8080/ws"),
        ("http://site:8080/ws?avoid=n1", "ws://site:8080/ws?avoid=n1"),
        ("https://site/realtime/ws", "wss://site/realtime/ws"),
        ("WSS://ann:secret@[::1]:443", "wss://ann:secret@[::1]:443"),
        ("wss://bücher.example/ws", "wss://bücher.example/ws"),
    ],
)
def test_an_address_may_begin_with_ws_or_http(given: str, made: str) -> None:
    assert address(given) == made


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("", "no scheme"), ("site:8080/ws", "no scheme"), ("/ws", "no scheme"), ("ftp://site/ws", "'ftp'"),
        ("file:///ws", "'file'"), ("ws:///ws", "no host"), ("ws://:8080/ws", "no host"), ("http://", "no host"),
        ("ws://site:abc/ws", "abc"), ("ws://site:99999/ws", "0-65535"), ("ws://site:0/ws", "port 0"),
        ("ws://site:-1/ws", "port"), ("ws://[::1/ws", "IPv6"), ("ws://a..b/ws", "label"),
        (f"ws://{'a' * 64}/ws", "label"),
        ("ws://si te/ws", "space"), ("ws://site/ws\n", "control"), ("ws://site/ws#part", "fragment"),
        ("ws://ann@site/ws", "password"),
    ],
)  # fmt: skip
def test_an_address_that_cannot_work_is_refused_at_once(given: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Gateway(given)


def test_an_address_is_refused_and_logged_without_its_secret() -> None:
    with pytest.raises(ValueError, match="port") as refused:
        Gateway("ws://ann:secret@site:99999/ws")
    assert "secret" not in str(refused.value)
    assert shown("wss://ann:secret@site:1/ws?key=secret") == "wss://site:1/ws"


@pytest.mark.parametrize("options", [{"tokne": "x"}, {"timeout": 3}, {"uri": "ws://other/ws"}])
def test_an_unknown_keyword_is_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(options))):
        Gateway("ws://site/ws", **options)
    Gateway("ws://site/ws", local_addr=("127.0.0.1", 0), additional_headers={"a": "b"}, proxy=None)


def test_an_address_that_is_no_text_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="bytes"):
        Gateway(b"ws://site/ws")  # type: ignore[arg-type]


# ---- when a token is replaced


@pytest.mark.parametrize(("left", "after"), LOGIC["refresh"])
def test_a_token_is_replaced_a_minute_before_its_end_or_in_the_last_quarter_of_a_short_life(
    left: float, after: float | None
) -> None:
    token = jwt.encode({"exp": 1_000 + left}, "a secret of at least thirty-two bytes")
    assert refresh_seconds(token, 1_000.0) == after


@pytest.mark.parametrize("token", LOGIC["no_end"])
def test_a_token_without_an_expiry_is_replaced_on_the_servers_request(token: str) -> None:
    assert refresh_seconds(token, 0) is None
