"""Sharing is invisible: groups on the shipped model against independent runs of their members."""

import numpy as np
import pytest

from envs.spec import all_knobs
from rollout.build import build_worker
from rollout.group_sharing import MolmoEGroupSession
from rollout.worker_config import WorkerConfig


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "numbers", [range(60), pytest.param(range(60, 200), marks=pytest.mark.soak)], ids=["60", "140"]
)
def test_random_groups_equal_independent_runs(numbers):
    worker = build_worker(WorkerConfig())
    rng, every = np.random.default_rng(numbers[0]), list(all_knobs())
    for number in numbers:
        sample = worker.tasks.sample("validation", number)
        members = [every[i] for i in rng.integers(0, len(every), int(rng.integers(2, 9)))]
        token = rng.normal(size=worker.executor.d_model).astype(np.float32)

        def run(knobs, sample=sample, token=token):
            group = MolmoEGroupSession(worker.executor, sample)
            tokens = group.begin([(k.tier, k.position) for k in knobs], token)
            done = group.finish([(k.top_k, k.num_blocks) for k in knobs])
            return tokens, [execution.answer for execution in done]

        shared_tokens, shared_answers = run(members)
        for place, knobs in enumerate(members):
            (alone_token,), (alone_answer,) = run([knobs])
            assert shared_answers[place] == alone_answer, (sample.id, str(knobs))
            assert np.array_equal(shared_tokens[place], alone_token), (sample.id, str(knobs))
