"""append, read, renew and peek: the numbered messages of a topic. append is called as `History` does."""

from __future__ import annotations

from typing import Any

import pytest
from redis.exceptions import OutOfMemoryError

from gateway.broker.envelope import Envelope, EnvelopeKind
from gateway.broker.fence import Fence
from gateway.broker.history import MAX_OFFSET, META_MS, History
from gateway.broker.keys import IDEMPOTENCY_MS, Keys
from gateway.core.topic_rules import Rule
from tests.lua.steps import Steps

TOPIC = "trades"
RULE = Rule(pattern=TOPIC, history=100, history_seconds=60)
LIFE_MS = 60_000
ENTRY_BYTES = 64  # counted for a message beside its text


class Topic:
    """A topic's keys, and appends to it."""

    def __init__(self, steps: Steps, keys: Keys) -> None:
        self.steps = steps
        self.redis = steps.redis
        self.stream, self.meta = keys.history(TOPIC), keys.history_meta(TOPIC)
        self.snapshot, self.answer = keys.snapshot(TOPIC), keys.publish_answer(TOPIC, "key")
        self._history = History(steps.redis_client, keys)

    def append(
        self, text: bytes = b'{"a":1}', *, rule: Rule = RULE, key: str | None = None, fence: Fence | None = None,
        published_ms: int | None = None, exclude: str | None = None,
    ) -> Any:  # fmt: skip
        """Append a message; the answer of the step."""
        at_ms = self.steps.now_ms() if published_ms is None else published_ms
        message = Envelope(at_ms, text, exclude=exclude, kind=EnvelopeKind.HISTORY)
        return self.steps.run(self._history.append_command(TOPIC, rule, message, "gw:trades", key, fence))

    def entries(self) -> list[tuple[str, dict[str, str]]]:
        """Ids and fields of the stream."""
        return [
            (identity.decode(), {name.decode(): value.decode() for name, value in fields.items()})
            for identity, fields in self.redis.xrange(self.stream)
        ]

    def offsets(self) -> list[int]:
        """Of the messages that are kept."""
        return [int(identity.split("-")[0]) for identity, _ in self.entries()]

    def about(self) -> dict[str, str]:
        """The meta."""
        return self.steps.hash(self.meta)

    def put_meta(self, **fields: object) -> None:
        """Write a meta in place of the one there is."""
        self.redis.delete(self.meta)
        self.redis.hset(self.meta, mapping={"epoch": "e1", "top": 0, "mark": 0} | fields)

    def append_of(self, most_bytes: int, text: bytes = b'{"a":1}') -> Any:
        """Append with a bound of bytes that a rule cannot have."""
        arguments = ["ch", "h", text, 1000, LIFE_MS, self.steps.now_ms(), "e1", "", 1, "", "", 0, 0, "PUBLISH",
                     LIFE_MS + META_MS, most_bytes]  # fmt: skip
        return self.steps.call("append_history", [self.stream, self.meta, self.meta, self.meta], *arguments)


@pytest.fixture
def topic(steps: Steps, keys: Keys) -> Topic:
    """A topic without messages."""
    return Topic(steps, keys)


# ---- append: numbers, the stream, the wire


def test_the_first_message_is_numbered_stored_and_published_once(steps: Steps, topic: Topic) -> None:
    before = steps.now_us()
    at_ms = steps.now_ms()
    epoch, offset, mark, again = topic.append(published_ms=at_ms, exclude="n1.boot.7")
    assert (offset, again) == (1, 0)
    assert before <= int(mark) <= steps.now_us()
    text = b'{"a":1}'
    size = len(text) + ENTRY_BYTES
    assert topic.entries() == [
        (
            "1-0",
            {"t": str(at_ms), "m": text.decode(), "x": "n1.boot.7", "k": mark.decode(), "p": "0", "c": str(size)},
        )
    ]
    assert topic.about() == {
        "epoch": epoch.decode(), "top": "1", "mark": mark.decode(), "bytes": str(size), "floor": "0",
    }  # fmt: skip
    assert steps.expires(topic.stream, LIFE_MS)
    assert steps.expires(topic.meta, LIFE_MS + META_MS)
    assert steps.state().keys() == {topic.stream.encode(), topic.meta.encode()}
    [(channel, payload)] = steps.published()
    assert channel == "gw:trades"
    assert Envelope.unpack(payload) == Envelope(
        at_ms,
        text,
        exclude="n1.boot.7",
        kind=EnvelopeKind.HISTORY,
        epoch=epoch.decode(),
        offset=1,
        mark=int(mark),
        previous=0,
    )


