"""What is agreed about compression, from what a client offers."""

from __future__ import annotations

import pytest
from websockets.datastructures import Headers
from websockets.server import ServerProtocol

from gateway.transport.handshake import SharedDeflate

OURS = "server_no_context_takeover; client_no_context_takeover"


@pytest.mark.parametrize(
    ("offer", "answer"),
    [
        ("", ""),  # each of these behind the extension's name
        ("; client_max_window_bits", ""),  # what Chromium says
        ("; client_no_context_takeover; client_max_window_bits", ""),
        ("; server_no_context_takeover", ""),
        ("; client_max_window_bits=9", "; client_max_window_bits=9"),
        ("; server_max_window_bits=12", "; server_max_window_bits=12"),
        ("; server_no_context_takeover; server_max_window_bits=15", "; server_max_window_bits=15"),
    ],
)
def test_neither_side_keeps_a_context_whatever_was_offered(offer: str, answer: str) -> None:
    assert agreed("permessage-deflate" + offer) == f"permessage-deflate; {OURS}{answer}"


@pytest.mark.parametrize(
    "offer",
    [
        "permessage-deflate; server_max_window_bits=11",  # what all others are sent could not be read
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; server_no_context_takeover=1",
        "permessage-deflate; unknown",
        "x-webkit-deflate-frame",
        "permessage-bzip2",
    ],
)
def test_what_cannot_be_shared_is_not_agreed(offer: str) -> None:
    assert agreed(offer) is None


def test_of_several_offers_the_first_that_can_be_shared_is_taken() -> None:
    offers = (
        "permessage-deflate; server_max_window_bits=9, permessage-deflate; client_max_window_bits, permessage-deflate"
    )
    assert agreed(offers) == f"permessage-deflate; {OURS}"


def agreed(offer: str) -> str | None:
    """The answer to an offer; None: nothing is agreed."""
    answer, extensions = ServerProtocol(extensions=[SharedDeflate()]).process_extensions(
        Headers({"Sec-WebSocket-Extensions": offer})
    )
    assert bool(extensions) == (answer is not None)
    return answer
