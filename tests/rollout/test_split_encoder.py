"""The vision encoder in two passes against one batch of all crops, on the shipped model."""

import pytest
import torch

from envs.spec import TIERS, Knobs
from rollout.build import build_worker
from rollout.group_sharing import MolmoEGroupSession
from rollout.molmoe import generate
from rollout.worker_config import WorkerConfig

NUM_SAMPLES = 70


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_answers_to_70_questions_equal_those_of_one_batch_at_every_tier():
    worker = build_worker(WorkerConfig())
    executor = worker.executor
    limit = executor.config.max_new_tokens
    for number in range(NUM_SAMPLES):
        sample = worker.tasks.sample("validation", number)
        group = MolmoEGroupSession(executor, sample)
        group.begin([(tier, 1) for tier in TIERS], None)
        split = group.finish([(8, 16)] * len(TIERS))
        for tier, execution in zip(TIERS, split, strict=True):
            inputs = executor.preprocessor(sample.image, sample.prompt, tier.max_crops)
            with torch.no_grad():
                whole = executor.model.embed_inputs(inputs)
                plain = generate(executor.model, inputs, max_new_tokens=limit)
            own = group.prefixes[tier].hidden[0]
            torch.testing.assert_close(own, whole, rtol=1e-4, atol=1e-5)
            assert execution is not None
            assert execution.knobs == Knobs(tier=tier, position=1, top_k=8, num_blocks=16)
            expected = executor.preprocessor.decode(plain.token_ids)
            assert execution.answer == expected, (sample.id, tier)
