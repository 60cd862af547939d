"""Parsers with arbitrary input: each returns a value or raises its own error."""

from __future__ import annotations

import contextlib
import json
import posixpath
import re
import time
import unicodedata
from importlib import resources
from random import Random
from typing import Any, Final
from urllib.parse import unquote

import orjson

from fuzz import clients
from gateway.broker.envelope import Envelope, EnvelopeKind
from gateway.core import control_messages, topic_rules
from gateway.core.backend_targets import backend_target
from gateway.core.commands import BackendCommand, Publish, Request, Subscribe, Unsubscribe
from gateway.core.errors import ProtocolError
from gateway.core.events import Failed
from gateway.core.frames import CLOSE, RSV1, TEXT, FrameError, build, split
from gateway.core.hub import Audiences
from gateway.core.identity import ANONYMOUS, AuthError, Grant, Identity
from gateway.core.message import check
from gateway.core.publication import Publication
from gateway.core.session import Session
from gateway.core.session_rules import SessionRules
from gateway.core.topic_rules import RulesError
from gateway.protocols.native import encoder
from gateway.protocols.native.decoder import decode
from gateway.settings import Settings, SettingsError
from gateway.transports.compression import deflate, inflate
from tests.unit.core.test_frames import in_chunks, parse, parse_with_library, raw

WORDS: Final = [
    "type", "topic", "topics", "data", "action", "requestId", "authToken", "recover", "epoch", "offset", "logs", "AUTH",
    "SUBSCRIBE", "UNSUBSCRIBE", "PUBLISH", "REQUEST", "COMMAND", "LOGS", "ping", "contest", "system", "history",
    "getStatus", "user", "role", "client", "to", "except", "idempotencyKey", "priority", "op", "disconnect", "drain",
    "messages", "", "x" * 200, "x" * 201, "é", "\x00", "\U0001f600", "__proto__", "a b", "-1", "1e999", "null",
]  # fmt: skip
NUMBERS: Final = [0, 1, -1, 1.5, -0.0, 1e308, 2**31, 2**53 + 1, 2**63, -(2**63), 2**64, 10**30, True, False, None]


def frames(random: Random) -> int:
    """Valid and invalid frames, in any pieces: the library gives the same result. Returns the bytes tried."""
    stream = b""
    for _ in range(random.randrange(1, 9)):
        head = random.choice([0x81, 0x82, 0x01, 0x80, 0x00, 0x89, 0x8A, random.randrange(256)])
        if head & 0xF == CLOSE:
            continue  # the connection, not the parser, handles frames after a close
        size = random.choice([0, 1, 125, 126, 127, 1000, 65535, 65536, random.randrange(4000)])
        stream += raw(head, random.randbytes(size), masked=random.random() < 0.97)
    whole = parse([stream])
    assert parse(in_chunks(stream, [random.randrange(1 << 20) for _ in range(random.randrange(20))])) == whole
    assert whole == parse_with_library(stream)
    noise = random.randbytes(random.randrange(2000))
    found, code = parse(in_chunks(noise, [random.randrange(1 << 20) for _ in range(5)]), 1000)
    assert code in (None, 1002, 1009)
    assert all(len(payload) <= 1000 for _, payload in found)
    return len(stream) + len(noise)


def compression(random: Random) -> int:
    """Joined frames survive compression; no bytes inflate beyond the limit or raise another error."""
    items = [(TEXT, dumps([message(random) for _ in range(random.randrange(20))])) for _ in range(random.randrange(5))]
    joined = b"".join(build(opcode, payload) for opcode, payload in items)
    small, found = deflate(joined), []
    at = 0
    for opcode, payload in split(small):
        found.append((opcode, inflate(payload, 1 << 20) if small[at] & RSV1 else payload))
        at += len(build(opcode, payload))
    assert found == items
    tried = mutate(random, small) if random.random() < 0.8 else random.randbytes(random.randrange(2000))
    with contextlib.suppress(FrameError):
        assert len(inflate(tried, 1000)) <= 1000
    return len(joined) + len(tried)


def value(random: Random, depth: int = 0) -> Any:
    """Any JSON value, mostly of words of the protocol."""
    kind = random.randrange(8 if depth < 4 else 4)
    if kind < 3:
        return random.choice(WORDS)
    if kind < 4:
        return random.choice(NUMBERS)
    if kind < 6:
        return [value(random, depth + 1) for _ in range(random.randrange(4))]
    return {random.choice(WORDS): value(random, depth + 1) for _ in range(random.randrange(6))}


