"""The envelope of a message on a channel: a header line, then the body.  (pure)

    3 <ms since 1970 of the publish> <addressee> <kind> …\\n<body>

The addressee is ``-`` for every member, ``!<client id>`` for every member except one, ``@<client id>`` for one client.
The kind describes the message, so that a node can deliver it without the publisher's topic rules:

    P <conflate ms>                          a plain message
    S <conflate ms> <version>                the last value of a topic with a snapshot (publish_snapshot.lua adds it)
    H <epoch> <offset> <mark> <previous>     a message of a topic with history (append_history.lua adds its place)
    N                                        for the nodes themselves: a presence message

Conflate ms: of the messages within this time a client may receive only the last; 0: it receives each. The body is that
of a message (`core/message.py`), or of the kind N JSON (`cluster/presence_store.py`). Version 1 (gateway 0.1.0) has no
kinds and no marks; nodes read its messages, except those of topics with history.
"""

from __future__ import annotations

from typing import Final, NamedTuple

MAX_DIGITS: Final = 16  # of a number in the header


class UnknownEnvelopeVersion(ValueError):
    """The envelope has a version that this node cannot read, so its clients miss the message."""


class EnvelopeKind:
    """Kinds of messages: plain strings, because each use of an enumeration's member costs 0.1 us."""

    PLAIN: Final = "P"
    SNAPSHOT: Final = "S"
    HISTORY: Final = "H"
    NODES: Final = "N"


class Envelope(NamedTuple):
    """A message between nodes. At most one of the client ids `only` and `exclude` is set."""

    published_ms: int
    body: bytes
    only: str | None = None
    exclude: str | None = None
    kind: str = EnvelopeKind.PLAIN
    conflate_ms: int = 0  # of plain messages and snapshots
    version: int = 0  # of a snapshot
    epoch: str = ""  # of a message of a topic with history, like the fields below
    offset: int = 0
    mark: int = 0
    previous: int = 0

    def header(self) -> bytes:
        """The header line without the part that the Lua step adds, and without the line end."""
        addressee = f"@{self.only}" if self.only else f"!{self.exclude}" if self.exclude else "-"
        conflate = f" {self.conflate_ms}" if self.kind in (EnvelopeKind.PLAIN, EnvelopeKind.SNAPSHOT) else ""
        return f"3 {self.published_ms} {addressee} {self.kind}{conflate}".encode()

    def pack(self) -> bytes:
        """The payload to publish."""
        if self.only is None and self.exclude is None and self.kind == EnvelopeKind.PLAIN:  # most messages
            return b"3 %d - P %d\n%s" % (self.published_ms, self.conflate_ms, self.body)
        added = ""
        if self.kind == EnvelopeKind.SNAPSHOT:
            added = f" {self.version}"
        elif self.kind == EnvelopeKind.HISTORY:
            added = f" {self.epoch} {self.offset} {self.mark} {self.previous}"
        return self.header() + added.encode() + b"\n" + self.body

    @classmethod
    def unpack(cls, payload: bytes) -> Envelope:
        """Parse a payload.

        Raises:
            UnknownEnvelopeVersion: The version is not supported.
            ValueError: The payload is not an envelope.
        """
        header, separator, body = payload.partition(b"\n")
        match header.split(b" ") if separator else []:
            case [b"3", ms, b"-", b"P", b"0"]:  # most messages
                return cls(_number(ms), body)
            case [b"3", ms, addressee, b"H", epoch, offset, mark, previous]:
                only, exclude = _addressee(addressee)
                return cls(
                    _number(ms), body, only, exclude, EnvelopeKind.HISTORY, epoch=_epoch(epoch), offset=_number(offset),
                    mark=_number(mark), previous=_number(previous),
                )  # fmt: skip
            case [b"3", ms, addressee, b"P", conflate]:
                return cls(_number(ms), body, *_addressee(addressee), EnvelopeKind.PLAIN, _number(conflate))
            case [b"3", ms, addressee, b"S", conflate, version]:
                only, exclude = _addressee(addressee)
                return cls(_number(ms), body, only, exclude, EnvelopeKind.SNAPSHOT, _number(conflate), _number(version))
            case [b"3", ms, b"-", b"N"]:
                return cls(_number(ms), body, kind=EnvelopeKind.NODES)
            case [b"1", ms, b"~"]:
                return cls(_number(ms), body, kind=EnvelopeKind.NODES)
            case [b"1", ms, addressee]:
                return cls(_number(ms), body, *_addressee(addressee))
            case [b"1", ms, addressee, b"-", version]:
                return cls(_number(ms), body, *_addressee(addressee), EnvelopeKind.SNAPSHOT, version=_number(version))
            case [version, _, _, *_] if version.isdigit() and len(version) <= MAX_DIGITS and version != b"3":
                raise UnknownEnvelopeVersion(f"envelope version {version.decode()}: this node reads version 3")
        raise ValueError("not an envelope")


def _number(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > MAX_DIGITS:
        raise ValueError("not a number of an envelope")
    return int(digits)


def _epoch(epoch: bytes) -> str:
    if not epoch.isalnum() or len(epoch) > 64:
        raise ValueError("not an epoch")
    return epoch.decode()


def _addressee(addressee: bytes) -> tuple[str | None, str | None]:
    """The client that alone receives the message, and the client that does not receive it."""
    if addressee == b"-":
        return None, None
    if addressee[:1] == b"@" and len(addressee) > 1:
        return addressee[1:].decode(), None
    if addressee[:1] == b"!" and len(addressee) > 1:
        return None, addressee[1:].decode()
    raise ValueError("not an addressee")
