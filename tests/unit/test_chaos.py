"""The options of `make chaos`, and its rules for a broken promise."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from chaos import plan, report
from chaos.faults import FAULTS, KNOWN
from chaos.ledger import Account

KEPT = report.Phase("a fault", True, 10, Account(received=10), Account(received=10), 0, (0.5, 1.5), 2.0, 10.0, True)


def test_without_a_word_it_does_every_fault_once_with_a_hundred_clients() -> None:
    chosen = plan.from_env({}, KNOWN, seed=5)
    assert chosen.faults == tuple(KNOWN["single"])
    assert (chosen.seed, chosen.clients, chosen.minutes, chosen.fsync) == (5, 100, 0, "everysec")


def test_options_are_parsed() -> None:
    chosen = plan.from_env(
        {"SEED": "9", "FAULTS": "flush, kill", "QUICK": "1", "MINUTES": "1.5", "FSYNC": "always"}, KNOWN, seed=5
    )
    assert chosen.faults == ("flush", "kill")
    assert (chosen.seed, chosen.clients, chosen.minutes, chosen.fsync) == (9, 30, 1.5, "always")
    assert chosen.freeze_node_seconds > chosen.lease_seconds, "quick, but longer than what is to notice it"


def test_with_sentinels_it_does_what_can_happen_to_them() -> None:
    chosen = plan.from_env({"REDIS": "sentinel", "WAIT": "1"}, KNOWN, seed=5)
    assert "failover" in chosen.faults and "flush" not in chosen.faults
    assert (chosen.redis, chosen.wait_replicas) == ("sentinel", 1)


def test_with_a_cluster_it_does_what_can_happen_to_one() -> None:
    chosen = plan.from_env({"REDIS": "cluster", "WAIT": "1"}, KNOWN, seed=5)
    assert {"kill", "reload", "shard", "move"} <= set(chosen.faults)
    assert not {"failover", "flush"} & set(chosen.faults)
    assert (chosen.redis, chosen.wait_replicas) == ("cluster", 1)
    single = plan.from_env({}, KNOWN, seed=5)
    assert len(chosen.topics()) > len(single.topics()), "each master has some of them"
    assert [sum(map(one.rate, one.topics())) for one in (chosen, single)] == pytest.approx([50, 50])


def test_with_hosts_it_cuts_them_from_each_other_for_longer_than_anybody_bears() -> None:
    for quick in ("", "1"):
        chosen = plan.from_env({"HOSTS": "1", "QUICK": quick}, KNOWN, seed=5)
        assert {"cut-redis", "cut-balancer", "halves", "halves-master"} <= set(chosen.faults)
        assert "cut-redis" not in KNOWN["single"] + KNOWN["sentinel"]
        assert (chosen.hosts, chosen.redis, chosen.nodes, chosen.wait_replicas) == (True, "sentinel", 4, 1)
        assert chosen.cut_seconds > max(
            chosen.lease_seconds, chosen.ping_seconds + chosen.pong_seconds, chosen.max_lag_seconds
        )


def test_every_fault_can_happen_somewhere() -> None:
    assert set(FAULTS) == {name for names in KNOWN.values() for name in names}


@pytest.mark.parametrize(
    "environ",
    [
        {"REDIS": "many"},
        {"REDIS": "hosts"},
        {"REDIS": "single", "HOSTS": "1"},
        {"WAIT": "1"},
        {"FAULTS": "failover"},
        {"FAULTS": "earthquake"},
        {"SEED": "x"},
        {"MINUTES": "-1"},
        {"FSYNC": "often"},
        {"CLIENTS": "0"},
        {"CLIENT": "native"},
        {"CLIENT": "centrifugo", "HOSTS": "1"},
    ],
)
def test_what_it_does_not_understand_stops_it_with_the_name(environ: dict[str, str]) -> None:
    name, *_ = environ
    with pytest.raises(plan.PlanError, match=name):
        plan.from_env(environ, KNOWN, seed=5)


def test_a_phase_without_loss_keeps_its_promises() -> None:
    assert KEPT.broken() == []
    assert replace(KEPT, plain=Account(lost_told=3)).broken() == []


@pytest.mark.parametrize(
    "worse",
    [
        {"history": Account(lost_told=1)},
        {"history": Account(duplicated=1)},
        {"history": Account(reordered=1)},
        {"plain": Account(lost_untold=1, first_untold=4)},
        {"ghost_seconds": 10.1},
        {"listed": False},
        {"faults": ("n1 ended by itself",)},
        {"failovers": (report.Failover(4.0, 1.0), report.Failover(4.0, 2.1))},
        {"publishes": (100, 100, 161)},
    ],
)
def test_each_of_these_breaks_a_promise(worse: dict[str, object]) -> None:
    [sentence] = replace(KEPT, **worse).broken()  # type: ignore[arg-type]
    assert sentence.startswith("a fault: ")


def test_the_report_has_both_times_of_a_failover_and_the_spread_of_publishes() -> None:
    assert KEPT.notes() == []
    phase = replace(KEPT, failovers=[report.Failover(4.26, 0.94)], publishes=[90, 100, 110])
    assert phase.broken() == []
    busy = replace(KEPT, failovers=[report.Failover(4.0, 3.5, late=1.6)])
    assert busy.broken() == [] and busy.notes()[0].endswith("(the test itself was delayed by up to 1.6 s)")
    assert phase.notes() == [
        "a fault: another server had taken over after 4.3 s; delivery was complete again 0.9 s later",
        "a fault: publishes of each master: 90, 100, 110; at most 10% off their mean",
    ]


def test_where_redis_loses_its_data_only_silence_breaks_it() -> None:
    lossy = replace(KEPT, keeps_history=False)
    assert replace(lossy, history=Account(lost_told=5, duplicated=1)).broken() == []
    assert replace(lossy, history=Account(lost_untold=1, first_untold=2)).broken() != []
    assert replace(lossy, untold_clients=1).broken() != []


def test_the_table_has_a_row_a_phase() -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(report.table([KEPT, replace(KEPT, fault="worse", plain=Account(lost_untold=1))]))
    rows = console.export_text().splitlines()
    assert any("a fault" in row and "kept" in row for row in rows)
    assert any("worse" in row and "broken" in row for row in rows)


def test_centrifugos_clients_are_told_losses_only_on_topics_with_history() -> None:
    chosen = plan.from_env({"CLIENT": "centrifugo", "QUICK": "1"}, KNOWN, seed=5)
    assert chosen.client == "centrifugo" and chosen.topics() == ["h1", "h2", "h3", "h4"]
