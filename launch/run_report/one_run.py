"""The sections of a report on one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from envs.spec import HEADS, Head
from launch.analysis.greedy_sweep import STAGES, GreedySweep
from launch.analysis.settings import flat
from launch.analysis.tradeoff import Curve
from launch.analysis.tradeoff_report import CONTROLLER, Against, against, verdict
from launch.run_report import charts, examples, markup
from launch.run_report.record import Evaluation, MissingPieceError, RunRecord, present
from launch.run_report.section import Section
from launch.run_report.svg import tenths

NOTHING_LOST = "No actor was lost."


def sections(record: RunRecord) -> list[Section]:
    """What a report on one run shows, in order."""
    return [
        Section(title="Verdict", build=lambda: verdict_of(record)),
        Section(title="Against rivals", build=lambda: rivals_table(record)),
        Section(title="Accuracy, device time and price", build=lambda: tradeoff(record)),
        Section(title="Learning", build=lambda: charts.learning_chart([record])),
        Section(title="What the controller chose", build=lambda: choices(record)),
        Section(title="Six answers", build=lambda: answers(record)),
        Section(title="Stages of an answer", build=lambda: stages([record])),
        Section(title="Machine and versions", build=lambda: machine(record)),
        Section(title="Restarts", build=lambda: restarts(record)),
        Section(title="Configuration", build=lambda: configuration(record)),
        Section(title="Command", build=lambda: command(record)),
    ]


def verdict_of(record: RunRecord) -> str:
    """Two sentences: against the strongest rival, or on its own if no rival ran."""
    return markup.paragraph(verdict_words(present(record.evaluation).curves()), "verdict")


def verdict_words(curves: dict[str, Curve]) -> str:
    """The verdict, or what the controller achieved if there is no rival."""
    if len(curves) > 1:
        return verdict(curves)
    ours = curves[CONTROLLER]
    late = "" if np.isnan(ours.violation_rate) else f", and {tenths(ours.violation_rate)} are late"
    return (
        f"At price {ours.prices[0]:g} the controller's accuracy within budget is "
        f"{accuracy_words(ours)}{late}. It was compared with nothing: no profile of this model, "
        "these tasks and this kind of device was at hand."
    )


def accuracy_words(curve: Curve) -> str:
    """Accuracy at the lowest price with its interval."""
    return charts.with_interval(curve.accuracy_P[0], curve.accuracy_ci_P[0])


def rivals_table(record: RunRecord) -> str:
    """The controller and its rivals, with intervals."""
    evaluation = present(record.evaluation)
    curves = evaluation.curves()
    return comparison_table(curves) + markup.paragraph(caption(evaluation), "soft")


def comparison_table(curves: Mapping[str, Curve]) -> str:
    """A row for the controller, and one for each rival that says how they compare."""
    ours = curves[CONTROLLER]
    head = [
        "policy",
        f"accuracy at price {ours.prices[0]:g}",
        "the controller's lead there",
        "its device time at equal accuracy",
        "its lead in equal time",
        "violations",
    ]
    rows = [[CONTROLLER, accuracy_words(ours), "", "", "", _late(ours)]]
    for name, theirs in curves.items():
        if name != CONTROLLER:
            found = against(ours, theirs)
            rows.append([name, accuracy_words(theirs), *_cells(found), _late(theirs)])
    return markup.table(head, rows)


def _cells(found: Against) -> list[str]:
    return [found.lead, found.time_ratio, found.lead_in_equal_time]


def _late(curve: Curve) -> str:
    return "" if np.isnan(curve.violation_rate) else tenths(curve.violation_rate)


def caption(evaluation: Evaluation) -> str:
    """How the figures of the table were measured."""
    first = evaluation.first
    num_samples, num_budgets = first.scores.shape
    samples = f"{num_samples} test sample{'s' if num_samples > 1 else ''}"
    low_ms, high_ms = first.budgets_ms.min(), first.budgets_ms.max()
    text = (
        f"{samples}, {num_budgets} budgets from {low_ms:.0f} to {high_ms:.0f} ms, "
        f"{len(evaluation.sweeps)} prices of time. A late answer counts as wrong. Intervals are "
        "95 %, differences are paired by sample. Violations count feasible episodes only, mean "
        "over the prices."
    )
    if any(evaluation.rivals.values()):
        text += (
            " A device time below 1 is less than the rival needs for its accuracies. 'small': "
            "chosen on as many samples as could be profiled in the training's device time."
        )
    return text


def tradeoff(record: RunRecord) -> str:
    """Accuracy against device time, and violations by budget."""
    evaluation = present(record.evaluation)
    return (
        '<div class="charts">'
        + charts.tradeoff_chart(evaluation.curves(), CONTROLLER)
        + charts.violations_chart(charts.violation_rates(record))
        + "</div>"
        + markup.paragraph(
            "Numbers beside the controller's points are prices of time (0: time is free); its "
            "bars are 95 % intervals. Every point shows its figures when it is pointed at.",
            "soft",
        )
    )


def choices(record: RunRecord) -> str:
    """Per head a table of means by task and budget, shaded by size."""
    sweep = present(record.evaluation).near(record.default_price)
    tables = "".join(_choice_table(sweep, column, head) for column, head in enumerate(HEADS))
    return f'<div class="tables">{tables}</div>' + markup.paragraph(
        f"Means over the test samples of a task at price {sweep.price:g}, by budget in ms.", "soft"
    )


def _choice_table(sweep: GreedySweep, column: int, head: Head) -> str:
    amounts = np.array(head.amounts, np.float64)
    values_SK = amounts[sweep.actions[..., column]]
    span = np.ptp(amounts) or 1.0
    heads = "".join(f'<th scope="col">{ms:.0f}</th>' for ms in sweep.budgets_ms)
    rows = []
    for name in [*sorted(set(sweep.tasks)), "all"]:
        members = [name in (task, "all") for task in sweep.tasks]
        means_K = values_SK[members].mean(0)
        cells = "".join(
            f'<td style="--t:{(mean - amounts.min()) / span:.2f}">{mean:.1f}</td>'
            for mean in means_K
        )
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    return (
        f'<figure><figcaption>{escape(head.title)}</figcaption><div class="wide"><table '
        f'class="heat"><thead><tr><th scope="col">task</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></figure>"
    )


def answers(record: RunRecord) -> str:
    """Questions with their pictures, answers, choices and latencies."""
    evaluation = present(record.evaluation)
    if not evaluation.has_episodes:
        raise MissingPieceError("The evaluation was written without answers by an earlier version.")
    sweep = evaluation.near(record.default_price)
    found = examples.examples(sweep, present(record.state)["configuration"]["worker"])
    cards = "".join(examples.card(one) for one in found)
    partial = " Partly right is by the task's own metric." if _has_partial(found) else ""
    return (
        markup.paragraph(
            "The first test samples of each task in turn, at rising budgets and price "
            f"{sweep.price:g}: not selected by their results. The mark on the bar is the budget."
            + partial,
            "soft",
        )
        + f'<ul class="examples">{cards}</ul>'
    )


def _has_partial(found: Sequence[examples.Example]) -> bool:
    return any(0 < example.score < 1 for example in found)


def stages(records: Sequence[RunRecord]) -> str:
    """Mean device time of each stage, over all episodes of the evaluation."""
    columns = []
    for record in records:
        evaluation = present(record.evaluation)
        if not evaluation.has_episodes:
            raise MissingPieceError(
                f"The evaluation of {record.name} was written without stages by an earlier version."
            )
        sweeps = evaluation.sweeps.values()
        columns.append(np.mean([sweep.stages_ms.mean((0, 1)) for sweep in sweeps], axis=0))
    values_RN = np.array(columns)
    rows = [
        (name.replace("_", " "), values_RN[:, column].tolist())
        for column, name in enumerate(STAGES)
        if values_RN[:, column].any()
    ]
    if not rows:
        raise MissingPieceError("No stage was timed: the latencies are simulated.")
    return markup.bars(rows, "ms", [record.name for record in records]) + markup.paragraph(
        "Mean ms per answer on the device's clock, over all samples, budgets and prices of the "
        "evaluation; block: all decoder blocks of the prefill; decode: all tokens.",
        "soft",
    )


def machine(record: RunRecord) -> str:
    """Device facts and versions of the last start."""
    last = present(record.starts)[-1]
    device = {name.replace("_", " "): str(value) for name, value in last.device.items()}
    return markup.facts(
        {
            **device,
            "rollout actors": str(last.num_actors),
            "Python": last.python,
            **last.packages,
            "revision": last.git_revision[:12],
        }
    )


def restarts(record: RunRecord) -> str:
    """Starts of the driver, and what was lost meanwhile."""
    parts = []
    starts = present(record.starts)
    resumed = [f"after step {one.first_step} ({one.began_at} UTC)" for one in starts[1:]]
    if resumed:
        times = "once" if len(resumed) == 1 else f"{len(resumed)} times"
        parts.append(f"The run was resumed {times}: {', '.join(resumed)}.")
    else:
        parts.append("The run was started once and never resumed.")
    counts = present(record.state).get("fleet_counts", {})
    words = {
        "restarts": "actors restarted",
        "reruns": "groups run again",
        "rejected": "results rejected",
        "failed_samples": "unusable samples replaced",
    }
    lost = [f"{counts[name]} {what}" for name, what in words.items() if counts.get(name)]
    parts.append(f"{', '.join(lost)}." if lost else NOTHING_LOST)
    return "".join(map(markup.paragraph, parts))


def configuration(record: RunRecord) -> str:
    """The settings that people ask for first, and all of them."""
    state = present(record.state)
    settings = flat(state["configuration"])
    first = ("recipe", "seed", "steps", "groups_per_step", "group_size", "learner.learning_rate")
    shown = {name: written(settings[name]) for name in first if name in settings}
    shown["tasks"] = ", ".join(state["configuration"]["worker"]["tasks"])
    shown["device time of training"] = f"{float(state['device_ms']) / 1000:.0f} s"
    everything = markup.facts({name: written(value) for name, value in sorted(settings.items())})
    return (
        f"{markup.facts(shown)}<details><summary>All {len(settings)} settings</summary>"
        f"{everything}</details>"
    )


def written(value: Any) -> str:
    """A setting's value."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None or value == "" else str(value)


def command(record: RunRecord) -> str:
    """The command that began the run, and others that continued it."""
    commands = list(dict.fromkeys(one.command for one in present(record.starts)))
    again = markup.paragraph("Continued with:") if len(commands) > 1 else ""
    return markup.code(commands[0]) + again + "".join(map(markup.code, commands[1:]))
