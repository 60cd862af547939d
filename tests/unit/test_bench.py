"""The bench's arithmetic: medians, percentiles, verdicts, options and output."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import __main__ as bench
from bench import capacity, report, targets
from bench.capacity import NODE_CLIENTS, Costs, need
from bench.contenders import CENTRIFUGO, GATEWAY, Contender
from bench.figures import Results, Round, Scenario, percentile
from bench.scenarios import BY_NAME, SCENARIOS
from bench.targets import Target, least, of, ratio, spread, versus


def results(**figures: dict[str, list[float]]) -> Results:
    """Scenario "s": each contender's rounds of the metric "m"."""
    found = Scenario("2026-01-01", {name: [{"m": value} for value in values] for name, values in figures["s"].items()})
    return Results({"processor": "one"}, {"s": found})


def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed() -> None:
    buckets = [(1.0, 98), (5.0, 1), (9.0, 1)]
    assert [percentile(buckets, share) for share in (0, 0.5, 0.98, 0.99, 1)] == [1, 1, 1, 5, 9]
    assert math.isnan(percentile([], 0.5))


@given(st.lists(st.integers(0, 50), min_size=1), st.floats(0, 1))
def test_percentiles_agree_with_counting(values: list[int], share: float) -> None:
    found = percentile([(value, values.count(value)) for value in sorted(set(values))], share)
    assert sum(value <= found for value in values) >= share * len(values)
    assert sum(value < found for value in values) < max(share * len(values), 1)


def test_a_figure_is_the_median_of_its_rounds() -> None:
    found = results(s={"a": [1.0, 100.0, 3.0], "b": []})
    assert found.median("s", "a", "m") == 3
    assert found.median("s", "b", "m") is None
    assert found.median("s", "a", "other") is None
    assert found.median("another", "a", "m") is None
    assert Results.from_json(found.as_json()) == found


def test_bounds_hold_on_both_sides_and_up_to_the_bound() -> None:
    found = results(s={"gateway": [2.0]})
    value = of("s", "m")
    assert Target("", value, 2.0).met(found) is True
    assert Target("", value, 1.9).met(found) is False
    assert Target("", value, 2.0, at_most=False).met(found) is True
    assert Target("", value, 2.1, at_most=False).met(found) is False
    assert Target("", of("s", "other"), 2.0).met(found) is None


def test_figures_are_compared_only_where_they_were_measured() -> None:
    found = results(s={"gateway": [3.0], "peer": [2.0], "zero": [0.0]})
    ours, peer, zero, none = (of("s", "m", name) for name in ("gateway", "peer", "zero", "none"))
    assert ratio(ours, peer)(found) == 1.5
    assert ratio(ours, zero)(found) is None
    assert ratio(ours, none)(found) is None
    assert least([ours, peer, none])(found) == 2
    assert least([none])(found) is None
    assert spread([ours, peer])(found) == 1.5
    assert spread([ours, none])(found) is None


def test_every_target_speaks_of_what_is_measured() -> None:
    for scenario, contender in targets.asked():
        assert contender in {one.name for one in BY_NAME[scenario].contenders}


def test_an_absolute_target_replaces_one_relative_to_a_contender_that_was_not_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    absolute = Target("absolute", of("s", "m"), 5)
    relative = Target("relative", versus("s", "m"), 2, otherwise=absolute)
    without_other = Target("relative, and nothing else", versus("s", "m"), 2)
    monkeypatch.setattr(targets, "TARGETS", (relative, without_other))
    alone, both = results(s={"gateway": [3.0]}), results(s={"gateway": [3.0], "centrifugo": [2.0]})
    assert targets.held(alone) == [absolute, without_other]
    assert targets.held(both) == [relative, without_other]
    assert [one.met(alone) for one in targets.held(alone)] == [True, None]
    assert [one.value(both) for one in targets.held(both)] == [1.5, 1.5]


def test_the_report_states_whether_centrifugo_was_measured_and_the_ratio() -> None:
    def paced(figures: dict[str, float]) -> Results:
        rounds: dict[str, list[Round]] = {name: [{targets.US: value}] for name, value in figures.items()}
        return Results({"processor": "one"}, {"paced": Scenario("2026-01-01", rounds)})

    alone, both = report.whole(paced({"gateway": 3.0})), report.whole(paced({"gateway": 3.0, "centrifugo": 4.0}))
    assert "there was no `centrifugo` program on the PATH" in alone
    assert "centrifugo` program" not in both
    assert f"| {targets.US} | 3 | 4 | 0.75 |" in both
    assert "gateway / Centrifugo" not in alone


def test_a_contender_is_skipped_without_the_program_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    found, asked = Scenario("2026-01-01"), replace(BY_NAME["paced"], contenders=[CENTRIFUGO])
    bench.measure(asked, bench.plan({}), 1, found)
    assert not found.rounds and not found.failures
    assert GATEWAY.available and not CENTRIFUGO.available


