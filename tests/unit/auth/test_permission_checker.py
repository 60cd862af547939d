"""Permissions from the back end: asked once, kept as long as the back end states, and never guessed."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from gateway.auth import permission_checker
from gateway.auth.permission_checker import PermissionChecker
from gateway.backend import BackendResponse, BackendUnreachable
from gateway.core.identity import ANONYMOUS, Identity
from gateway.core.permissions import Verdict
from gateway.metrics import Metrics
from tests.kit.waiting import eventually

ANN = Identity("ann", "user")
BOB = Identity("bob", "user")


class BackEnd:
    """A back end that gives a set answer once the test releases it."""

    def __init__(self, answer: BackendResponse | Exception) -> None:
        self.answer = answer
        self.questions: list[dict[str, Any]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def post(self, path: str, document: Any, *, idempotent: bool = False) -> BackendResponse:
        assert path == "/permissions" and idempotent
        self.questions.append(document)
        await self.gate.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def allowing(*topics: str, max_age: float | None = 60.0) -> BackEnd:
    return BackEnd(BackendResponse(200, {"allowed": list(topics)}, max_age))


def judge_of(back_end: BackEnd | None) -> PermissionChecker:
    return PermissionChecker(cast(Any, back_end), Metrics())


async def test_it_is_asked_once_while_its_word_holds() -> None:
    back_end = allowing("a")
    judge = judge_of(back_end)
    for _ in range(3):
        assert await judge.check("subscribe", ["a", "b"], ANN) == {"a": Verdict.ALLOWED, "b": Verdict.REFUSED}
    assert back_end.questions == [{"act": "subscribe", "topics": ["a", "b"], "user": "ann", "role": "user"}]


async def test_another_user_act_or_topic_is_another_question() -> None:
    back_end = allowing("a")
    judge = judge_of(back_end)
    await judge.check("subscribe", ["a"], ANN)
    await judge.check("subscribe", ["a"], BOB)
    await judge.check("subscribe", ["a"], Identity("ann", "admin"))
    await judge.check("subscribe", ["a"], ANONYMOUS)
    await judge.check("publish", ["a"], ANN)
    await judge.check("subscribe", ["a", "b"], ANN)
    assert len(back_end.questions) == 6
    assert back_end.questions[-1]["topics"] == ["b"], "only what is not known"


@pytest.mark.parametrize("max_age", [None, 0.0])
async def test_a_word_that_does_not_hold_is_not_kept(max_age: float | None) -> None:
    back_end = allowing("a", max_age=max_age)
    judge = judge_of(back_end)
    for _ in range(2):
        assert await judge.check("subscribe", ["a"], ANN) == {"a": Verdict.ALLOWED}
    assert len(back_end.questions) == 2


async def test_when_its_time_is_over_it_is_asked_again() -> None:
    back_end = allowing("a", max_age=0.01)
    judge = judge_of(back_end)

    async def asked_again() -> bool:
        await judge.check("subscribe", ["a"], ANN)
        return len(back_end.questions) == 2

    await eventually(asked_again)


async def test_equal_questions_share_one_call() -> None:
    back_end = allowing("a", max_age=0.0)
    back_end.gate.clear()
    judge = judge_of(back_end)
    asking = [asyncio.create_task(judge.check("subscribe", ["a"], ANN)) for _ in range(50)]
    await asyncio.sleep(0)
    asking[7].cancel()
    await asyncio.sleep(0)
    back_end.gate.set()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert len(back_end.questions) == 1
    assert [a for a in answers if not isinstance(a, BaseException)] == [{"a": Verdict.ALLOWED}] * 49


@pytest.mark.parametrize(
    "answer",
    [
        BackendUnreachable("away"),
        BackendResponse(404, None, 60.0),
        BackendResponse(401, None, 60.0),
        BackendResponse(501, None, None),
        BackendResponse(200, None, 60.0),
        BackendResponse(200, {"allowed": "a"}, 60.0),
        BackendResponse(200, ["a"], 60.0),
    ],
    ids=str,
)
async def test_what_is_no_answer_allows_nothing_and_is_not_kept(answer: BackendResponse | Exception) -> None:
    back_end = BackEnd(answer)
    judge = judge_of(back_end)
    for _ in range(2):
        assert await judge.check("subscribe", ["a"], ANN) == {"a": Verdict.UNKNOWN}
    assert len(back_end.questions) == 2


async def test_without_a_back_end_nothing_is_allowed() -> None:
    assert await judge_of(None).check("subscribe", ["a"], ANN) == {"a": Verdict.UNKNOWN}


async def test_403_refuses_all() -> None:
    assert await judge_of(BackEnd(BackendResponse(403, None, None))).check("publish", ["a"], ANN) == {
        "a": Verdict.REFUSED
    }


async def test_it_remembers_so_many_and_forgets_the_one_longest_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permission_checker, "MAX_CACHED", 2)
    back_end = allowing("a", "b", "c")
    judge = judge_of(back_end)
    for topic in ("a", "b", "a", "c", "a", "b"):
        await judge.check("subscribe", [topic], ANN)
    assert [question["topics"] for question in back_end.questions] == [["a"], ["b"], ["c"], ["b"]]
