"""The ledger of `make chaos` finds lost, duplicated and reordered messages, and reported gaps."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.ledger import Account, Ledger


def ledger(*steps: int | str) -> Ledger:
    book = Ledger()
    for step in steps:
        if isinstance(step, int):
            book.number(step)
        else:
            book.notice()
    return book


def test_all_in_order_is_nothing_to_tell() -> None:
    assert ledger(1, 2, 3).close(3) == Account(received=3)


def test_a_skipped_number_is_an_unreported_loss() -> None:
    assert ledger(1, 4).close(4) == Account(received=2, lost_untold=2, first_untold=2)


def test_a_notice_with_the_jump_or_later_tells_of_it() -> None:
    assert ledger(1, "gap", 4).close(4) == Account(received=2, lost_told=2, notices=1)
    assert ledger(1, 4, 5, "gap").close(5) == Account(received=3, lost_told=2, notices=1)


def test_a_notice_before_another_number_tells_of_nothing_behind_it() -> None:
    assert ledger(1, "gap", 2, 4).close(4) == Account(received=3, lost_untold=1, notices=1, first_untold=3)


def test_a_lost_tail_is_lost() -> None:
    assert ledger(1).close(3) == Account(received=1, lost_untold=2, first_untold=2)
    assert ledger(1, "gap").close(3) == Account(received=1, lost_told=2, notices=1)


def test_one_that_comes_late_is_out_of_order_and_not_lost() -> None:
    assert ledger(1, 3, 2).close(3) == Account(received=3, reordered=1)


def test_one_that_comes_twice_is_doubled() -> None:
    assert ledger(1, 2, 2, 1).close(2) == Account(received=4, duplicated=2)


def test_a_number_that_may_not_have_been_published_is_no_loss() -> None:
    assert ledger(1, 3).close(3, unsure={2}) == Account(received=2)


def test_each_phase_has_its_own_account() -> None:
    book = ledger(1, 3)
    book.close(3)
    book.number(4)
    assert book.close(4) == Account(received=1)


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), max_size=40), st.integers(0, 30))
def test_each_number_is_received_or_lost(numbers: list[int], more: int) -> None:
    book = ledger(*numbers)
    top = max(numbers, default=0) + more
    account = book.close(top)
    assert account.lost_untold == top - len(set(numbers))
    assert account.duplicated == len(numbers) - len(set(numbers))
