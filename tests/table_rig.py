"""Table worlds for tests: a synthetic profile with known latencies, and a fleet on a table."""

import zlib

import numpy as np
from scipy.stats import norm

from envs.spec import CHEAPEST_KNOBS, all_knobs
from envs.tasks import build_tasks
from rollout.profiling.profile_table import ProfileTable
from rollout.simulation.stand_in_blocks import StandInBlocks
from rollout.simulation.table_fleet import TableFleet
from rollout.simulation.table_samples import TableSamples, mean_embeddings
from rollout.worker_config import EMBEDDED

D_MODEL = 96
PROFILE = EMBEDDED / "profile.npz"

NEEDS = {
    "easy_vqa": (0.96, {"tier": 0.02, "top_k": 0.02, "num_blocks": 0.05}),
    "counting": (0.90, {"tier": 0.10, "top_k": 0.05, "num_blocks": 0.10}),
    "digits": (0.95, {"tier": 0.70, "top_k": 0.04, "num_blocks": 0.06}),
    "reading": (0.92, {"tier": 0.80, "top_k": 0.10, "num_blocks": 0.06}),
    "chain": (0.90, {"tier": 0.03, "top_k": 0.05, "num_blocks": 0.75}),
    "recall": (0.94, {"tier": 0.05, "top_k": 0.70, "num_blocks": 0.08}),
}
"""By task: accuracy of the full configuration, and the share lost by each knob at its minimum."""


def synthetic_table(num_samples: int = 600, seed: int = 0) -> ProfileTable:
    """A profile in which each task needs another knob (or none), and samples differ in difficulty.

    Latency is vision(tier) + blocks * (a + b k) with 3 % noise, half of whose variance is common
    to all configurations of a sample.
    """
    rng = np.random.default_rng(seed)
    mixture = build_tasks()
    samples = [mixture.sample("validation", index) for index in range(num_samples)]
    configurations = tuple(all_knobs())
    tier = np.array([int(k.tier) for k in configurations])
    top_k = np.array([k.top_k for k in configurations])
    blocks = np.array([k.num_blocks for k in configurations])
    position = np.array([k.position for k in configurations])
    # Blocks before the insertion position keep 8 experts.
    mean_k = (8 * position + top_k * (blocks - position)) / blocks
    lost = {"tier": 1 - tier / 2, "top_k": 2 - mean_k / 4, "num_blocks": (16 - blocks) / 4}
    scores = np.empty((num_samples, len(configurations)), np.float32)
    for row, sample in enumerate(samples):
        best, needs = NEEDS[sample.task]
        chance = best * np.prod([1 - share * lost[n] for n, share in needs.items()], axis=0)
        difficulty = 0.95 * rng.normal() + 0.3 * rng.normal(size=len(configurations))
        scores[row] = norm.ppf(chance) > difficulty
    vision = np.array([3.0, 5.0, 9.0])[tier]
    latency = vision + blocks * (0.35 + 0.05 * tier) + blocks * mean_k * 0.09
    own = rng.normal(size=(num_samples, 1))
    spread = 0.03 / 2**0.5
    noise = own + rng.normal(size=scores.shape)
    cheapest_ms = latency[configurations.index(CHEAPEST_KNOBS)] * np.exp(spread * own[:, 0])
    return ProfileTable(
        configurations=configurations,
        sample_ids=tuple(sample.id for sample in samples),
        tasks=tuple(sample.task for sample in samples),
        prompts=tuple(sample.prompt for sample in samples),
        scores=scores,
        latencies_ms=(latency * np.exp(spread * noise)).astype(np.float32),
        cheapest_ms=cheapest_ms.astype(np.float32),
    )


def profile_table() -> ProfileTable:
    """The small model's own profile if it exists, otherwise the synthetic one."""
    return ProfileTable.load(PROFILE) if PROFILE.exists() else synthetic_table()


def features(table: ProfileTable) -> np.ndarray:
    """Language features of the prompts: means of fixed random word embeddings."""
    embedding_VD = np.random.default_rng(1).normal(size=(997, D_MODEL))

    def encode(prompt: str) -> np.ndarray:
        return np.array([zlib.crc32(word.encode()) % 997 for word in prompt.split()])

    return mean_embeddings(table.prompts, encode, embedding_VD)


def fleet_of(
    table: ProfileTable, feature_SD: np.ndarray | None = None, image_SI: np.ndarray | None = None
) -> TableFleet:
    """A fleet on one table; without image features the controller does not see the image."""
    language_SD = features(table) if feature_SD is None else feature_SD
    image_SI = np.zeros((len(language_SD), 0), np.float32) if image_SI is None else image_SI
    samples = TableSamples(table=table, language_feature_SD=language_SD, image_feature_SI=image_SI)
    splits = {"train": samples, "validation": samples}
    return TableFleet(splits, StandInBlocks(samples.language_feature_SD.shape[1]))