def test_messages_are_numbered_in_order_and_each_names_the_mark_before(steps: Steps, topic: Topic) -> None:
    answers = [topic.append(b'{"n":%d}' % n) for n in range(5)]
    assert [offset for _, offset, _, _ in answers] == [1, 2, 3, 4, 5]
    assert len({epoch for epoch, *_ in answers}) == 1
    marks = [int(mark) for _, _, mark, _ in answers]
    assert marks == sorted(set(marks))
    fields = [fields for _, fields in topic.entries()]
    assert [int(one["k"]) for one in fields] == marks
    assert [int(one["p"]) for one in fields] == [0, *marks[:-1]]
    sizes = [len(one["m"]) + ENTRY_BYTES for one in fields]
    assert [int(one["c"]) for one in fields] == [sum(sizes[: at + 1]) for at in range(5)]
    envelopes = [Envelope.unpack(payload) for _, payload in steps.published()]
    assert [(one.offset, one.mark, one.previous) for one in envelopes] == [
        (at + 1, marks[at], marks[at - 1] if at else 0) for at in range(5)
    ]
    assert topic.about()["mark"] == str(marks[-1])
    assert steps.expires(topic.stream, LIFE_MS)
    assert steps.expires(topic.meta, LIFE_MS + META_MS)


@pytest.mark.parametrize(("most", "over"), [(1, 0), (15, 0), (40, 4), (300, 31)])
def test_the_stream_has_at_most_an_eighth_and_31_messages_more_than_it_keeps(
    topic: Topic, most: int, over: int
) -> None:
    rule = Rule(pattern=TOPIC, history=most, history_seconds=60)
    lengths = []
    for number in range(1, most + 101):
        topic.append(rule=rule)
        lengths.append(topic.redis.xlen(topic.stream))
        assert min(number, most) <= lengths[-1] <= most + over
    assert topic.offsets()[-1] == most + 100
    assert max(lengths) == most + over


def test_marks_grow_where_the_clock_does_not(steps: Steps, topic: Topic) -> None:
    ahead = steps.now_us() + 10**12
    topic.put_meta(top=7, mark=ahead)
    assert topic.append()[:3] == [b"e1", 8, b"%d" % (ahead + 1)]
    assert topic.about()["mark"] == str(ahead + 1)
    assert topic.append()[:3] == [b"e1", 9, b"%d" % (ahead + 2)]


def test_large_numbers_are_exact(steps: Steps, topic: Topic) -> None:
    topic.put_meta(top=MAX_OFFSET - 1, mark=9 * 10**15 - 2, bytes=9 * 10**15 - 1, floor=9 * 10**15 - 1)
    epoch, offset, mark, _ = topic.append()
    assert (epoch, offset, mark) == (b"e1", MAX_OFFSET, b"%d" % (9 * 10**15 - 1))
    [(identity, fields)] = topic.entries()
    assert identity == f"{MAX_OFFSET}-0"
    assert (fields["k"], fields["p"]) == (str(9 * 10**15 - 1), str(9 * 10**15 - 2))
    assert topic.about()["top"] == str(MAX_OFFSET)
    [(_, payload)] = steps.published()
    assert payload.startswith(b"3 ")
    assert (f" H e1 {MAX_OFFSET} {9 * 10**15 - 1} {9 * 10**15 - 2}\n").encode() in payload


@pytest.mark.parametrize(
    "broken",
    [
        {"top": MAX_OFFSET}, {"top": "x"}, {"top": "-1"}, {"top": "1.5"}, {"top": "1e3"}, {"top": ""}, {"top": " 1"},
        {"top": "0" * 16 + "1"}, {"mark": "x"}, {"mark": 9 * 10**15}, {"epoch": ""}, {"epoch": "a b"},
        {"epoch": '"'}, {"epoch": "e" * 65},
    ],
)  # fmt: skip
def test_the_numbering_begins_anew_where_the_meta_is_broken(
    steps: Steps, topic: Topic, broken: dict[str, object]
) -> None:
    topic.append()
    topic.put_meta(**({"top": 5, "bytes": 10**6, "floor": 10**6} | broken))
    epoch, offset, _, _ = topic.append()
    assert offset == 1
    assert epoch.isalnum()
    assert len(epoch) == 8
    assert topic.offsets() == [1]
    about = topic.about()
    assert (about["epoch"], about["top"], about["floor"]) == (epoch.decode(), "1", "0")
    assert about["bytes"] == str(len(topic.entries()[0][1]["m"]) + ENTRY_BYTES)
    assert topic.entries()[0][1]["p"] == "0"