def message(random: Random) -> dict[str, Any]:
    """An object that resembles a client's message."""
    kinds = ["AUTH", "SUBSCRIBE", "UNSUBSCRIBE", "PUBLISH", "REQUEST", "COMMAND", "LOGS", "ping"]
    made = {"type": random.choice(kinds)}
    for name in (
        "topic",
        "topics",
        "data",
        "action",
        "requestId",
        "authToken",
        "recover",
        "logs",
        "priority",
        "timestamp",
    ):
        if random.random() < 0.4:
            made[name] = value(random)
    return made


def dumps(made: Any) -> bytes:
    """JSON with integers of any size, which orjson cannot write."""
    if isinstance(made, dict):
        return b"{" + b",".join(orjson.dumps(name) + b":" + dumps(inner) for name, inner in made.items()) + b"}"
    if isinstance(made, list):
        return b"[" + b",".join(map(dumps, made)) + b"]"
    return str(made).encode() if type(made) is int else orjson.dumps(made)


def mutate(random: Random, text: bytes) -> bytes:
    """The text with some bytes changed, removed, duplicated or inserted."""
    made = bytearray(text)
    for _ in range(random.randrange(6)):
        at, size = random.randrange(len(made) + 1), random.randrange(8)
        match random.randrange(4):
            case 0:
                del made[at : at + size]
            case 1:
                made[at:at] = made[at : at + size]
            case 2:
                made[at:at] = random.choice(
                    [b"\xff", b"\\u0000", b"\\ud800", b"[" * 300, b'"', b"\n", b"{", b"=", b"\x00"]
                )
            case _:
                made[at : at + size] = random.randbytes(size)
    return bytes(made)


def _verify(token: str | None) -> Identity:
    if token and len(token) % 2:
        return Identity(token[:200], "user", None)
    raise AuthError("token_invalid", "no token")


def _verify_grant(token: str) -> Grant:
    return Grant((token[:20] or "*",), _verify(token).user, 0.0)


def messages(random: Random) -> int:
    """A client's messages give an effect or an ERROR; a publish item gives a publication or an error."""
    rules = SessionRules(_verify, _verify_grant, _packaged(), 100)
    session, tried = Session(rules, ANONYMOUS), 0
    for _ in range(50):
        text = dumps(message(random) if random.random() < 0.9 else value(random))
        if random.random() < 0.4:
            text = mutate(random, text)
        tried += len(text)
        try:
            session.handle(decode(text), Audiences(["topic:contest"]))
        except ProtocolError as error:
            orjson.loads(encoder.text(Failed(error), 0))
        with contextlib.suppress(ProtocolError):
            Publication.of_item(value(random))
    return tried


def cluster(random: Random) -> int:
    """Control messages and envelopes from other programs on Redis."""
    tried = 0
    for _ in range(50):
        text = mutate(
            random, dumps({"op": random.choice(["disconnect", "unsubscribe", "drain", "move", "x"]), **message(random)})
        )
        with contextlib.suppress(control_messages.ControlError):
            control_messages.parse(text)
        envelope = mutate(
            random,
            Envelope(
                1,
                text[:50],
                random.choice([None, "n.1"]),
                None,
                random.choice([EnvelopeKind.PLAIN, EnvelopeKind.SNAPSHOT, EnvelopeKind.HISTORY, EnvelopeKind.NODES]),
                epoch="e",
                offset=5,
                mark=50,
            ).pack(),
        )
        with contextlib.suppress(ValueError):
            check(Envelope.unpack(envelope).body)
        tried += len(text) + len(envelope)
    return tried


def settings(random: Random) -> int:
    """Environments give settings, or one sentence that names the variable."""
    known = [f"GATEWAY_{name.upper()}" for name in Settings.__dataclass_fields__] + ["GATEWAY_X", "PATH"]
    texts = [
        "0",
        "1",
        "-1",
        "1.5",
        "9" * 400,
        "1e5",
        " ",
        "a,b",
        "redis://h",
        "é",
        "\udcff",
        "\n",
        "*",
        "https://a",
        "[::1]",
        "x" * 9,
    ]
    environ = {random.choice(known): random.choice(texts) + random.choice(["", "", *texts]) for _ in range(4)}
    try:
        Settings.from_env(environ, lambda: "host")
    except SettingsError as error:
        text = str(error)
        assert "GATEWAY_" in text and "\n" not in text.replace("\\n", "")
    return sum(map(len, environ.values()))


