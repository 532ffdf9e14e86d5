import pytest

from envs.spec import CHEAPEST_KNOBS, FULL_KNOBS
from launch.analysis.knob_table import KnobTable


def test_a_table_takes_the_largest_budget_that_is_not_above():
    table = KnobTable(
        budgets_ms=(20.0, 40.0),
        knobs=(CHEAPEST_KNOBS, FULL_KNOBS),
        by_task={"easy": (CHEAPEST_KNOBS, CHEAPEST_KNOBS)},
    )
    chosen = [table.at(budget_ms) for budget_ms in (1, 20, 39.9, 40, 1e6)]
    assert chosen == [CHEAPEST_KNOBS, CHEAPEST_KNOBS, CHEAPEST_KNOBS, FULL_KNOBS, FULL_KNOBS]
    assert table.at(40, "easy") == CHEAPEST_KNOBS
    assert table.at(40, "unknown") == FULL_KNOBS
    assert KnobTable.fixed(FULL_KNOBS).at(0.1, "easy") == FULL_KNOBS


def test_rows_of_another_length_are_refused():
    with pytest.raises(ValueError, match="2 budgets has 1 configurations"):
        KnobTable(budgets_ms=(1.0, 2.0), knobs=(FULL_KNOBS,))
