"""Reads and writes profile records in JSON.

The schema is that of the study that first measured these knobs on MolmoE-1B-0924:

    results_dir/<dataset>/<anything>.json      {"per_sample_results": [{...}, ...], ...}

One file holds the records of one configuration. The reader holds one file in memory at a time, and
counts the records it skips and why; it repairs nothing.

A record's own `T_decode_per_token` can differ from T_LLM_decode / output_tokens. In profiles
written here it always does: the first token comes from the prefill, so n tokens take n - 1 decode
steps, and `T_decode_per_token` is the time of one step. Both are read, and `DecodeReading` chooses.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from envs.spec import Execution, Sample, Tier
from rollout.profiling.one_runtime import OneRuntime

RECORDS_KEY = "per_sample_results"
VISION_STAGES = ("copy", "vision_global", "vision_crops", "projector")
DISAGREEMENT = 0.01
"""Relative difference beyond which the two decode readings disagree; times are often rounded."""

_VISION_TOKENS, _VISION_TIME = "actual_vision_tokens", "T_vision_total"
"""Zero in records of text alone."""

_COUNTS = (
    "actual_text_tokens",
    "output_tokens",
    "top_k",
    "num_active_blocks",
)
_TIMES = ("T_LLM_prefill", "T_LLM_decode")
_DECODE = "T_decode_per_token"


class DecodeReading(StrEnum):
    """Which decode time per token to use.

    RECORDED is the record's own T_decode_per_token; if a record lacks it, it is computed, and the
    report counts how often. COMPUTED is always T_LLM_decode / output_tokens.
    """

    RECORDED = "recorded"
    COMPUTED = "computed"


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyRecord:
    """One measured answer, checked: counts and times are positive and finite.

    Attributes:
        dataset: name of the file's folder.
        sample_key: identifies the sample: the `image_id` if the record has one (across data sets),
            or else data set and `sample_id`, or else data set and index within the file.
        vision_tokens: number of vision tokens of the prompt, 0 for text alone.
        text_tokens: number of text tokens of the prompt.
        tier: image tier.
        top_k: experts per token.
        num_active_blocks: number of blocks that run.
        output_tokens: number of tokens of the answer.
        prefill_ms: T_vision_total + T_LLM_prefill.
        decode_ms: T_LLM_decode.
        recorded_decode_per_token_ms: the record's own T_decode_per_token, None if it has none.
        insertion_position: None if the record has none.
        score: score of the answer, None if the record has none.
    """

    dataset: str
    sample_key: str
    vision_tokens: int
    text_tokens: int
    tier: Tier
    top_k: int
    num_active_blocks: int
    output_tokens: int
    prefill_ms: float
    decode_ms: float
    recorded_decode_per_token_ms: float | None
    insertion_position: int | None
    score: float | None

    @property
    def computed_decode_per_token_ms(self) -> float:
        """T_LLM_decode / output_tokens."""
        return self.decode_ms / self.output_tokens

    def decode_per_token_ms(self, reading: DecodeReading) -> float:
        """The decode time per token in the chosen reading."""
        if reading is DecodeReading.RECORDED and self.recorded_decode_per_token_ms is not None:
            return self.recorded_decode_per_token_ms
        return self.computed_decode_per_token_ms


@dataclass(slots=True, kw_only=True)
class ReadReport:
    """Counts of a reader; complete once the reader is exhausted.

    Attributes:
        num_files: number of files read completely.
        num_records: number of records returned.
        omitted_records: number of skipped records by reason.
        omitted_files: skipped files (data set / name) with the reason.
        num_decode_compared: number of records with a T_decode_per_token.
        num_decode_disagree: number of these that differ from T_LLM_decode / output_tokens by more
            than DISAGREEMENT.
        num_decode_absent: number of records without T_decode_per_token.
    """

    num_files: int = 0
    num_records: int = 0
    omitted_records: Counter[str] = field(default_factory=Counter)
    omitted_files: dict[str, str] = field(default_factory=dict)
    num_decode_compared: int = 0
    num_decode_disagree: int = 0
    num_decode_absent: int = 0

    def count(self, record: LatencyRecord) -> None:
        """Counts a returned record."""
        self.num_records += 1
        recorded_ms = record.recorded_decode_per_token_ms
        if recorded_ms is None:
            self.num_decode_absent += 1
            return
        self.num_decode_compared += 1
        computed_ms = record.computed_decode_per_token_ms
        self.num_decode_disagree += abs(recorded_ms - computed_ms) > DISAGREEMENT * computed_ms

    def to_json(self) -> dict[str, Any]:
        """The counts as plain values, in a stable order."""
        fields = asdict(self)
        fields["omitted_records"] = dict(sorted(self.omitted_records.items()))
        return fields

    def __str__(self) -> str:
        omitted = self.omitted_records.total()
        lines = [
            f"{self.num_records} records of {self.num_files} files; left out: {omitted} records, "
            f"{len(self.omitted_files)} files",
            *(f"  {count} records: {why}" for why, count in sorted(self.omitted_records.items())),
            *(f"  {name}: {why}" for name, why in self.omitted_files.items()),
            f"T_decode_per_token: {self.num_decode_disagree} of {self.num_decode_compared} differ "
            f"from T_LLM_decode / output_tokens by more than {DISAGREEMENT:.0%}; "
            f"{self.num_decode_absent} records state none",
        ]
        return "\n".join(lines)


class ProfileReader:
    """Iterates over the records of one or more data sets, in the order of their names."""

    def __init__(self, results_dir: Path, dataset_names: Sequence[str] | None = None) -> None:
        """Finds the files; without names, every folder that holds JSON files is a data set.

        Raises:
            ValueError: a folder is absent, or holds no JSON file.
        """
        if not results_dir.is_dir():
            raise ValueError(
                f"{results_dir} is not a folder: name one with a folder for each data set"
            )
        files = {
            folder.name: sorted(folder.glob("*.json"))
            for folder in sorted(results_dir.iterdir())
            if folder.is_dir()
        }
        found = [name for name, paths in files.items() if paths]
        names = found if dataset_names is None else list(dict.fromkeys(dataset_names))
        absent = [name for name in names if name not in found]
        if absent or not names:
            what = f"no {', '.join(absent)}" if absent else "no <dataset>/*.json"
            raise ValueError(f"{results_dir} holds {what}; data sets there: {found or 'none'}")
        self.dataset_names = names
        self.report, self._one_runtime = ReadReport(), OneRuntime()
        self._files = {name: files[name] for name in names}

    def __iter__(self) -> Iterator[LatencyRecord]:
        """Reads all files, and counts in a new `report`."""
        self.report = ReadReport()
        for dataset, paths in self._files.items():
            for path in paths:
                yield from self._read(dataset, path)

    def _read(self, dataset: str, path: Path) -> Iterator[LatencyRecord]:
        try:
            content = _load(path)
        except ValueError as error:
            self.report.omitted_files[f"{dataset}/{path.name}"] = str(error)
            return
        self._one_runtime.check(content, f"{dataset}/{path.name}")
        self.report.num_files += 1
        for index, item in enumerate(content[RECORDS_KEY]):
            try:
                record = parse_record(item, dataset, index)
            except ValueError as error:
                self.report.omitted_records[str(error)] += 1
                continue
            self.report.count(record)
            yield record


def parse_record(item: Any, dataset: str, index: int) -> LatencyRecord:
    """Checks one JSON record; raises ValueError with the reason if it must be skipped."""
    if not isinstance(item, dict):
        raise ValueError("not an object")
    counts = {name: _whole(name, _positive(name, item.get(name))) for name in _COUNTS}
    times = {name: _positive(name, item.get(name)) for name in _TIMES}
    vision_tokens = _whole(_VISION_TOKENS, _not_negative(_VISION_TOKENS, item.get(_VISION_TOKENS)))
    check_vision = _positive if vision_tokens else _not_negative
    vision_ms = check_vision(_VISION_TIME, item.get(_VISION_TIME))
    recorded = item.get(_DECODE)
    position, score = item.get("insertion_position"), item.get("score")
    return LatencyRecord(
        dataset=dataset,
        sample_key=_sample_key(item, dataset, index),
        vision_tokens=vision_tokens,
        text_tokens=counts["actual_text_tokens"],
        tier=_tier(item.get("tier")),
        top_k=counts["top_k"],
        num_active_blocks=counts["num_active_blocks"],
        output_tokens=counts["output_tokens"],
        prefill_ms=vision_ms + times["T_LLM_prefill"],
        decode_ms=times["T_LLM_decode"],
        recorded_decode_per_token_ms=None if recorded is None else _positive(_DECODE, recorded),
        insertion_position=None
        if position is None
        else _whole("insertion_position", _positive("insertion_position", position)),
        score=None if score is None else _number("score", score),
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"not whole JSON ({error})") from None
    if not isinstance(content, dict) or not isinstance(content.get(RECORDS_KEY), list):
        raise ValueError(f"no list {RECORDS_KEY}")
    return content


def _sample_key(item: Mapping[str, Any], dataset: str, index: int) -> str:
    if item.get("image_id") is not None:
        return f"image {item['image_id']}"
    if item.get("sample_id") is not None:
        return f"{dataset} sample {item['sample_id']}"
    return f"{dataset} index {index}"


def _tier(value: Any) -> Tier:
    if isinstance(value, str | int) and not isinstance(value, bool):
        try:
            return Tier.parse(value)
        except ValueError:
            raise ValueError(f"unknown tier {value!r}") from None
    raise ValueError("tier is missing" if value is None else "tier is neither a name nor an index")


def _number(name: str, value: Any) -> float:
    if value is None:
        raise ValueError(f"{name} is missing")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} is not finite")
    return number


def _positive(name: str, value: Any) -> float:
    number = _number(name, value)
    if number <= 0:
        raise ValueError(f"{name} is {'zero' if number == 0 else 'negative'}")
    return number


def _not_negative(name: str, value: Any) -> float:
    number = _number(name, value)
    if number < 0:
        raise ValueError(f"{name} is negative")
    return number


def _whole(name: str, number: float) -> int:
    if number != int(number):
        raise ValueError(f"{name} is not a whole number")
    return int(number)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRecord:
    """One measured answer to be written; `to_json` has the names in the JSON.

    Attributes:
        sample_id: id of the sample, unique within the task.
        task: name of the data set.
        image_id: id of the image if several samples share one, or else None.
        execution: the configuration, the answer and the time of each stage.
        score: score of the answer.
        clock: the clock that the times are from.
        calibrated_ms: latency in calibrated ms; the device's own where nothing is calibrated.
    """

    sample_id: str
    task: str
    image_id: str | None = None
    execution: Execution
    score: float
    clock: str
    calibrated_ms: float

    @classmethod
    def of(
        cls, sample: Sample, execution: Execution, score: float, *, clock: str, calibrated_ms: float
    ) -> ProfileRecord:
        """The record of a sample; its `image_id` is taken from the metadata, if present."""
        image_id = sample.metadata.get("image_id")
        return cls(
            sample_id=sample.id,
            task=sample.task,
            image_id=None if image_id is None else str(image_id),
            execution=execution,
            score=score,
            clock=clock,
            calibrated_ms=calibrated_ms,
        )

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values, with some fields of our own.

        T_LLM_decode is the time of the n - 1 decode steps of n output tokens, T_decode_per_token
        the time of one step. An answer of one token has no step: its T_LLM_decode is 0 and
        T_decode_per_token is absent, and readers skip it.
        """
        execution = self.execution
        stages_ms = dict(execution.stages_ms)
        vision_ms = sum(stages_ms.get(name, 0.0) for name in VISION_STAGES)
        num_steps = execution.num_output_tokens - 1
        decode_ms = _sum_ms(stages_ms, ("decode_",)) if num_steps else 0.0
        fields = {
            "sample_id": self.sample_id,
            "task": self.task,
            "actual_vision_tokens": execution.num_vision_tokens,
            "actual_text_tokens": execution.num_text_tokens,
            "output_tokens": execution.num_output_tokens,
            "tier": execution.knobs.tier.name.lower(),
            "insertion_position": execution.knobs.position,
            "top_k": execution.knobs.top_k,
            "num_active_blocks": execution.knobs.num_blocks,
            "T_vision_total": vision_ms,
            "T_LLM_prefill": _sum_ms(stages_ms, ("embed", "block_", "head")),
            "T_LLM_decode": decode_ms,
            "num_decode_steps": num_steps,
            "score": self.score,
            "answer": execution.answer,
            "latency_ms": execution.latency_ms,
            "calibrated_ms": self.calibrated_ms,
            "wall_ms": execution.wall_ms,
            "clock": self.clock,
            "stages_ms": stages_ms,
        }
        if num_steps:
            fields["T_decode_per_token"] = decode_ms / num_steps
        if self.image_id is not None:
            fields["image_id"] = self.image_id
        return fields


def _sum_ms(stages_ms: Mapping[str, float], prefixes: tuple[str, ...]) -> float:
    return sum(elapsed_ms for name, elapsed_ms in stages_ms.items() if name.startswith(prefixes))


def write_items(path: Path, items: Sequence[Mapping[str, Any]], device: Mapping[str, Any]) -> None:
    """Writes the file of one configuration atomically; readers see the old or the new one.

    Args:
        path: the file.
        items: what `ProfileRecord.to_json` returns.
        device: `DeviceFacts` as plain JSON values.

    Raises:
        ValueError: there is no record, or a value is not finite.
    """
    if not items:
        raise ValueError(f"no records for {path}: measure at least one sample")
    content = {RECORDS_KEY: items, "device": device}
    text = json.dumps(content, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
