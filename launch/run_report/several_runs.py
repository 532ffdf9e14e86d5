"""The sections of a report on several runs: overlaid curves, and only what differs.

Shapes: S samples that both runs of a pair have.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from launch.analysis.settings import differing
from launch.analysis.statistics import Interval
from launch.analysis.tradeoff import Curve
from launch.analysis.tradeoff_report import CONTROLLER
from launch.run_report import charts, markup, one_run
from launch.run_report.record import MissingPieceError, RunRecord, present
from launch.run_report.section import Section
from launch.run_report.svg import tenths
from launch.run_report.together import together

NOT_COMPARED = ("run_dir",)
"""Settings that differ between any two runs."""


def sections(records: Sequence[RunRecord]) -> list[Section]:
    """What a report on several runs shows, in order."""
    return [
        Section(title="Verdicts", build=lambda: verdicts(records)),
        Section(title="Runs", build=lambda: runs_table(records)),
        Section(title="Together", build=lambda: together(records)),
        Section(title="Paired differences", build=lambda: differences_table(records)),
        Section(title="Accuracy, device time and price", build=lambda: tradeoff(records)),
        Section(title="Learning", build=lambda: learning(records)),
        Section(title="What the controllers chose", build=lambda: choices(records)),
        Section(title="Stages of an answer", build=lambda: stages(records)),
        Section(title="Differences of the configurations", build=lambda: settings(records)),
        Section(title="Machines and restarts", build=lambda: machines(records)),
        Section(title="Commands", build=lambda: commands(records)),
    ]


def with_evaluation(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Runs that have an evaluation; raises MissingPieceError if none has one."""
    found = [record for record in records if record.has(record.evaluation)]
    if not found:
        present(records[0].evaluation)
    return found


def _without(records: Sequence[RunRecord], piece: str) -> str:
    """One sentence for each run that lacks a piece."""
    reasons = [(record.name, getattr(record, piece)) for record in records]
    return "".join(
        markup.paragraph(f"{name}: {missing.reason}", "missing")
        for name, missing in reasons
        if hasattr(missing, "reason")
    )


def verdicts(records: Sequence[RunRecord]) -> str:
    """Each run's verdict."""
    lines = [
        markup.paragraph(
            f"{record.name}: {one_run.verdict_words(present(record.evaluation).curves())}",
            "verdict",
        )
        for record in with_evaluation(records)
    ]
    return "".join(lines) + _without(records, "evaluation")


def runs_table(records: Sequence[RunRecord]) -> str:
    """Accuracy, device time and violations of each run."""
    rows = []
    for record in with_evaluation(records):
        evaluation = present(record.evaluation)
        ours = evaluation.curves()[CONTROLLER]
        late = "" if np.isnan(ours.violation_rate) else tenths(ours.violation_rate)
        budgets_ms = evaluation.first.budgets_ms
        rows.append(
            [
                record.name,
                f"{one_run.accuracy_words(ours)} at price {ours.prices[0]:g}",
                f"{ours.time_ms_P[0]:.1f} ms",
                late,
                f"{len(evaluation.first.scores)}",
                f"{budgets_ms.min():.0f} to {budgets_ms.max():.0f} ms",
            ]
        )
    head = ["run", "accuracy within budget", "device time", "violations", "samples", "budgets"]
    return markup.table(head, rows) + markup.paragraph(
        "Device time is at the price of the accuracy; violations count feasible episodes, mean "
        "over the prices.",
        "soft",
    )


def differences_table(records: Sequence[RunRecord]) -> str:
    """Differences of accuracy for each pair of runs that evaluated common samples."""
    rows = [
        _difference(one, other)
        for one, other in combinations(with_evaluation(records), 2)
        if _common(one, other)
    ]
    if not rows:
        raise MissingPieceError("No two runs were evaluated on the same samples.")
    head = ["runs", "samples", "at the lowest price", "mean over common prices", "device time"]
    return markup.table(head, rows) + markup.paragraph(
        "First minus second: accuracy within budget, each run within its own budgets, paired by "
        "sample, with 95 % intervals; device time in ms, mean over common prices.",
        "soft",
    )


def _common(one: RunRecord, other: RunRecord) -> list[tuple[int, int]]:
    """Rows of the samples that both have."""
    ids, others = (present(r.evaluation).first.sample_ids for r in (one, other))
    row_of = {name: row for row, name in enumerate(others)}
    return [(row, row_of[name]) for row, name in enumerate(ids) if name in row_of]