@pytest.mark.parametrize("gone", ["epoch", "top"])
def test_the_numbering_begins_anew_where_the_meta_lacks_a_field(topic: Topic, gone: str) -> None:
    topic.append()
    topic.append()
    topic.redis.hdel(topic.meta, gone)
    assert topic.append()[1] == 1
    assert topic.offsets() == [1]


def test_a_meta_of_the_longest_epoch_and_without_mark_goes_on(topic: Topic) -> None:
    topic.put_meta(epoch="e" * 64, top=5)
    topic.redis.hdel(topic.meta, "mark")
    assert topic.append()[:2] == [b"e" * 64, 6]
    assert topic.entries()[0][1]["p"] == "0"


@pytest.mark.parametrize("fields", [{"bytes": "x"}, {"floor": "x"}, {"bytes": 9 * 10**15}, {"floor": 9 * 10**15}])
def test_a_broken_count_of_bytes_begins_anew_and_the_numbering_goes_on(topic: Topic, fields: dict[str, object]) -> None:
    topic.put_meta(top=5, **fields)
    assert topic.append()[1] == 6
    about = topic.about()
    assert about["bytes"] == str(len(topic.entries()[0][1]["m"]) + ENTRY_BYTES)
    assert about["floor"] == "0"


def test_keys_of_another_type_are_replaced(steps: Steps, topic: Topic) -> None:
    rule = Rule(pattern=TOPIC, history=100, history_seconds=60, snapshot=True)
    fence = Fence("trades", 5, steps.now_ms() + 60_000)
    for broken in (topic.stream, topic.meta, topic.snapshot, topic.answer):
        for one in (None, fence):
            steps.redis.flushall()
            topic.append(rule=rule)
            steps.redis.delete(broken)
            steps.redis.set(broken, "x")
            steps.published()
            epoch, offset, mark, again = topic.append(rule=rule, key="key", fence=one)
            assert again == 0
            assert offset == (1 if broken in (topic.stream, topic.meta) else 2)
            assert len(steps.published()) == 1
            assert topic.about()["epoch"] == epoch.decode()
            assert topic.offsets()[-1] == offset
            assert steps.hash(topic.snapshot)["v"] == mark.decode()
            assert steps.hash(topic.answer) == {
                "epoch": epoch.decode(), "offset": str(offset), "mark": mark.decode(),
            }  # fmt: skip
            for key in (topic.stream, topic.meta, topic.snapshot, topic.answer):
                assert steps.redis.pttl(key) > 0


def test_a_stream_that_goes_beyond_its_meta_begins_anew(steps: Steps, topic: Topic) -> None:
    for _ in range(5):
        last = topic.append()
    topic.put_meta(epoch=last[0].decode(), top=3, mark=5, bytes=400, floor=1)
    steps.published()
    epoch, offset, _, _ = topic.append()
    assert (offset, topic.offsets()) == (1, [1])
    assert epoch != last[0]
    [(_, fields)] = topic.entries()
    assert fields["p"] == "0"
    about = topic.about()
    assert (about["epoch"], about["top"], about["floor"]) == (epoch.decode(), "1", "0")
    assert about["bytes"] == fields["c"] == str(len(fields["m"]) + ENTRY_BYTES)
    [(_, payload)] = steps.published()
    assert (Envelope.unpack(payload).epoch, Envelope.unpack(payload).offset) == (epoch.decode(), 1)


def test_a_message_goes_to_one_shard_on_a_cluster(steps: Steps, topic: Topic) -> None:
    subscriber = steps.redis.pubsub()
    subscriber.execute_command("SSUBSCRIBE", "ch")
    assert subscriber.parse_response()[0] == b"ssubscribe"
    keys = [topic.stream, topic.meta, topic.meta, topic.meta]
    steps.call(
        "append_history", keys, "ch", "h", '{"a":1}', 5, 1000, 1, "e1", "", 1, "", "", 0, 0, "SPUBLISH", 1000, 10**6
    )
    message = subscriber.parse_response()
    assert message[:2] == [b"smessage", b"ch"]
    assert message[2].startswith(b"h e1 1 ")
    assert steps.published() == []
    subscriber.close()


