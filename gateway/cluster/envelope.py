"""What travels on an audience's channel: a header line, then the final text of the client's message.  (pure)

    1 <ms since 1970 of the publish> <addressee>\\n<text>

The addressee is ``-`` for every member, ``!<client id>`` for every member but one, ``@<client id>`` for one client.
The text is made once, where the message was published; a node that relays it looks at the header alone.
"""

from __future__ import annotations

from typing import NamedTuple


class Envelope(NamedTuple):
    """A message under way. At most one of `only` and `exclude` is set, each a client id."""

    published_ms: int
    text: bytes
    only: str | None = None
    exclude: str | None = None

    def pack(self) -> bytes:
        """The payload to publish."""
        addressee = f"@{self.only}" if self.only else f"!{self.exclude}" if self.exclude else "-"
        return f"1 {self.published_ms} {addressee}\n".encode() + self.text

    @classmethod
    def unpack(cls, payload: bytes) -> Envelope:
        """The message in `payload`.

        Raises:
            ValueError: It is not ours, or of another version.
        """
        header, separator, text = payload.partition(b"\n")
        version, published_ms, addressee = header.split(b" ", 2)
        if version != b"1" or not separator or not addressee:
            raise ValueError("not an envelope of version 1")
        if addressee == b"-":
            return cls(int(published_ms), text)
        if addressee.startswith(b"@"):
            return cls(int(published_ms), text, only=addressee[1:].decode())
        if addressee.startswith(b"!"):
            return cls(int(published_ms), text, exclude=addressee[1:].decode())
        raise ValueError("not an addressee")
