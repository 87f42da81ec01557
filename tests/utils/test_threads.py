"""Work in threads: order, bounds, errors."""

import itertools
import time

import pytest

from alr_fast.utils.threads import map_ahead


@pytest.mark.parametrize("ahead", [0, 1, 3, 100])
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_results_come_in_the_order_of_the_items(workers, ahead):
    def slow_start(item):
        time.sleep(0.01 if item == 0 else 0)
        return item

    found = list(map_ahead(slow_start, range(20), workers=workers, ahead=ahead))
    assert found == list(range(20))


def test_only_a_few_items_are_taken_ahead_of_the_caller():
    taken = []
    results = map_ahead(lambda item: item, map(taken.append, itertools.count()), workers=2, ahead=3)
    assert taken == []
    next(results)
    assert taken == [0, 1, 2, 3]
    next(results)
    assert taken == [0, 1, 2, 3, 4]
    results.close()


def test_an_error_reaches_the_caller_in_its_turn():
    results = map_ahead(lambda item: 1 // item, [2, 1, 0, 1], workers=2, ahead=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
