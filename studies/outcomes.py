"""Scores of all 225 configurations of the small model on many samples, without latencies.

    python -m studies.outcomes OUT --split train --num-samples 1024

About twice as fast as profiling: samples run in batches, teacher-forced, and configurations share
the blocks that they have in common. An answer counts if greedy decoding gives exactly this answer,
so the partial credit of `reading` is missing. One .npz for each 128 samples; a repeated command
skips those that exist, and several processes share the work by --part.

Shapes: S samples of a batch, T tokens, D d_model, C configurations.
"""

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from benchmarks.options import needed, read_options
from envs.spec import POSITIONS, TIERS, TOP_KS, Sample, all_knobs
from envs.tasks import Question, build_tasks
from launch.cluster.console import one_clear_error
from launch.pretraining import forward as fw
from launch.pretraining.batches import IGNORE, Encoder, QuestionBatch, assemble
from launch.pretraining.steps import Trainee
from rollout.block_skipping import BlockImportance
from rollout.build import EMBEDDED, WorkerConfig, build_executor
from rollout.molmoe.decoder import Block
from rollout.molmoe.moe import looped_experts, route

ROWS = 32
FILE_SAMPLES = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomesConfig:
    """One set of outcomes.

    Attributes:
        quick: one sample, into a temporary folder.
        out: folder for the files.
        split: split of the samples.
        num_samples: number of samples, from the first of the split on.
        part: this process' part of the files, and the number of parts.
    """

    quick: bool = False
    out: Annotated[Path | None, tyro.conf.Positional] = None
    split: str = "train"
    num_samples: int = 1024
    part: tuple[int, int] = (0, 1)


QUICK = OutcomesConfig(quick=True, num_samples=1)
KNOBS = list(all_knobs())


class Scorer:
    """The embedded model with the batched forward pass of its pretraining."""

    def __init__(self) -> None:
        self.model = build_executor(WorkerConfig(device="cpu", dtype="float32")).model
        self.trainee = Trainee(self.model, torch.float32)
        self.importance = BlockImportance.of_model(self.model.config, EMBEDDED)
        self.encoder = Encoder()

    def scores(self, samples: Sequence[Sample]) -> np.ndarray:
        """1 or 0 for every sample and configuration, [S, C]."""
        encoded = [
            self.encoder.encode(s.task, Question(prompt=s.prompt, answers=s.answers))
            for s in samples
        ]
        images = torch.from_numpy(np.stack([np.asarray(s.image) for s in samples]))
        length = max(len(question.ids) for question in encoded)
        batch = assemble(TIERS[0], [[(0, q)] for q in encoded], length, images=images)
        scores = np.full((len(samples), len(KNOBS)), np.nan, np.float32)
        for tier in TIERS:
            self._score_tier(replace(batch, tier=tier), scores)
        return scores

    def _score_tier(self, batch: QuestionBatch, scores: np.ndarray) -> None:
        x, layout = self._inputs(batch)
        full = self.model.config.top_k
        for block in range(max(POSITIONS) + 1):
            if block in POSITIONS:
                for top_k in TOP_KS:
                    leaves = {
                        column: self.importance.kept(block, knobs.num_blocks)[block:]
                        for column, knobs in enumerate(KNOBS)
                        if (knobs.tier, knobs.position, knobs.top_k) == (batch.tier, block, top_k)
                    }
                    self._descend(x, layout, top_k, leaves, batch, scores)
            x = self._block(block, x, layout, full)

    def _descend(
        self,
        x: Tensor,
        layout: fw.Layout,
        top_k: int,
        leaves: Mapping[int, Sequence[int]],
        batch: QuestionBatch,
        scores: np.ndarray,
    ) -> None:
        """Runs the remaining blocks of each column; common ones run once."""
        done = [column for column, blocks in leaves.items() if not blocks]
        if done:
            scores[:, done] = self._right(x, batch)[:, None]
        for first in sorted({blocks[0] for blocks in leaves.values() if blocks}):
            rest = {c: blocks[1:] for c, blocks in leaves.items() if blocks and blocks[0] == first}
            self._descend(self._block(first, x, layout, top_k), layout, top_k, rest, batch, scores)

    def _inputs(self, batch: QuestionBatch) -> tuple[Tensor, fw.Layout]:
        prefix = self.trainee.prefix_ids(batch.tier)
        start, rows = len(prefix), len(batch.tokens)
        tokens = torch.cat([prefix.expand(rows, -1), batch.tokens], 1)
        places = torch.arange(start).expand(rows, -1)
        config = self.model.config
        layout = fw.make_layout(
            F.pad(batch.segments, (start, 0)),
            torch.cat([places, batch.offsets + start], 1),
            torch.zeros_like(tokens, dtype=torch.bool),
            (config.head_dim, config.rope_theta),
            torch.float32,
        )
        tiling = self.trainee.layouts[batch.tier]
        return fw.embed(self.model, tokens, self.trainee.see(batch), tiling), layout

    def _block(self, index: int, x: Tensor, layout: fw.Layout, top_k: int) -> Tensor:
        block = cast(Block, self.model.blocks[index])
        x = x + fw.attend(block.attn, x, layout)[0]
        mlp = block.mlp
        rows = mlp.ff_norm(x).flatten(0, 1)
        weights, experts = route(mlp.gate(rows), top_k)
        return x + looped_experts(rows, weights, experts, mlp.gate_up, mlp.down).view_as(x)

    def _right(self, x: Tensor, batch: QuestionBatch) -> np.ndarray:
        asked = batch.targets != IGNORE
        answers = x[:, -batch.tokens.shape[1] :][asked]
        logits = fw.answer_logits(self.model, answers, torch.float32)
        wrong = torch.zeros_like(asked)
        wrong[asked] = logits.argmax(-1) != batch.targets[asked]
        return (~wrong.any(1)).numpy()


@torch.no_grad()
def main() -> int:
    """Scores the samples that no file holds yet."""
    options = read_options(QUICK, __doc__)
    torch.set_num_threads(1)
    if not options.quick:
        score_all(options, needed(options.out, "OUT, a folder for the outcomes,"))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        score_all(options, options.out or Path(folder))
    return 0


def score_all(options: OutcomesConfig, out: Path) -> None:
    """Writes the files of one part that are absent."""
    out.mkdir(parents=True, exist_ok=True)
    scorer, tasks = Scorer(), build_tasks()
    part, parts = options.part
    for start in range(part * FILE_SAMPLES, options.num_samples, parts * FILE_SAMPLES):
        file = out / f"{start:06d}.npz"
        if file.exists():
            continue
        began = time.monotonic()
        indices = range(start, min(start + FILE_SAMPLES, options.num_samples))
        samples = [tasks.sample(options.split, index) for index in indices]
        by_length = sorted(range(len(samples)), key=lambda i: len(samples[i].prompt))
        scores = np.empty((len(samples), len(KNOBS)), np.float32)
        for first in range(0, len(samples), ROWS):
            rows = by_length[first : first + ROWS]
            scores[rows] = scorer.scores([samples[row] for row in rows])
        np.savez_compressed(file, index=np.array(indices), scores=scores.astype(np.uint8))
        print(f"{file}: mean {scores.mean():.3f}, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(one_clear_error(main))
