"""Records of services from any program, and the combined status of all instances."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import service_records
from gateway.core.service_records import MAX_RECORD_BYTES, OperationStats, RecordError, ServiceRecord, ServiceStatus

NOW = 1_795_502_108_477
SAID = [status for status in ServiceStatus if status is not ServiceStatus.OFFLINE]


def alive(status: str, **more: Any) -> ServiceRecord:
    return {"status": status, "leaseEnds": NOW + 1, **more}


def ended(status: str, **more: Any) -> ServiceRecord:
    return {"status": status, "leaseEnds": NOW, **more}


# ---- one record


def test_a_record_needs_no_more_than_a_status() -> None:
    assert service_records.check({"status": "active"}) == {"status": "active"}


@pytest.mark.parametrize(
    ("record", "wrong"),
    [
        ([], "object"),
        ({}, "status"),
        ({"status": "fine"}, "status must be one of starting"),
        ({"status": "offline"}, "status"),
        ({"status": ["active"]}, "status"),
        ({"status": "active", "color": "green"}, "'color'"),
        ({"status": "active", "running": 1}, "running"),
        ({"status": "active", "lastError": 5}, "lastError"),
        ({"status": "active", "lastError": "x" * 501}, "lastError"),
        ({"status": "active", "version": 1.5}, "version"),
        ({"status": "active", "version": True}, "version"),
        ({"status": "active", "leaseEnds": 1 << 53}, "leaseEnds"),
        ({"status": "active", "dependsOn": "db"}, "dependsOn"),
        ({"status": "active", "dependsOn": ["a b"]}, "dependsOn"),
        ({"status": "active", "stats": []}, "stats"),
    ],
)
def test_what_is_wrong_is_named(record: object, wrong: str) -> None:
    with pytest.raises(RecordError, match=wrong):
        service_records.check(record)


@given(st.binary(max_size=200) | st.text(max_size=50).map(str.encode) | st.from_type(bool).map(orjson.dumps))
def test_any_text_is_a_record_or_rejected(text: bytes) -> None:
    record = service_records.parse(text)
    assert record["status"] in SAID
    if "not understood" in record.get("lastError", ""):
        assert record["status"] == ServiceStatus.ERROR
    service_records.aggregate("s", {"i": record}, NOW)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 60), 1 << 60) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(SAID), st.dictionaries(st.sampled_from(sorted(service_records.FIELDS - {"status"})), JSON))
def test_records_of_other_programs_are_shown(status: ServiceStatus, more: dict[str, Any]) -> None:
    record = service_records.parse(orjson.dumps({"status": status, **more}))
    shown = service_records.aggregate("s", {"i": record, "j": alive("active")}, NOW)
    assert orjson.dumps(shown)


def test_a_record_that_is_too_large_is_refused_both_ways() -> None:
    large = {"status": "active", "stats": {"x": "y" * MAX_RECORD_BYTES}}
    with pytest.raises(RecordError, match="bytes"):
        service_records.encode(large)
    assert "bytes" in service_records.parse(orjson.dumps(large))["lastError"]


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(RecordError, match="JSON"):
        service_records.encode({"stats": {"x": object()}})


@pytest.mark.parametrize("name", ["", "a b", "a{b}", "x" * 65, "a\n", None, 5])
def test_names_that_no_service_has(name: object) -> None:
    assert not service_records.is_service(name)


# ---- all instances


@given(st.permutations(SAID))
def test_the_worst_is_the_same_in_any_order(statuses: list[ServiceStatus]) -> None:
    assert service_records.worst_status(statuses) == ServiceStatus.ERROR


@given(st.lists(st.sampled_from(ServiceStatus)), st.lists(st.sampled_from(ServiceStatus)))
def test_merging_in_parts_gives_the_same(some: list[ServiceStatus], others: list[ServiceStatus]) -> None:
    parts = [service_records.worst_status(part) for part in (some, others) if part]
    assert service_records.worst_status(parts) == service_records.worst_status([*some, *others])


def test_of_none_it_is_offline() -> None:
    assert service_records.worst_status([]) == ServiceStatus.OFFLINE


def test_the_living_count_and_the_dead_are_shown_with_their_last_error() -> None:
    found = service_records.aggregate(
        "feed",
        {"b": ended("active", lastError="no memory", lastErrorAt="2026-01-01T00:00:00.000Z"), "a": alive("active")},
        NOW,
    )
    assert (found["status"], found["running"], found["lastError"]) == ("active", 1, "no memory")
    shown = [(row["instance"], row["status"], row["alive"], row["running"]) for row in found["instances"]]
    assert shown == [("a", "active", True, True), ("b", "offline", False, False)]
    assert "leaseEnds" not in found["instances"][0]


def test_one_instance_in_error_makes_the_service_error() -> None:
    assert service_records.aggregate("s", {"a": alive("active"), "b": alive("error")}, NOW)["status"] == "error"


def test_a_service_without_live_instances_is_offline_unless_all_ended_in_order() -> None:
    assert service_records.aggregate("s", {"a": ended("active"), "b": ended("stopped")}, NOW)["status"] == "offline"
    assert service_records.aggregate("s", {"a": ended("disabled"), "b": ended("stopped")}, NOW)["status"] == "stopped"


def test_the_newest_error_is_the_services() -> None:
    rows = {
        "a": alive("active", lastError="old", lastErrorAt="2026-01-01T00:00:00.000Z"),
        "b": alive("active", lastError="new", lastErrorAt="2026-01-02T00:00:00.000Z"),
        "c": alive("active", lastError="undated"),
    }
    assert service_records.aggregate("s", rows, NOW)["lastError"] == "new"


def test_dependencies_are_those_of_all() -> None:
    rows = {"a": alive("active", dependsOn=["db"]), "b": alive("active", dependsOn=["db", "queue"])}
    assert service_records.aggregate("s", rows, NOW)["dependsOn"] == ["db", "queue"]


# ---- stats


def test_nothing_measured_is_null() -> None:
    assert OperationStats().as_dict("closed") == {
        "operations": 0, "failures": 0, "meanMs": None, "p99Ms": None, "breaker": "closed",
    }  # fmt: skip


def test_mean_and_p99_are_of_the_last_256() -> None:
    stats = OperationStats()
    for _ in range(1000):
        stats.add(5.0, failed=True)
    for at in range(256):
        stats.add(0.1 if at < 253 else 1.0, failed=False)
    shown = stats.as_dict("open")
    assert (shown["operations"], shown["failures"], shown["p99Ms"], shown["breaker"]) == (1256, 1000, 1000.0, "open")
    assert shown["meanMs"] == pytest.approx(110.547, abs=0.001)


@pytest.mark.parametrize(
    ("name", "reserved"),
    [("gateway", True), ("gateway.bus", True), ("Gateway.BUS", True), ("gateway:bus", True), ("gateway.", True),
     ("gateways", False), ("api-gateway", False), ("gateway-api", False), ("feed.gateway", False)],
)  # fmt: skip
def test_the_names_of_the_nodes_own_services_are_reserved(name: str, reserved: bool) -> None:
    assert service_records.is_reserved(name) is reserved


@pytest.mark.parametrize(("more", "status"), [(0, "active"), (1, "error")])
def test_a_record_may_have_16_kib_and_not_a_byte_more(more: int, status: str) -> None:
    text = b'{"status":"active","stats":{"x":"%s"}}'
    text %= b"y" * (MAX_RECORD_BYTES - len(text) + len(b"%s") + more)
    assert len(text) == MAX_RECORD_BYTES + more
    assert service_records.parse(text)["status"] == status
