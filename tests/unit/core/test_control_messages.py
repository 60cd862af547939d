"""Control messages between nodes: every payload is a valid message or rejected."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core import control_messages
from gateway.core.control_messages import (
    ApplyReload,
    CheckReload,
    ClientSelector,
    ControlError,
    ControlMessage,
    DisconnectClients,
    DrainNode,
    ExpireClients,
    ForgetHistory,
    MoveClients,
    ReloadReport,
    RevokeTokens,
    SubscribeClients,
    UnsubscribeClients,
)
from gateway.core.position import Position
from gateway.core.revocations import Revocation

GONE = Revocation("user", "ann", 10.0, 5.0)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 53), 1 << 53) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = (
    "client",
    "user",
    "topics",
    "reason",
    "node",
    "keep",
    "seconds",
    "after",
    "revocations",
    "request",
    "step",
    "digest",
    "error",
)
OPS = (
    "disconnect",
    "subscribe",
    "unsubscribe",
    "forget",
    "drain",
    "move",
    "revoke",
    "check_reload",
    "apply_reload",
    "reload_report",
)


@pytest.mark.parametrize(
    ("said", "order"),
    [
        (
            {"op": "disconnect", "client": "n1.a.1"},
            DisconnectClients(ClientSelector("n1.a.1", None), "by the operator"),
        ),
        ({"op": "disconnect", "user": "ann", "reason": "spam"}, DisconnectClients(ClientSelector(None, "ann"), "spam")),
        (
            {"op": "unsubscribe", "client": "c", "topics": ["t"]},
            UnsubscribeClients(ClientSelector("c", None), ["t"], "by the operator"),
        ),
        (
            {"op": "subscribe", "user": "u", "topics": ["t", "a", "t"]},
            SubscribeClients(ClientSelector(None, "u"), ["t", "a"]),
        ),
        (
            {
                "op": "subscribe",
                "client": "c",
                "topics": ["t"],
                "recover": {"t": {"offset": 3, "epoch": "e"}},
                "data": 1,
            },
            SubscribeClients(ClientSelector("c", None), ["t"], {"t": Position("e", 3)}, 1),
        ),
        (
            {"op": "disconnect", "user": "u", "code": 4000, "reason": "r", "keep": ["c"]},
            DisconnectClients(ClientSelector(None, "u"), "r", 4000, ("c",)),
        ),
        ({"op": "expire", "user": "u", "expires": 7}, ExpireClients(ClientSelector(None, "u"), 7.0)),
        ({"op": "expire", "client": "c", "expires": None}, ExpireClients(ClientSelector("c", None), None)),
        ({"op": "forget", "topics": ["t", "u"]}, ForgetHistory(["t", "u"])),
        ({"op": "drain", "node": "n1.a"}, DrainNode("n1.a")),
        ({"op": "revoke", "revocations": [GONE.as_dict()]}, RevokeTokens([GONE])),
        ({"op": "check_reload", "request": "r"}, CheckReload("r")),
        ({"op": "apply_reload", "request": "r"}, ApplyReload("r")),
        (
            {"op": "reload_report", "request": "r", "step": "check", "node": "n1.a", "digest": "d", "error": ""},
            ReloadReport("r", "check", "n1.a", "d", ""),
        ),
        ({"op": "move", "node": "n1.a", "keep": 3, "seconds": 60, "after": 1.5}, MoveClients("n1.a", 3, 60.0, 1.5)),
    ],
)
def test_an_order_is_read(said: dict[str, object], order: ControlMessage) -> None:
    assert control_messages.parse(orjson.dumps(said)) == order


@pytest.mark.parametrize(
    "said",
    [
        {"op": "subscribe", "user": "u", "topics": ["system"]}, {"op": "subscribe", "user": "u"},
        {"op": "subscribe", "user": "u", "topics": [f"t{at}" for at in range(101)]},
        {"op": "disconnect", "user": "u", "code": 1000}, {"op": "disconnect", "user": "u", "code": "4000"},
        {"op": "disconnect", "user": "u", "keep": "c"}, {"op": "disconnect", "user": "u", "keep": ["c"] * 101},
        {"op": "subscribe", "user": "u", "topics": ["t"], "recover": {"t": {"offset": -1, "epoch": "e"}}},
        {"op": "subscribe", "user": "u", "topics": ["t"], "recover": {"t": 1}},
        {"op": "subscribe", "topics": ["t"]}, {"op": "expire", "user": "u"}, {"op": "expire", "expires": 1},
        {"op": "expire", "user": "u", "expires": -1}, {"op": "expire", "user": "u", "expires": "soon"},
        {}, [], 5, {"op": "dance"}, {"op": "disconnect"}, {"op": "drain"}, {"op": "move", "node": "n"},
        {"op": "disconnect", "client": 5}, {"op": "disconnect", "user": ""}, {"op": "disconnect", "user": "x" * 201},
        {"op": "disconnect", "user": "a", "reason": "x" * 201}, {"op": "disconnect", "user": "a", "reason": {"a": 1}},
        {"op": "unsubscribe", "user": "a", "topics": ["a\n"]}, {"op": "unsubscribe", "user": "a", "topics": "a"},
        {"op": "forget", "topics": [5]}, {"op": "forget", "topics": {"a": 1}}, {"op": "forget", "topics": ["x" * 201]},
        {"op": "drain", "node": None}, {"op": "move", "node": [], "keep": 1, "seconds": 1},
        {"op": "move", "node": "n", "keep": -1, "seconds": 1}, {"op": "move", "node": "n", "keep": 1, "seconds": 1e9},
    ],
)  # fmt: skip
def test_what_is_none_is_refused(said: object) -> None:
    with pytest.raises(ControlError):
        control_messages.parse(orjson.dumps(said))


def test_one_that_is_too_long_is_refused() -> None:
    with pytest.raises(ControlError):
        control_messages.parse(b" " * (control_messages.MAX_BYTES + 1))


@settings(deadline=None, max_examples=500)
@given(
    st.binary(max_size=50)
    | st.fixed_dictionaries({"op": st.sampled_from(OPS) | JSON}, optional=dict.fromkeys(FIELDS, JSON)).map(orjson.dumps)
)
def test_any_bytes_are_an_order_or_refused(payload: bytes) -> None:
    try:
        order = control_messages.parse(payload)
    except ControlError:
        return
    assert isinstance(order, ControlMessage)
