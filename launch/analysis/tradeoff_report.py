"""What the comparison of curves says, as a table and in two sentences.

Curves are given by name; the controller's name is `controller`, and the others are rivals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from launch.analysis.tradeoff import (
    AccuracyLead,
    Curve,
    TimeRatio,
    accuracy_at_equal_time,
    lead_at_lowest_price,
    time_at_equal_accuracy,
)

CONTROLLER = "controller"
CAPTION = (
    "Leads and ratios are the controller's, paired by sample, with 95 % intervals. A device time "
    "below 1 is less than the rival needs for its accuracies; one below all of the controller's "
    "counts with its cheapest point, which is more accurate. 'n of m prices': the others lie "
    "outside the controller's curve. Violations: of the episodes whose budget could be met, mean "
    "over the prices. "
    "'small': chosen on as many samples as could be profiled in the training's device time."
)


def tradeoff_table(curves: Mapping[str, Curve]) -> Table:
    """One row per policy: its accuracy, and how the controller compares with it."""
    ours = curves[CONTROLLER]
    table = Table(
        "policy",
        f"accuracy at price {ours.prices[0]:g}",
        "lead there",
        "device time at equal accuracy",
        "lead in equal time",
        "violations",
        caption=CAPTION,
        caption_justify="left",
    )
    table.add_row(CONTROLLER, f"{ours.accuracy_P[0]:.3f}", "", "", "", _percent(ours))
    for name, theirs in _rivals(curves).items():
        found = against(ours, theirs)
        accuracy = f"{theirs.accuracy_P[0]:.3f}"
        table.add_row(
            name, accuracy, found.lead, found.time_ratio, found.lead_in_equal_time, _percent(theirs)
        )
    return table


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """How the controller compares with one rival, in words with 95 % intervals.

    Attributes:
        lead: its accuracy minus the rival's at the lowest price.
        time_ratio: its device time over the rival's at equal accuracy.
        lead_in_equal_time: its accuracy minus the rival's in equal device time.
    """

    lead: str
    time_ratio: str
    lead_in_equal_time: str


def against(ours: Curve, theirs: Curve) -> Against:
    """Compares two curves on the same samples; raises ValueError for different numbers of them."""
    return Against(
        lead=lead_at_lowest_price(ours, theirs).signed(),
        time_ratio=_words(time_at_equal_accuracy(ours, theirs)),
        lead_in_equal_time=_words(accuracy_at_equal_time(ours, theirs)),
    )


def verdict(curves: Mapping[str, Curve]) -> str:
    """What the controller gains or loses against its strongest rival, in two sentences.

    The strongest rival is the one that is most accurate at its lowest price.

    Raises:
        ValueError: there is no rival.
    """
    ours, rivals = curves[CONTROLLER], _rivals(curves)
    if not rivals:
        raise ValueError("there is no rival to compare the controller with: evaluate at least one")
    name = max(rivals, key=lambda name: rivals[name].accuracy_P[0])
    return " ".join(
        [
            _time_sentence(name, time_at_equal_accuracy(ours, rivals[name])),
            _accuracy_sentence(accuracy_at_equal_time(ours, rivals[name])),
        ]
    )


def _rivals(curves: Mapping[str, Curve]) -> dict[str, Curve]:
    return {name: curve for name, curve in curves.items() if name != CONTROLLER}


def _percent(curve: Curve) -> str:
    return "" if np.isnan(curve.violation_rate) else f"{curve.violation_rate:.1%}"


def _words(found: TimeRatio | AccuracyLead | None) -> str:
    if found is None:
        return "not reached"
    if found.num_reached == found.num_points:
        return str(found)
    return f"{found} at {found.num_reached} of {found.num_points} prices"


def _time_sentence(name: str, found: TimeRatio | None) -> str:
    if found is None:
        return f"The controller does not reach the accuracy of the {name} at any price."
    where = f"At the accuracy of the {name}"
    if found.num_points > 1:
        where = f"At the accuracies of the {name}{_as_far_as(found)}"
    needs = f"the controller needs {found} of its device time"
    if found.is_gain:
        return f"{where}, {needs}: a gain."
    if found.is_loss:
        return f"{where}, {needs}: a loss."
    return f"{where}, {needs}: no gain could be shown."


def _accuracy_sentence(found: AccuracyLead | None) -> str:
    if found is None:
        return "It cannot answer in as little device time as that, so accuracies are not compared."
    where = f"In the same device time{_as_far_as(found)}, its accuracy within budget"
    size = f"{abs(found.difference.mean):.3f} ± {found.difference.half_width:.3f}"
    if found.is_gain:
        return f"{where} is higher by {size}: a gain."
    if found.is_loss:
        return f"{where} is lower by {size}: a loss."
    return f"{where} differs by {found}: no gain could be shown."


def _as_far_as(found: TimeRatio | AccuracyLead) -> str:
    """Says how many points are compared, unless it is all of them."""
    if found.num_reached == found.num_points:
        return ""
    return f" ({found.num_reached} of {found.num_points} prices, as far as its curve reaches)"