def test_without_memory_nothing_is_stored_or_published(steps: Steps, topic: Topic) -> None:
    fence = Fence("trades", 5, steps.now_ms() + 60_000)
    for messages in (0, 1):
        for _ in range(messages):
            topic.append()
        steps.redis.config_set("maxmemory", 1)
        try:
            for one in (None, fence):
                with steps.nothing_done(), pytest.raises(OutOfMemoryError):
                    topic.append(key="key", fence=one)
        finally:
            steps.redis.config_set("maxmemory", 0)


# ---- append: idempotency keys


def test_a_key_is_answered_once_more_and_nothing_is_published_again(steps: Steps, topic: Topic) -> None:
    first = topic.append(key="key")
    assert first[3] == 0
    assert steps.expires(topic.answer, IDEMPOTENCY_MS)
    topic.append()
    for _ in range(2):
        steps.redis.pexpire(topic.answer, 10_000)
        rest = {key: value for key, value in steps.state().items() if key != topic.answer.encode()}
        writes = steps.writes()
        with steps.silence():
            assert topic.append(b'{"another":1}', key="key") == [*first[:3], 1]
        assert steps.writes() == writes + 1, "one write, for WAIT"
        assert steps.expires(topic.answer, IDEMPOTENCY_MS)
        assert {key: value for key, value in steps.state().items() if key != topic.answer.encode()} == rest
    assert topic.offsets() == [1, 2]


def test_a_key_that_has_expired_publishes_again(steps: Steps, topic: Topic) -> None:
    topic.append(key="key")
    steps.expire(topic.answer)
    steps.published()
    epoch, offset, mark, again = topic.append(key="key")
    assert (offset, again) == (2, 0)
    assert len(steps.published()) == 1
    assert steps.hash(topic.answer) == {"epoch": epoch.decode(), "offset": "2", "mark": mark.decode()}
    assert steps.expires(topic.answer, IDEMPOTENCY_MS)


def test_keys_are_independent_and_without_one_nothing_is_stored(steps: Steps, topic: Topic, keys: Keys) -> None:
    assert [topic.append(key=key)[1] for key in ("a", "b", "a", "b", "c")] == [1, 2, 1, 2, 3]
    assert [topic.append()[1] for _ in range(2)] == [4, 5]
    answers = [keys.publish_answer(TOPIC, key).encode() for key in "abc"]
    assert steps.state().keys() == {topic.stream.encode(), topic.meta.encode(), *answers}


def test_an_answer_without_mark_is_given_as_it_was(steps: Steps, topic: Topic) -> None:
    steps.redis.hset(topic.answer, mapping={"epoch": "e9", "offset": 10**14})
    assert topic.append(key="key") == [b"e9", 10**14, b"0", 1]


@pytest.mark.parametrize(
    "broken",
    [
        {"epoch": "a b"},
        {"epoch": ""},
        {"offset": "x"},
        {"offset": ""},
        {"mark": "x"},
        {"mark": str(9 * 10**15)},
        {"epoch": None},
        {"offset": None},
    ],
)
def test_a_broken_answer_is_none(steps: Steps, topic: Topic, broken: dict[str, str | None]) -> None:
    answer = {"epoch": "e9", "offset": "7", "mark": "5"} | broken
    steps.redis.hset(topic.answer, mapping={name: value for name, value in answer.items() if value is not None})
    epoch, offset, mark, again = topic.append(key="key")
    assert (offset, again) == (1, 0)
    assert len(steps.published()) == 1
    assert steps.hash(topic.answer) == {"epoch": epoch.decode(), "offset": "1", "mark": mark.decode()}


# ---- append: fences


def test_a_living_leader_publishes_and_its_token_is_stored(steps: Steps, topic: Topic) -> None:
    until = steps.now_ms() + 60_000
    for number, token in enumerate((5, 5, 6, 10**15, 10**15), 1):
        steps.published()
        assert topic.append(fence=Fence("trades", token, until))[1] == number
        assert topic.about()["fence:trades"] == str(token)
        assert len(steps.published()) == 1
    assert steps.expires(topic.meta, LIFE_MS + META_MS)