def _difference(one: RunRecord, other: RunRecord) -> list[str]:
    rows = np.array(_common(one, other))
    ours, theirs = (present(r.evaluation).curves()[CONTROLLER] for r in (one, other))
    prices = [price for price in ours.prices if price in theirs.prices]
    if not prices:
        return [f"{one.name} − {other.name}", str(len(rows)), "no common price", "", ""]
    accuracy_PS = _at(ours, prices, rows[:, 0])[0] - _at(theirs, prices, rows[:, 1])[0]
    time_ms_PS = _at(ours, prices, rows[:, 0])[1] - _at(theirs, prices, rows[:, 1])[1]
    time_ms = Interval.of(time_ms_PS.mean(0))
    return [
        f"{one.name} − {other.name}",
        str(len(rows)),
        f"{Interval.of(accuracy_PS[0]).signed()} (price {prices[0]:g})",
        Interval.of(accuracy_PS.mean(0)).signed(),
        f"{time_ms.mean:+z.1f} ± {time_ms.half_width:.1f} ms",
    ]


def _at(curve: Curve, prices: Sequence[float], rows_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies and times at some prices and samples, [P, S] each."""
    places = [curve.prices.index(price) for price in prices]
    return curve.accuracy_PS[places][:, rows_S], curve.time_ms_PS[places][:, rows_S]


def tradeoff(records: Sequence[RunRecord]) -> str:
    """The controllers' curves, and their violations by budget."""
    found = with_evaluation(records)
    curves = {record.name: present(record.evaluation).curves()[CONTROLLER] for record in found}
    rates = {record.name: charts.violation_rates(record)[CONTROLLER] for record in found}
    return (
        f'<div class="charts">{charts.tradeoff_chart(curves)}{charts.violations_chart(rates)}</div>'
        + markup.paragraph(
            "Each point of the first chart is a price of time; the dearer time is, the less of it "
            "is taken. Every point shows its figures when it is pointed at.",
            "soft",
        )
    )


def learning(records: Sequence[RunRecord]) -> str:
    """Held-out accuracy of all runs that report it."""
    found = [
        record
        for record in records
        if record.has(record.rows) and any(charts.HELD_OUT in row for row in present(record.rows))
    ]
    return charts.learning_chart(found or records) + _without(records, "rows")


def choices(records: Sequence[RunRecord]) -> str:
    """Mean choices by budget."""
    sweeps = {
        record.name: present(record.evaluation).near(record.default_price)
        for record in with_evaluation(records)
    }
    return f'<div class="charts">{"".join(charts.choice_charts(sweeps))}</div>'


def stages(records: Sequence[RunRecord]) -> str:
    """Stages of the runs whose evaluation has them."""
    found = with_evaluation(records)
    timed = [record for record in found if present(record.evaluation).has_episodes]
    return one_run.stages(timed or found)


def settings(records: Sequence[RunRecord]) -> str:
    """Only the settings whose values differ."""
    known = [record for record in records if record.has(record.state)]
    if len(known) < 2:
        raise MissingPieceError("Fewer than two runs have a checkpoint that names their settings.")
    found = differing([present(record.state)["configuration"] for record in known])
    rows = [
        [name, *map(one_run.written, values)]
        for name, values in found.items()
        if name not in NOT_COMPARED
    ]
    if not rows:
        return markup.paragraph("All settings are the same.") + _without(records, "state")
    head = ["setting", *(record.name for record in known)]
    return markup.table(head, rows) + _without(records, "state")


def machines(records: Sequence[RunRecord]) -> str:
    """Device, versions and starts of each run."""
    rows = []
    for record in records:
        if record.has(record.starts):
            last = present(record.starts)[-1]
            torch = last.packages.get("torch", "unknown")
            device = f"{last.device.get('device', 'unknown')} x {last.num_actors}"
            resumes = str(len(present(record.starts)) - 1)
            rows.append([record.name, device, torch, last.git_revision[:12], resumes])
    if not rows:
        present(records[0].starts)
    head = ["run", "device", "torch", "revision", "resumed"]
    return markup.table(head, rows) + _without(records, "starts")


def commands(records: Sequence[RunRecord]) -> str:
    """The command that began each run."""
    known = [record for record in records if record.has(record.starts)]
    if not known:
        present(records[0].starts)
    return "".join(
        markup.paragraph(f"{record.name}:") + markup.code(present(record.starts)[0].command)
        for record in known
    )
