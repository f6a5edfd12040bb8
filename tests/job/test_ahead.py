"""Work ahead in threads: the order of the items, no more under way than said, errors in place."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgen.ahead import PER_THREAD, in_order


@settings(max_examples=30, deadline=None)
@given(
    delays=st.lists(st.integers(0, 3), max_size=30),
    threads=st.integers(1, 5),
    work_fails=st.none() | st.integers(0, 29),
    items_fail=st.none() | st.integers(0, 29),
)
def test_results_come_in_order_up_to_the_first_error(
    delays: list[int], threads: int, work_fails: int | None, items_fail: int | None
) -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(len(delays)):
            if number == items_fail:
                raise KeyError(number)
            taken += 1
            yield number

    def work(number: int) -> int:
        time.sleep(delays[number] * 1e-3)
        if number == work_fails:
            raise ValueError(number)
        return -number

    ends = [n for n in (work_fails, items_fail) if n is not None and n < len(delays)]
    got: list[int] = []
    failed: Exception | None = None
    try:
        for item, result in in_order(items(), work, threads):
            assert (item, result) == (len(got), -len(got))
            got.append(item)
            assert taken <= len(got) + PER_THREAD * threads
    except (KeyError, ValueError) as error:
        failed = error
    if ends:
        # The one that the reader does not give cannot fail in the work.
        assert type(failed) is (KeyError if items_fail == min(ends) else ValueError)
        assert failed.args == (min(ends),)
    else:
        assert failed is None
    assert len(got) == min([*ends, len(delays)])


def test_who_stops_asking_leaves_no_work_to_begin() -> None:
    begun: list[int] = []
    may_end = threading.Event()

    def work(number: int) -> int:
        begun.append(number)
        if number:
            may_end.wait(30)
        return number

    results = in_order(range(1000), work, 2)
    assert next(results) == (0, 0)
    results.close()
    may_end.set()
    for thread in threading.enumerate():
        if thread.name.startswith("ahead"):
            thread.join(30)
    assert len(begun) <= 1 + 2


@pytest.mark.parametrize("threads", [0, 1])
def test_one_thread_is_the_callers(threads: int) -> None:
    here = threading.get_ident()
    for _, ident in in_order(range(3), lambda _: threading.get_ident(), threads):
        assert ident == here
