"""A token expires on an open socket: the client is notified 30 s before, and closed after the leeway."""

from __future__ import annotations

from gateway.connections.enforcer import WARNING_SECONDS
from gateway.core.identity import Identity
from tests.unit.one_client_node import OneClientNode, broken, refuse
from tests.unit.virtual_time import in_virtual_time

LEEWAY_SECONDS = 5  # the default of GATEWAY_JWT_LEEWAY_SECONDS
ENDS = 1000


@in_virtual_time
async def test_a_client_is_warned_once_thirty_seconds_before_and_closed_after_the_leeway() -> None:
    node = OneClientNode(broken(), refuse)
    client = node.connection
    client.session.identity = Identity("ann", "user", expires=ENDS + LEEWAY_SECONDS)

    def said_by(seconds: float) -> bytes:
        """What it is sent when its token is looked at then."""
        before = len(node.wire.written)
        node.now_ms = int(seconds * 1000)
        node.enforcer.check_timeouts(client.last_received)
        return node.wire.written[before:]

    assert WARNING_SECONDS == 30
    assert said_by(ENDS - 31) == b""
    warning = said_by(ENDS - 30)
    assert b'"action":"token_expiring"' in warning
    assert b'"expires":"1970-01-01T00:16:40.000Z"' in warning
    assert said_by(ENDS - 29) == said_by(ENDS) == said_by(ENDS + LEEWAY_SECONDS - 1) == b""
    assert (3005).to_bytes(2, "big") + b"token expired" in said_by(ENDS + LEEWAY_SECONDS)
    client.abort(1006)
