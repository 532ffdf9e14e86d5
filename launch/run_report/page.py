"""The whole page, in one file that needs no other."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from launch.run_report import one_run, several_runs
from launch.run_report.record import Evaluation, Missing, RunRecord, read_run
from launch.run_report.section import Section

REPORT_NAME = "report.html"
MEASURED = "measured"
STYLE = Path(__file__).with_name("page.css")


def render(records: Sequence[RunRecord]) -> str:
    """The page of one run, or of several runs next to each other."""
    is_one = len(records) == 1
    sections = one_run.sections(records[0]) if is_one else several_runs.sections(records)
    title = records[0].name if is_one else ", ".join(record.name for record in records)
    begun = "" if not is_one or isinstance(records[0].starts, Missing) else _begun(records[0])
    return document(title, f"<p>{escape(begun)}</p>{_warnings(records)}", sections)


def document(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """A whole page; the subtitle is HTML."""
    content = "".join(section.html() for section in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>"
        f'<link rel="icon" href="data:,"><style>{STYLE.read_text()}</style></head><body>'
        f"<header><h1>{escape(title)}</h1>{subtitle}</header>"
        f"<main>{content}</main></body></html>\n"
    )


def _begun(record: RunRecord) -> str:
    assert not isinstance(record.starts, Missing)
    first = record.starts[0] if record.starts else None
    done = "" if isinstance(record.state, Missing) else f"{record.state['next_step']} steps done"
    return ", ".join(filter(None, [f"begun {first.began_at} UTC" if first else "", done]))


def _warnings(records: Sequence[RunRecord]) -> str:
    """Says so if latencies were not measured: no figure on the page is of a real device then."""
    sources = {
        record.name: record.evaluation.latency_source
        for record in records
        if isinstance(record.evaluation, Evaluation)
    }
    return "".join(
        f'<p class="warning">{escape(name)}: {escape(source)}</p>'
        for name, source in sources.items()
        if source != MEASURED
    )


def write_report(records: Sequence[RunRecord], path: Path) -> Path:
    """Writes the page, whole or not at all; returns its path."""
    temporary = path.with_name(f"{path.name}.partial")
    temporary.write_text(render(records), encoding="utf-8")
    os.replace(temporary, path)
    return path


def report_of_finished(run_dir: Path, name: str = "") -> Path | None:
    """Writes the page of a run that has just ended; a failure is one line in the log."""
    try:
        return write_report([read_run(run_dir, name)], run_dir / REPORT_NAME)
    except Exception as error:  # the run is whole without it
        logging.warning("the report could not be written: %s: %s", type(error).__name__, error)
        return None