def test_a_leader_with_an_older_token_is_refused(steps: Steps, topic: Topic) -> None:
    until = steps.now_ms() + 60_000
    topic.append(key="key", fence=Fence("trades", 1_700_000_000_000_001, until))
    for key in (None, "key", "new"):
        with steps.nothing_done():
            late = topic.append(key=key, fence=Fence("trades", 1_700_000_000_000_000, until))
            assert late == [b"1700000000000001"]
    assert topic.append(fence=Fence("another", 1, until))[1] == 2, "each singleton has its own tokens"


def test_a_leader_whose_lease_has_ended_is_refused(steps: Steps, topic: Topic) -> None:
    with steps.nothing_done():
        assert topic.append(fence=Fence("trades", 5, steps.now_ms())) == [b"0"]
    topic.put_meta(**{"fence:trades": 4})
    with steps.nothing_done():
        assert topic.append(fence=Fence("trades", 5, steps.now_ms() - 1), key="key") == [b"4"]
    steps.redis.delete(topic.meta)
    steps.redis.set(topic.meta, "x")
    with steps.nothing_done():
        assert topic.append(fence=Fence("trades", 5, steps.now_ms())) == [b"0"]


@pytest.mark.parametrize("newest", ["no number", "", "inf", str(2**53)])
def test_a_newest_token_that_is_none_refuses_nothing(steps: Steps, topic: Topic, newest: str) -> None:
    topic.put_meta(**{"fence:trades": newest})
    assert topic.append(fence=Fence("trades", 5, steps.now_ms() + 60_000))[1] == 1
    assert topic.about()["fence:trades"] == "5"


def test_a_leader_repeats_a_key_and_writes_no_other_key(steps: Steps, topic: Topic) -> None:
    topic.append(key="key")
    steps.redis.delete(topic.meta)
    assert topic.append(key="key", fence=Fence("trades", 5, steps.now_ms() + 60_000))[3] == 1
    assert not steps.redis.exists(topic.meta), "a meta without a TTL would stay for ever"


# ---- append: what is kept


@pytest.mark.parametrize("most", [1, 2, 10])
def test_the_history_keeps_no_more_messages_than_its_rule_allows(topic: Topic, most: int) -> None:
    rule = Rule(pattern=TOPIC, history=most, history_seconds=60)
    for _ in range(15):
        topic.append(rule=rule)
    assert topic.offsets() == list(range(16 - most, 16))
    assert topic.about()["top"] == "15"


def test_messages_of_more_bytes_than_the_topic_may_have_drop_the_oldest(topic: Topic) -> None:
    for n in range(1, 40):
        topic.append_of(1500, b'{"a":"%b"}' % (b"x" * (7 * n % 90)))
        sizes = [len(fields["m"]) + ENTRY_BYTES for _, fields in topic.entries()]
        assert sum(sizes) <= 1500
        assert n < 15 or sum(sizes) > 1500 - 64 - 200, "no more is dropped than must be"
        assert topic.offsets()[-1] == n
        about = topic.about()
        kept = int(about["bytes"]) - int(about["floor"])
        assert kept >= sum(sizes)


def test_the_bound_of_bytes_is_exact(topic: Topic) -> None:
    topic.append_of(10**6)
    size = len(topic.entries()[0][1]["m"]) + ENTRY_BYTES
    for _ in range(2):
        topic.append_of(3 * size)
    assert topic.offsets() == [1, 2, 3]
    topic.append_of(4 * size)
    assert topic.offsets() == [1, 2, 3, 4]
    assert topic.about()["floor"] == "0"
    topic.append_of(5 * size - 1)
    assert topic.offsets() == [2, 3, 4, 5]
    assert topic.about() == topic.about() | {"bytes": str(5 * size), "floor": str(size)}
    topic.append_of(4 * size)
    assert topic.offsets() == [3, 4, 5, 6]
    topic.append_of(10**6)
    assert topic.about()["floor"] == str(2 * size), "it is known until more must be dropped"


def test_a_large_message_drops_many_small_ones_at_once(topic: Topic) -> None:
    for _ in range(100):
        topic.append_of(10**6)
    size = int(topic.entries()[0][1]["c"])
    topic.append_of(20 * size, b'{"a":"%b"}' % (b"x" * 10 * size))
    sizes = [len(fields["m"]) + ENTRY_BYTES for _, fields in topic.entries()]
    assert sum(sizes) <= 20 * size < sum(sizes) + size + 10
    assert topic.offsets()[-1] == 101
    topic.append_of(20 * size)
    assert topic.offsets()[-1] == 102