def rules(random: Random) -> int:
    """Topic files give rules, or one sentence with the place and the error."""
    text = mutate(random, mutate(random, PACKAGED.encode())).decode(errors="replace")
    if random.random() < 0.3:
        text = random.choice(["a = " + "[" * 5000, "topic = " + dumps(value(random)).decode().replace('":', '"=')])
    try:
        found = topic_rules.parse(text, "topics.toml")
    except RulesError as error:
        assert re.match(r"topics\.toml[,:]", str(error)), str(error)
    else:
        found.of(random.choice(WORDS))
    return len(text)


HOSTILE: Final = [
    "a", "b", ":", "/", "..", ".", "", "\n", "\0", "\\", "%2e", "%2F", "%", ";", " ", "é", "\uff0f", "\u2215", "\u2025",
    "{", "}", "*", "x" * 50, "contest", "gateway:", "system",
]  # fmt: skip
CLEAN: Final = ["a", "b", ":", "/", ".", "-", "_", "ab", "contest", "gateway:", "a" * 40]
PATTERN_SECONDS: Final = 0.1  # a comparison takes some millionths of one; on a busy machine not this long


def names(random: Random, parts: list[str], most: int) -> str:
    """A name of some of `parts`."""
    return "".join(random.choice(parts) for _ in range(random.randrange(most)))[:220]


def topic_names(random: Random) -> int:
    """Names, patterns and paths: what is no topic gets nowhere, no pattern takes long, no path leads elsewhere."""
    tried = 0
    for _ in range(20):
        name = names(random, HOSTILE if random.random() < 0.6 else CLEAN, 12)
        pattern = names(random, [*CLEAN, "*", "*"], random.choice([6, 40]))
        tried += len(name) + len(pattern)
        started = time.perf_counter()
        found = topic_rules.captures(pattern, name)
        if time.perf_counter() - started > PATTERN_SECONDS:
            raise AssertionError(f"{pattern!r} took long on {name!r}")
        if found is not None:
            literals = pattern.split("*")
            assert "".join(a + b for a, b in zip(literals, (*found, ""), strict=True)) == name
        _only_topics(random, name)
        _stays_below(random, name, names(random, HOSTILE, 4), names(random, HOSTILE, 4))
    return tried


def _only_topics(random: Random, name: str) -> None:
    """Each reader of a name returns a valid topic, or refuses the name."""
    kind = random.choice(["SUBSCRIBE", "UNSUBSCRIBE", "PUBLISH", "REQUEST", "COMMAND"])
    said = {"type": kind, "topic": name, "topics": [name], "action": "a", "data": 1, "recover": {name: 1}}
    with contextlib.suppress(ProtocolError):
        match decode(json.dumps(said, ensure_ascii=False).encode()):
            case Subscribe(found) | Unsubscribe(found):
                assert all(map(topic_rules.is_topic, found))
            case Publish(publication):
                assert topic_rules.is_topic(publication.topic)
            case Request(topic):
                assert topic_rules.is_topic(topic)
            case BackendCommand(topic):
                assert topic is None or topic_rules.is_topic(topic)
    with contextlib.suppress(ProtocolError):
        assert topic_rules.is_topic(Publication.of_item({"topic": name, "data": 1}).topic)
    with contextlib.suppress(control_messages.ControlError):
        order = control_messages.parse(json.dumps({"op": "forget", "topics": [name]}, ensure_ascii=False).encode())
        assert isinstance(order, control_messages.ForgetHistory)
        assert all(map(topic_rules.is_topic, order.topics))


def _stays_below(random: Random, topic: str, action: str, user: str) -> None:
    """A path with inserted values has as many segments as the rule, even for a server that decodes carelessly."""
    source = random.choice(
        ["/in/{1}", "/in/{topic}/{action}", "/in/{user}", "/in/x{1}y/{user}.json", "/in/{1}{action}"]
    )
    rule = topic_rules.Rule(pattern=random.choice(["*", "a*", "contest:*", "*:*"]), source=source)
    if "{1}" in source and topic_rules.captures(rule.pattern, topic) is None:
        return
    with contextlib.suppress(ProtocolError):
        path = backend_target(rule, Request(topic, action, {}, None), user).partition("?")[0]
        careless = unicodedata.normalize("NFKC", unquote(unquote(path))).replace("\\", "/")
        assert posixpath.normpath(careless).count("/") == source.count("/")
        assert careless.startswith("/in/")


PACKAGED: Final = resources.files("gateway").joinpath("topics.toml").read_text()


def _packaged() -> topic_rules.TopicRules:
    return topic_rules.parse(PACKAGED, "topics.toml")


TARGETS: Final = {
    "frames": frames, "compression": compression, "messages": messages, "cluster": cluster, "settings": settings,
    "rules": rules, "topics": topic_names, "clients": clients.case,
}  # fmt: skip
