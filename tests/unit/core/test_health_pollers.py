"""A drain waits until each load balancer got two failed health checks in a row."""

from __future__ import annotations

from gateway.core.health_pollers import MAX_POLLERS, HealthPollers


def asked(pollers: HealthPollers, who: str, *answers: bool, at: float, every: float = 1.0) -> float:
    """`who` asks, `every` so many seconds; answered True: refused. When it asked last."""
    for number, refused in enumerate(answers):
        pollers.polled(who, refused, at + number * every)
    return at + (len(answers) - 1) * every


def test_a_drain_without_pollers_waits_for_none() -> None:
    assert HealthPollers().all_notified(0)


def test_a_load_balancer_knows_of_the_drain_after_two_refusals_in_a_row() -> None:
    pollers = HealthPollers()
    now = asked(pollers, "lb", False, False, at=0)
    assert not pollers.all_notified(now)
    now = asked(pollers, "lb", True, at=now + 1)
    assert not pollers.all_notified(now)
    now = asked(pollers, "lb", True, at=now + 0.5)
    assert pollers.all_notified(now)
    now = asked(pollers, "lb", False, at=now + 1)
    assert not pollers.all_notified(now)


def test_each_of_two_load_balancers_is_waited_for() -> None:
    pollers = HealthPollers()
    asked(pollers, "one", False, False, at=0)
    asked(pollers, "other", False, False, at=0.5)
    asked(pollers, "one", True, True, True, at=2)
    assert not pollers.all_notified(4)
    asked(pollers, "other", True, True, at=4)
    assert pollers.all_notified(5)


def test_one_that_was_refused_before_the_drain_knows_already() -> None:
    pollers = HealthPollers()
    now = asked(pollers, "lb", True, True, True, at=0)
    assert pollers.all_notified(now)


def test_a_monitor_that_asks_now_and_then_is_not_waited_for() -> None:
    pollers = HealthPollers()
    now = asked(pollers, "monitor", False, False, False, at=0, every=15)
    assert pollers.all_notified(now)


def test_a_person_who_has_looked_a_few_times_is_not_waited_for() -> None:
    pollers = HealthPollers()
    now = asked(pollers, "person", False, False, False, at=0, every=0.1)
    assert pollers.all_notified(now)


def test_a_load_balancer_that_has_gone_is_not_waited_for() -> None:
    pollers = HealthPollers()
    now = asked(pollers, "lb", False, False, False, at=0)
    assert not pollers.all_notified(now)
    assert pollers.all_notified(now + 5.1)


def test_strangers_cannot_fill_the_memory() -> None:
    pollers = HealthPollers()
    for number in range(10 * MAX_POLLERS):
        pollers.polled(f"stranger {number}", False, 0)
    assert pollers.all_notified(0)