def test_messages_that_were_dropped_by_number_count_no_more(topic: Topic) -> None:
    """MAXLEN drops without telling the count: what is there is looked at before more is dropped."""
    for _ in range(10):
        topic.append_of(10**6)
    size = len(topic.entries()[0][1]["m"]) + ENTRY_BYTES
    topic.redis.xtrim(topic.stream, maxlen=3, approximate=False)
    topic.append_of(5 * size)
    assert topic.offsets() == [8, 9, 10, 11]
    assert int(topic.about()["floor"]) == int(topic.entries()[0][1]["c"]) - size


def test_messages_of_an_older_version_without_a_count_go_first(topic: Topic) -> None:
    for _ in range(3):
        topic.append_of(10**6)
    size = len(topic.entries()[0][1]["m"]) + ENTRY_BYTES
    topic.redis.delete(topic.stream)
    for number in (1, 2, 3):
        topic.redis.xadd(topic.stream, {"t": 1, "m": "x" * 100, "x": "", "c": "broken"}, id=f"{number}-0")
    topic.append_of(2 * size)
    assert topic.offsets() == [4]


def test_messages_past_their_time_go_when_others_come(steps: Steps, topic: Topic) -> None:
    now = steps.now_ms()
    for _ in range(32):
        topic.append(published_ms=now - LIFE_MS - 1)
    assert topic.offsets() == list(range(1, 33))
    assert topic.append(published_ms=now)[1] == 33
    assert topic.offsets() == [33]


def test_messages_within_their_time_stay(steps: Steps, topic: Topic) -> None:
    now = steps.now_ms()
    for at in range(32):
        topic.append(published_ms=now - LIFE_MS - (at < 5))
    topic.append(published_ms=now)
    assert topic.offsets() == list(range(6, 34))


def test_at_most_64_messages_past_their_time_go_at_once(steps: Steps, topic: Topic) -> None:
    topic.put_meta(top=1000)
    for number in range(801, 1001):
        steps.redis.xadd(topic.stream, {"t": 1, "m": "{}"}, id=f"{number}-0")
    topic.put_meta(top=1024)
    topic.append(rule=Rule(pattern=TOPIC, history=1000, history_seconds=60))
    assert topic.offsets() == [*range(865, 1001), 1025]


def test_a_message_without_a_time_is_past_its_time(steps: Steps, topic: Topic) -> None:
    steps.redis.xadd(topic.stream, {"t": "x", "m": "{}"}, id="1-0")
    topic.put_meta(top=32)
    topic.append()
    assert topic.offsets() == [33]


# ---- append: the last value


def test_the_last_value_is_stored_for_a_topic_with_a_snapshot(steps: Steps, topic: Topic) -> None:
    rule = Rule(pattern=TOPIC, history=100, history_seconds=60, snapshot=True)
    for _ in range(2):
        _, _, mark, _ = topic.append(rule=rule)
        assert steps.hash(topic.snapshot) == {"v": mark.decode(), "m": topic.entries()[-1][1]["m"]}
        assert steps.expires(topic.snapshot, LIFE_MS + META_MS)
    assert "m" not in topic.about()


# ---- read


def read(steps: Steps, topic: Topic, first: int | str, most: int = 100) -> Any:
    """Read entries; offsets in place of them."""
    epoch, top, mark, entries, last = steps.call(
        "read_history", [topic.stream, topic.meta, topic.snapshot], first, most
    )
    return epoch, top, mark, [int(identity.split(b"-")[0]) for identity, _ in entries], last


def test_read_gives_entries_from_an_offset_on_or_the_newest(steps: Steps, topic: Topic) -> None:
    for _ in range(5):
        epoch, _, mark, _ = topic.append()
    steps.redis.hset(topic.snapshot, "m", "the last value")
    head = (epoch, b"5", mark)
    with steps.nothing_done():
        assert read(steps, topic, 1) == (*head, [1, 2, 3, 4, 5], b"")
        assert read(steps, topic, 3, 2) == (*head, [3, 4], b"")
        assert read(steps, topic, 5, 1) == (*head, [5], b"")
        assert read(steps, topic, 6) == (*head, [], b"")
        assert read(steps, topic, "") == (*head, [1, 2, 3, 4, 5], b"")
        assert read(steps, topic, "", 2) == (*head, [4, 5], b"")
        assert read(steps, topic, "", 1) == (*head, [5], b"")
        entries = steps.call("read_history", [topic.stream, topic.meta, topic.snapshot], 2, 1)[3]
    flat = [part.encode() for pair in topic.entries()[1][1].items() for part in pair]
    assert entries == [[b"2-0", flat]]


