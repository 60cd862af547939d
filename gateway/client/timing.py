"""The timeouts of the client."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The client's timeouts, in seconds."""

    base: float = 1.0  # the first wait before a reconnect is random between 0 and this; then the bound doubles
    cap: float = 20.0  # the largest bound of that wait
    ack: float = 1.0  # a SUBSCRIBE without a reply is sent again after this time, unless it recovers
    answer: float = 10.0  # for any reply
    open: float = 10.0  # each for the address, for TCP with the handshake, and for the server's welcome
