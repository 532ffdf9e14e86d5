from dataclasses import replace

import pytest

from envs.spec import CHEAPEST_KNOBS, FULL_KNOBS
from launch.analysis.knob_table import KnobTable


def test_a_table_takes_the_largest_budget_that_is_not_above():
    table = KnobTable(
        budgets_ms=(20.0, 40.0),
        knobs=((CHEAPEST_KNOBS, FULL_KNOBS),),
        by_task={"easy": ((CHEAPEST_KNOBS, CHEAPEST_KNOBS),)},
    )
    chosen = [table.at(budget_ms) for budget_ms in (1, 20, 39.9, 40, 1e6)]
    assert chosen == [CHEAPEST_KNOBS, CHEAPEST_KNOBS, CHEAPEST_KNOBS, FULL_KNOBS, FULL_KNOBS]
    assert table.at(40, "easy") == CHEAPEST_KNOBS
    assert table.at(40, "unknown") == FULL_KNOBS
    assert KnobTable.fixed(FULL_KNOBS).at(0.1, "easy") == FULL_KNOBS


def test_rows_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"1 prices and 2 budgets has rows of \[1\] config"):
        KnobTable(budgets_ms=(1.0, 2.0), knobs=((FULL_KNOBS,),))


FREE_TABLE = KnobTable(
    budgets_ms=(20.0, 40.0),
    knobs=((CHEAPEST_KNOBS, FULL_KNOBS),),
    by_task={"hard": ((FULL_KNOBS, FULL_KNOBS),)},
)
MIDDLE = replace(FULL_KNOBS, top_k=6)
PRICED_TABLE = KnobTable(
    budgets_ms=(20.0, 40.0),
    knobs=((CHEAPEST_KNOBS, MIDDLE),),
    by_task={"hard": ((MIDDLE, MIDDLE),)},
)


def test_a_table_takes_the_largest_price_that_is_not_above():
    table = KnobTable.by_price({0.5: PRICED_TABLE, 0.0: FREE_TABLE})
    assert table.prices == (0.0, 0.5)
    for price, single in ((0.0, FREE_TABLE), (0.49, FREE_TABLE), (0.5, PRICED_TABLE)):
        for budget_ms in (1, 20, 39, 40, 99):
            for task in ("", "hard", "unknown"):
                assert table.at(budget_ms, task, price) == single.at(budget_ms, task)
    assert table.at(40, price=99.0) == MIDDLE
    assert table.at(40) == FULL_KNOBS, "the price is zero by default"
    assert table.configurations() == tuple(sorted({CHEAPEST_KNOBS, MIDDLE, FULL_KNOBS}))


def test_below_the_first_price_it_is_that_of_the_first():
    table = KnobTable.by_price({0.5: PRICED_TABLE, 1.0: FREE_TABLE})
    assert table.at(40, price=0.1) == MIDDLE


def test_a_fixed_configuration_has_no_price():
    table = KnobTable.fixed(MIDDLE)
    assert {table.at(ms, task, p) for ms in (1, 99) for task in ("", "x") for p in (0, 9)} == {
        MIDDLE
    }
    assert table.configurations() == (MIDDLE,)


def test_a_row_for_each_price_is_needed():
    with pytest.raises(ValueError, match=r"2 prices and 2 budgets has rows of \[2\] config"):
        replace(FREE_TABLE, prices=(0.0, 0.5))
    with pytest.raises(ValueError, match="0 prices"):
        replace(FREE_TABLE, prices=(), knobs=(), by_task={})
