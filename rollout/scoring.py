"""Answers of many configurations at once, off the clock.

A score does not depend on the batch, unlike a latency: the same greedy answer can be decoded for
many (sample, configuration) pairs together. They share vision, embedded prompts and the blocks that
they have in common.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from envs.spec import Decoding, Knobs, Sample
from rollout.executor import MolmoEExecutor
from rollout.molmoe.branches import Branches, Path
from rollout.molmoe.continuation import Unfinished, continued
from rollout.prefix import Prefix

Asked = tuple[Prefix, Knobs]
"""An embedded prompt, of which no block needs to have run, and a configuration of its tier."""


class Scorer:
    """Answers many (prompt, configuration) pairs in one pass.

    Args:
        executor: the frozen model.
    """

    def __init__(self, executor: MolmoEExecutor) -> None:
        self.executor = executor
        self.branches = Branches(executor.model)

    def embedded(self, sample: Sample, actions_E4: np.ndarray) -> list[Asked]:
        """A sample's configurations, with the prompt embedded once for each tier.

        Args:
            sample: the question.
            actions_E4: choice indices.

        Raises:
            DataError: the sample is unusable; names it.
        """
        seen, prefixes, asked = self.executor.look(sample), {}, []
        for indices in actions_E4.tolist():
            knobs = Knobs.from_indices(indices)
            if knobs.tier not in prefixes:
                prefixes[knobs.tier] = self.executor.begin(sample, knobs.tier, None, seen)
            asked.append((prefixes[knobs.tier], knobs))
        return asked

    @torch.inference_mode()
    def answers(self, asked: Sequence[Asked], decoding: Decoding | None = None) -> list[str]:
        """The greedy answer of each pair, as `MolmoEExecutor.advance` gives it.

        Args:
            asked: any number of pairs; memory grows with it.
            decoding: how answers are decoded.
        """
        if not asked:
            return []
        model, limit = (
            self.executor.model,
            self.executor.limit((decoding or Decoding()).max_new_tokens),
        )
        prefixes = list({id(prefix): prefix for prefix, _ in asked}.values())
        numbers = {id(prefix): number for number, prefix in enumerate(prefixes)}
        pairs = [(numbers[id(prefix)], self.path(prefix, knobs)) for prefix, knobs in asked]
        passed = self.branches.run([prefix.hidden[0][0] for prefix in prefixes], pairs)
        ends = torch.stack([hidden_TD[-1] for hidden_TD in passed.hidden])
        answers = [[token_id] for token_id in model.logits(ends).argmax(-1).cpu().tolist()]
        eos = model.config.eos_token_id
        going = [row for row, (first,) in enumerate(answers) if first != eos]
        unfinished = [
            Unfinished(
                path=pairs[row][1],
                token_id=answers[row][0],
                max_new_tokens=limit - 1,
                keys=passed.keys[row],
                values=passed.values[row],
            )
            for row in going
        ]
        for row, tokens in zip(going, continued(model, unfinished), strict=True):
            answers[row] += tokens
        return [
            self.executor.preprocessor.decode(tokens[:-1] if tokens[-1] == eos else tokens)
            for tokens in answers
        ]

    def path(self, prefix: Prefix, knobs: Knobs) -> Path:
        """The blocks and top-k of a configuration, as the model runs them."""
        config = self.executor.model.config
        kept = set(prefix.importance.kept(knobs.position, knobs.num_blocks))
        full = [config.top_k] * knobs.position
        top_ks = full + [knobs.top_k] * (config.n_layers - knobs.position)
        return tuple(k if block in kept else 0 for block, k in enumerate(top_ks))