def test_read_of_the_newest_gives_the_last_value_where_there_is_none(steps: Steps, topic: Topic) -> None:
    assert read(steps, topic, "") == (b"", b"", b"", [], b"")
    steps.redis.hset(topic.snapshot, mapping={"v": 1, "m": "the last value"})
    with steps.nothing_done():
        assert read(steps, topic, "") == (b"", b"", b"", [], b"the last value")
        assert read(steps, topic, 1) == (b"", b"", b"", [], b"")


def test_read_counts_keys_of_another_type_as_missing(steps: Steps, topic: Topic) -> None:
    epoch, _, mark, _ = topic.append()
    for key in (topic.stream, topic.snapshot):
        steps.redis.delete(key)
        steps.redis.set(key, "x")
    with steps.nothing_done():
        assert read(steps, topic, "") == read(steps, topic, 1) == (epoch, b"1", mark, [], b"")
    steps.redis.delete(topic.meta)
    steps.redis.set(topic.meta, "x")
    with steps.nothing_done():
        assert read(steps, topic, "") == (b"", b"", b"", [], b"")
    topic.redis.delete(topic.stream)
    topic.redis.xadd(topic.stream, {"m": "x"}, id="1-0")
    assert read(steps, topic, "")[3] == [1]


def test_read_gives_what_a_broken_meta_has(steps: Steps, topic: Topic) -> None:
    steps.redis.hset(topic.meta, mapping={"top": 5})
    assert read(steps, topic, 1) == (b"", b"5", b"", [], b"")


def test_read_gives_a_thousand_entries(steps: Steps, topic: Topic) -> None:
    with steps.redis.pipeline() as pipeline:
        for number in range(1, 2001):
            pipeline.xadd(topic.stream, {"m": "x"}, id=f"{number}-0")
        pipeline.execute()
    assert read(steps, topic, 11, 1000)[3] == list(range(11, 1011))
    assert read(steps, topic, "", 1000)[3] == list(range(1001, 2001))


# ---- renew


def test_renew_stores_the_new_epoch_and_the_rest_stays(steps: Steps, topic: Topic) -> None:
    topic.put_meta(epoch="e1", top=5, mark=7)
    with steps.silence():
        assert steps.call("renew_epoch", [topic.meta], "e1", "e2", 60_000) == b"e2"
    assert topic.about() == {"epoch": "e2", "top": "5", "mark": "7"}
    assert steps.expires(topic.meta, 60_000)


def test_renew_keeps_the_epoch_of_a_node_that_was_quicker_and_writes(steps: Steps, topic: Topic) -> None:
    """WAIT behind it covers the other node's renewal only if this is a write too."""
    topic.put_meta(epoch="e3", top=5)
    steps.redis.pexpire(topic.meta, 90_000)
    before, writes = steps.state(), steps.writes()
    assert steps.call("renew_epoch", [topic.meta], "e1", "e2", 60_000) == b"e3"
    assert steps.state() == before
    assert steps.writes() > writes


def test_renew_never_shortens_the_life_of_the_meta(steps: Steps, topic: Topic) -> None:
    for left, ends in ((90_000, 90_000), (50_000, 60_000)):
        topic.put_meta(epoch="e1", top=5)
        steps.redis.pexpire(topic.meta, left)
        assert steps.call("renew_epoch", [topic.meta], "e1", "e2", 60_000) == b"e2"
        assert ends - 1000 < steps.redis.pttl(topic.meta) <= ends


@pytest.mark.parametrize("fields", [{}, {"epoch": "e1"}, {"top": "5"}])
def test_renew_of_no_meta_writes_nothing(steps: Steps, topic: Topic, fields: dict[str, str]) -> None:
    if fields:
        steps.redis.hset(topic.meta, mapping=fields)
    with steps.nothing_done():
        assert steps.call("renew_epoch", [topic.meta], "e1", "e2", 60_000) == b""