@pytest.mark.parametrize("topic", ["t#####", "h00000"])
def test_centrifugo_reads_its_redis_messages_as_protobuf_and_its_clients_get_so_many_bytes(topic: str) -> None:
    for size in (200, 400, 40_000):
        channel, payload = CENTRIFUGO.message(topic, size)
        assert channel == f"centrifugo.client.{CENTRIFUGO.channel(topic)}"
        assert payload[0] == 0x22, "field 4, length-delimited"
        length, at = 0, 1
        while True:
            length |= (payload[at] & 127) << 7 * (at - 1)
            at += 1
            if payload[at - 1] < 128:
                break
        text = payload[at:]
        assert len(text) == length
        pushed = {"push": {"channel": CENTRIFUGO.channel(topic), "pub": {"data": json.loads(text)}}}
        assert len(json.dumps(pushed, separators=(",", ":"))) == size


@pytest.mark.parametrize("contender", [GATEWAY, CENTRIFUGO])
@pytest.mark.parametrize("count", [1, 100])
def test_a_request_to_publish_has_so_many_messages_and_states_its_length(contender: Contender, count: int) -> None:
    head, _, body = contender.request("h00000", count).partition(b"\r\n\r\n")
    assert head.startswith(b"POST /api/")
    assert f"Content-Length: {len(body)}".encode() in head.split(b"\r\n")
    assert body.count(b'"at":"') == body.count(contender.channel("h00000").encode()) == count
    json.loads(body)
    published = json.loads(contender.publish_text("h00000"))
    assert contender.channel("h00000") in (published.get("topic"), published.get("publish", {}).get("channel"))


def test_every_round_measures_what_is_compared_and_the_first_all() -> None:
    first, second, third = ([s.name for at, s in bench.schedule(bench.plan({})) if at == n] for n in (1, 2, 3))
    assert first == list(BY_NAME)
    assert second == third == [name for name in first if name in second]
    assert set(second) >= {name for name, _ in targets.asked()}
    assert "nodes-8" not in second


def test_the_quick_bench_measures_what_the_targets_speak_of_and_no_more() -> None:
    chosen = bench.plan({"QUICK": "1"}).scenarios
    assert {(scenario.name, one.name) for scenario in chosen for one in scenario.contenders} == targets.asked()
    assert bench.plan({}).scenarios is SCENARIOS


def test_options_are_parsed() -> None:
    chosen = bench.plan({})
    assert (chosen.scenarios, chosen.rounds, chosen.quick) == (SCENARIOS, 3, False)
    chosen = bench.plan({"SCENARIOS": "storm, paced", "QUICK": "1", "ROUNDS": ""})
    assert ([one.name for one in chosen.scenarios], chosen.rounds, chosen.quick) == (["storm", "paced"], 1, True)


@pytest.mark.parametrize("words", [{"SCENARIOS": "pased"}, {"ROUNDS": "-1"}, {"ROUNDS": "x"}, {"ROUNDS": "21"}])
def test_it_refuses_what_it_does_not_know(words: dict[str, str]) -> None:
    with pytest.raises(bench.PlanError):
        bench.plan(words)


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (0.12345, "0.123"), (5.067, "5.07"), (1234.5, "1,230"), (7_708_261.9, "7,710,000")]
)
def test_figures_are_shown_with_three_that_count(value: float | None, text: str) -> None:
    assert report.number(value) == text


def test_what_is_shown_is_what_was_measured() -> None:
    measured = report.load(report.HERE / "results.json")
    assert (report.HERE / "results.md").read_text() == report.whole(measured), "run make bench, or its report, again"
    for page in report.PAGES:
        assert page.read_text() == report.renew(page, measured), f"{page.name}: run make bench, or its report, again"


COSTS = Costs(
    delivery_us=5,
    connection_kb=5,
    connects=2000,
    balancer_us=10,
    balancer_kb=6,
    row_bytes=300,
    publish_us=40,
    node_us=5,
)


def test_a_small_cluster_has_one_node_to_spare() -> None:
    found = need(1000, COSTS)
    assert (found.nodes, found.redis_shards) == (2, 1)


def test_nodes_are_bound_by_their_clients_or_by_their_core() -> None:
    assert need(10 * NODE_CLIENTS, COSTS).nodes == 11
    # A million clients at two messages a second of 50 us each: 100 cores, half of each.
    assert need(1_000_000, replace(COSTS, delivery_us=50)).nodes == 201


def test_redis_grows_with_the_nodes_and_the_balancer_with_the_deliveries() -> None:
    small, large = need(100_000, COSTS), need(10_000_000, COSTS)
    assert large.balancer_cores == pytest.approx(100 * small.balancer_cores)
    assert large.redis_shards > small.redis_shards == 1
    assert large.redis_gb == pytest.approx(3)
    assert large.gigabits == pytest.approx(20e6 * 270 * 8 / 1e9)


def test_the_clients_of_a_dead_node_share_the_others() -> None:
    calm, slow = need(1_000_000, COSTS), need(1_000_000, replace(COSTS, connects=200))
    assert slow.back_seconds == pytest.approx(10 * calm.back_seconds)


def test_missing_measurements_are_named_and_give_no_figures() -> None:
    with pytest.raises(capacity.Unmeasured, match="make bench SCENARIOS=beside"):
        capacity.rows(results(s={}))
    assert "Not calculated, because a figure is missing" in report.scaling(results(s={}))


def test_what_was_measured_is_enough_to_reckon_every_cell() -> None:
    head, *others = capacity.rows(report.load(report.HERE / "results.json"))
    assert len(head) == 5 and len(others) == 8
    assert all(cell.strip("0., ") for row in others for cell in row)
