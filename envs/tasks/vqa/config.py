"""Where data sets are found, and how questions are prompted and scored."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from envs.checks import check_within


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Sources, splits, prompts and metrics of the data sets; the embedded tasks need none of it.

    Attributes:
        sources: where a data set is, by its name: a hub id, a folder of parquet files, or a folder
            with the original distribution (JSON files and image folders). By default the hub.
        configs: hub configuration (subset) of a data set, by its name.
        splits: published split by DATA_SET/train, DATA_SET/validation or DATA_SET/test, if its name
            differs from the default. An empty name means that there is none.
        images: image folder of a data set's original distribution, by its name, if it is not next
            to the JSON files.
        own: your own data sets, by a name of your choice: a folder of pictures with a CSV or JSON
            lines file per split (docs/your_model_and_data.md).
        styles: style of your own data sets' prompts, by name; by default `vqa2`.
        metrics: metric of your own data sets, by name: `exact_match` (default), `anls`, or `vqa`,
            which counts how many of several answers agree.
        cache: folder in which annotation files are kept as Arrow files after they were first read;
            by default next to the files of the `datasets` library.
        vqa_score: whose VQA soft accuracy: `molmo` counts min(matches / 3, 1); `vqa_v2` averages
            that over leaving each reference out, and normalises only where references differ;
            `text_vqa` averages and always normalises.
        mmmu_answer: `molmo` gives MMMU's parser the most frequent line of an output, `mmmu` all of
            it, as MMMU's own evaluation does.
        hint_as_published: repeats a ScienceQA hint in the place of the question, as the published
            model was tuned and evaluated; by default the question follows its hint.
        seven_options: cuts the options of a question after the seventh, as the published model's
            code does; by default all have a letter.
        validation_share: share of the training pictures that are kept for validation, where the
            data set has no other split for it.
        held_out_st_qa: number of ST-VQA questions that are kept for the test split.
    """

    sources: dict[str, str] = field(default_factory=dict)
    configs: dict[str, str] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    images: dict[str, Path] = field(default_factory=dict)
    own: dict[str, Path] = field(default_factory=dict)
    styles: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, Literal["exact_match", "anls", "vqa"]] = field(default_factory=dict)
    cache: Path | None = None
    vqa_score: Literal["molmo", "vqa_v2", "text_vqa"] = "molmo"
    mmmu_answer: Literal["molmo", "mmmu"] = "molmo"
    hint_as_published: bool = False
    seven_options: bool = False
    validation_share: float = 0.05
    held_out_st_qa: int = 1024

    def __post_init__(self) -> None:
        check_within(self, "validation_share", low=0, high=0.5)
        check_within(self, "held_out_st_qa", low=1)
