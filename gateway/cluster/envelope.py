"""What travels on an audience's channel: a header line, then the final text of the client's message.  (pure)

    1 <ms since 1970 of the publish> <addressee> [<epoch> <offset>]\\n<text>

The addressee is ``-`` for every member, ``!<client id>`` for every member but one, ``@<client id>`` for one client, and
``~`` for the nodes themselves: word of presence. Epoch and offset stand there for topics with history (append.lua puts
them). The text is made once, where the message was published; a node that relays it looks at the header alone.
"""

from __future__ import annotations

from typing import Final, NamedTuple

MAX_MS_DIGITS: Final = 16  # a time a million years from now is none


class Envelope(NamedTuple):
    """A message under way. At most one of `only` and `exclude` is set, each a client id."""

    published_ms: int
    text: bytes
    only: str | None = None
    exclude: str | None = None
    epoch: str | None = None
    offset: int = 0
    nodes: bool = False

    def header(self) -> bytes:
        """The header line up to where epoch and offset go, without its end."""
        addressee = "~" if self.nodes else "-"
        if self.only:
            addressee = f"@{self.only}"
        elif self.exclude:
            addressee = f"!{self.exclude}"
        return f"1 {self.published_ms} {addressee}".encode()

    def pack(self) -> bytes:
        """The payload to publish."""
        position = f" {self.epoch} {self.offset}".encode() if self.epoch is not None else b""
        return self.header() + position + b"\n" + self.text

    @classmethod
    def unpack(cls, payload: bytes) -> Envelope:
        """The message in `payload`.

        Raises:
            ValueError: It is not ours, or of another version.
        """
        header, separator, text = payload.partition(b"\n")
        version, published_ms, addressee, *position = header.split(b" ")
        if version != b"1" or not separator or len(position) not in (0, 2) or len(published_ms) > MAX_MS_DIGITS:
            raise ValueError("not an envelope of version 1")
        epoch, offset = (position[0].decode(), int(position[1])) if position else (None, 0)
        only = exclude = None
        if addressee.startswith(b"@"):
            only = addressee[1:].decode()
        elif addressee.startswith(b"!"):
            exclude = addressee[1:].decode()
        elif addressee not in (b"-", b"~"):
            raise ValueError("not an addressee")
        return cls(int(published_ms), text, only, exclude, epoch, offset, addressee == b"~")
