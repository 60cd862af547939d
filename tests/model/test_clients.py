"""Both clients in the same random cases against the model of the server; what those have found; the model itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from tests.model.browser_client import BrowserClient
from tests.model.cases import Case, Step, make, shrink
from tests.model.play import Client, Event, failure
from tests.model.python_client import PythonClient

CASES = 500

# What random cases have found, each as short as it can be.
FOUND: dict[str, Case] = {
    "a SUBSCRIBE that was sent again is acknowledged behind a refusal, when its topic has been left": [
        ["start", False], ["connect"], ["all"], ["refuse", 2], ["subscribe", 4, "plain"], ["time", 2_500],
        ["close", 4], ["all"],
    ],
    "a topic is taken and given back while a second subscription asks for it": [
        ["start", False], ["connect"], ["all"], ["subscribe", 1, "both"], ["up", 1], ["revoke", "both"],
        ["subscribe", 4, "both"],
    ],
    "a topic is left while it is asked for with one that is refused": [
        ["start", False], ["connect"], ["subscribe", 2, "secret"], ["subscribe", 1, "last"], ["down", 2], ["close", 2],
    ],
    "a topic is taken before the server has answered a SUBSCRIBE that was sent again": [
        ["start", False], ["connect"], ["subscribe", 3, "last"], ["down", 1], ["up", 1], ["time", 1_000],
        ["revoke", "last"],
    ],
    "a topic is taken and subscribed to again while a second subscription asks for it": [
        ["start", False], ["connect"], ["subscribe", 0, "both"], ["all"], ["revoke", "both"], ["subscribe", 2, "both"],
        ["down", 1], ["subscribe", 2, "both"],
    ],
    "a callback subscribes again while all subscriptions to its topic are ended": [
        ["start", False], ["subscribe", 3, "plain", "subscribed", "all"], ["subscribe", 0, "plain", "ended", "again"],
    ],
    "a callback gives up the connection amid its acknowledgement": [
        ["start", False], ["connect"], ["subscribe", 3, "last"], ["down", 1], ["up", 3], ["down", 3], ["cut", 1006],
        ["subscribe", 2, "kept", "subscribed", "reconnect"],
    ],
    "a callback gives up the connection amid its recovery": [
        ["start", False], ["connect"], ["subscribe", 2, "kept", "recovered", "reconnect"], ["subscribe", 1, "kept"],
        ["all"], ["cut", 1001],
    ],
}  # fmt: skip

# What reviews have found in earlier versions.
REVIEWED: dict[str, Case] = {
    "subscribe, close and subscribe while the first is on its way": [
        ["start", False], ["connect"], ["all"], ["subscribe", 0, "kept"], ["close", 0], ["subscribe", 0, "kept"],
        ["up", 1],
        ["publish", "kept"], ["publish", "kept"], ["up", 1], ["publish", "kept"],
    ],
    "a subscription added while offline": [
        ["start", False], ["connect"], ["all"], ["publish", "both"], ["subscribe", 0, "both"], ["all"], ["reconnect"],
        ["subscribe", 1, "both"], ["publish", "both"],
    ],
    "a token that is refused once": [
        ["start", True], ["refuse_tokens", 1], ["connect"], ["all"], ["subscribe", 0, "kept"],
    ],
    "a token that never comes": [
        ["start", True], ["token", "never"], ["connect"], ["all"], ["subscribe", 0, "kept"], ["time", 30_000],
    ],
    "a connection that is cut with 1009 whenever a topic is asked for": [
        ["start", False], ["connect"], ["all"], ["subscribe", 0, "kept"], ["up", 1], ["cut", 1009], ["time", 1_000],
        ["all"],
        ["cut", 1009], ["time", 3_000], ["all"],
    ],
}  # fmt: skip


@pytest.fixture(scope="module", params=[BrowserClient, PythonClient])
def client(request: pytest.FixtureRequest) -> Iterator[BrowserClient | PythonClient]:
    with request.param() as client:
        yield client


def test_random_cases_find_nothing(client: Client) -> None:
    for seed in range(CASES):
        case = make(Random(seed))
        found = failure(client, case)
        if found is not None:
            least = shrink(case, lambda part: failure(client, part) is not None)
            pytest.fail(f"seed {seed}: {failure(client, least)}\n{json.dumps(least)}")


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in (FOUND | REVIEWED).items()])
def test_what_was_found_is_found_no_more(client: Client, case: Case) -> None:
    assert failure(client, case) is None


# ---- the model notices what it is for


class _Liar:
    """A good client, but for some of what it says that it did."""

    patience_ms = 10_000

    def __init__(self, client: Client, lie: Any) -> None:
        self._client = client
        self._lie = lie

    def do(self, step: Step) -> list[Event]:
        return [event for event in self._client.do(step) for event in self._lie(event)]


def _says(event: Event, *what: Any) -> bool:
    return event[0] == "notified" and event[2:] == list(what)


def _subscribe_twice(event: Event) -> list[Event]:
    if event[0] != "send" or (frame := json.loads(event[1]))["type"] != "SUBSCRIBE":
        return [event]
    return [event, ["send", json.dumps({**frame, "requestId": "another"})]]


CASE: Case = [
    ["start", False], ["connect"], ["all"], ["publish", "both"], ["subscribe", 0, "both"],
    ["subscribe", 1, "plain"], ["all"],
    ["publish", "both"], ["publish", "both"], ["publish", "plain"], ["all"], ["reconnect"], ["publish", "both"],
    ["time", 2_000],
    ["all"], ["close", 1], ["say", "both"], ["all"],
]  # fmt: skip


@pytest.mark.parametrize(
    ("lie", "named"),
    [
        (lambda event: [event], None),
        (lambda event: [] if _says(event, "message", 1) else [event], "2 comes, but 1 did not"),
        (lambda event: [event, event] if _says(event, "message", 2) else [event], "2 comes behind 2"),
        (lambda event: [] if _says(event, "message", 3) else [event], "recovered, but 3 to 3"),
        (lambda event: [] if _says(event, "initial", 0) else [event], "the last value, 0, did not come"),
        (lambda event: [*[event] * 2] if event[:1] == ["answered"] else [event], "answered twice"),
        (lambda event: [] if event[:1] == ["answered"] else [event], "without an answer"),
        (lambda event: [event, [*event[:2], "message", 9]] if event[2:3] == ["ended"] else [event], "after its end"),
        (lambda event: [event, event] if event == ["state", "connected"] else [event], "state"),
        (lambda event: [] if '"UNSUBSCRIBE"' in str(event) else [event], "the server sends"),
        (lambda event: [event, event] if '"UNSUBSCRIBE"' in str(event) else [event], "UNSUBSCRIBE of"),
        (_subscribe_twice, "while another is on its way"),
    ],
)  # fmt: skip
def test_the_model_notices(lie: Any, named: str | None) -> None:
    with BrowserClient() as client:
        found = failure(_Liar(client, lie), CASE)
    if named is None:
        assert found is None
    else:
        assert found is not None
        assert named in found


def test_a_failing_case_is_made_as_short_as_it_can_be() -> None:
    case: Case = [["start", False], *([word, number] for number in range(20) for word in ("a", "b"))]
    tried = 0

    def fails(part: Case) -> bool:
        nonlocal tried
        tried += 1
        return ["a", 3] in part and ["b", 17] in part

    assert shrink(case, fails) == [["start", False], ["a", 3], ["b", 17]]
    assert tried < 200


def test_cases_are_the_same_for_the_same_seed_and_use_every_step() -> None:
    made = [make(Random(seed)) for seed in range(CASES)]
    assert made == [make(Random(seed)) for seed in range(CASES)]
    words = {step[0] for case in made for step in case}
    assert {"subscribe", "close", "publish", "cut", "miss", "forget", "token", "expire", "outage", "revoke"} <= words