def test_renew_of_a_key_of_another_type_writes_nothing(steps: Steps, topic: Topic) -> None:
    steps.redis.set(topic.meta, "x")
    with steps.nothing_done():
        assert steps.call("renew_epoch", [topic.meta], "e1", "e2", 60_000) == b""


# ---- begin


def test_begin_gives_a_topic_its_epoch_before_the_first_message(steps: Steps, topic: Topic) -> None:
    with steps.silence():
        assert steps.call("begin_history", [topic.meta], "e1", 60_000) == b"e1"
    assert topic.about() == {"epoch": "e1", "top": "0", "mark": "0"}
    assert steps.expires(topic.meta, 60_000)
    epoch, offset, *_ = topic.append()
    assert (epoch, offset) == (b"e1", 1)


def test_begin_keeps_the_epoch_of_a_node_that_was_quicker(steps: Steps, topic: Topic) -> None:
    epoch, *_ = topic.append()
    with steps.nothing_done():
        assert steps.call("begin_history", [topic.meta], "e2", 60_000) == epoch


def test_begin_replaces_a_key_of_another_type(steps: Steps, topic: Topic) -> None:
    steps.redis.set(topic.meta, "x")
    assert steps.call("begin_history", [topic.meta], "e1", 60_000) == b"e1"
    assert topic.about()["epoch"] == "e1"


# ---- peek


def test_peek_reads_the_meta_and_writes_nothing_while_half_its_life_is_left(steps: Steps, topic: Topic) -> None:
    rows = [topic.meta, topic.snapshot]
    topic.put_meta(epoch="e1", top=5, mark=7)
    steps.redis.hset(topic.snapshot, "m", "x")
    steps.redis.pexpire(topic.meta, 31_000)
    steps.redis.pexpire(topic.snapshot, 5_000)
    with steps.nothing_done():
        assert steps.call("peek_history", rows, 60_000, 1000) == [b"e1", b"5", b"7"]


def test_peek_renews_meta_and_last_value_in_the_second_half_of_their_life(steps: Steps, topic: Topic) -> None:
    rows = [topic.meta, topic.snapshot]
    topic.put_meta(epoch="e1", top=5, mark=7)
    for left in (29_999, 1000, None):
        if left:
            steps.redis.pexpire(topic.meta, left)
        else:
            steps.redis.persist(topic.meta)
        with steps.silence():
            assert steps.call("peek_history", rows, 60_000, 1000) == [b"e1", b"5", b"7"]
        assert steps.expires(topic.meta, 60_000)
        assert steps.redis.exists(topic.snapshot) == (left != 29_999)
        steps.redis.hset(topic.snapshot, "m", "x")
        if left != 29_999:
            assert steps.expires(topic.snapshot, 60_000)


def test_peek_keeps_a_topic_without_messages_for_a_shorter_time(steps: Steps, topic: Topic) -> None:
    rows = [topic.meta, topic.snapshot]
    topic.put_meta(epoch="e1", top=0, mark=0)
    for left, life in ((600, 600), (400, 1000), (None, 1000)):
        if left:
            steps.redis.pexpire(topic.meta, left)
        else:
            steps.redis.persist(topic.meta)
        assert steps.call("peek_history", rows, 60_000, 1000) == [b"e1", b"0", b"0"]
        assert steps.expires(topic.meta, life)


def test_peek_of_what_is_missing_writes_nothing(steps: Steps, topic: Topic) -> None:
    rows = [topic.meta, topic.snapshot]
    with steps.nothing_done():
        assert steps.call("peek_history", rows, 60_000, 1000) == [b"", b"", b""]
    steps.redis.hset(topic.meta, "top", 5)
    steps.redis.hset(topic.snapshot, "m", "x")
    with steps.nothing_done():
        assert steps.call("peek_history", rows, 60_000, 1000) == [b"", b"", b""]
    steps.redis.delete(topic.meta)
    steps.redis.set(topic.meta, "x")
    with steps.nothing_done():
        assert steps.call("peek_history", rows, 60_000, 1000) == [b"", b"", b""]
    steps.redis.delete(topic.meta)
    steps.redis.hset(topic.meta, "epoch", "e1")
    assert steps.call("peek_history", rows, 60_000, 1000) == [b"e1", b"", b""]
