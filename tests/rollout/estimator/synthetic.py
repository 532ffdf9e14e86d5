"""A profile with a known law and known noise, in the core experiment's JSON."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DATASETS = (
    "coco_2014_vqa",
    "coco_caption",
    "doc_qa",
    "mmmu",
    "okvqa",
    "science_qa_img",
    "st_qa",
    "tally_qa",
    "text_vqa",
)
TIERS = ("low", "medium", "high")
TOP_KS = (4, 8, 12)
NUM_BLOCKS = (8, 12, 16)


@dataclass(frozen=True, kw_only=True)
class Law:
    """Milliseconds without noise. `speed` and `offset_ms` make other hardware."""

    noise: float = 0.03
    speed: float = 1.0
    offset_ms: float = 0.0

    def vision_ms(self, vision_tokens, **_):
        return 6.0 + 0.02 * vision_tokens

    def prefill_ms(self, *, vision_tokens, text_tokens, top_k, num_active_blocks, **_):
        tokens = vision_tokens + text_tokens
        llm_ms = 8.0 + tokens * num_active_blocks * (0.006 + 0.0012 * top_k)
        return (self.vision_ms(vision_tokens) + llm_ms) / self.speed + self.offset_ms

    def decode_ms(self, *, top_k, num_active_blocks, **_):
        return (1.5 + num_active_blocks * (0.5 + 0.06 * top_k)) / self.speed + 0.1 * self.offset_ms


def configurations():
    return [(tier, k, blocks) for tier in TIERS for k in TOP_KS for blocks in NUM_BLOCKS]


def samples(rng, count):
    """Text tokens, vision tokens by tier and output tokens of each sample."""
    crops = rng.integers(1, 4, (count, 3)) * np.array([1, 2, 3])
    vision = 100 + 90 * crops + rng.integers(0, 40, (count, 3))
    return rng.integers(20, 200, count), vision, rng.integers(2, 30, count)


def record(rng, law, configuration, text, vision, output, **fields):
    tier, top_k, num_blocks = configuration
    knobs = {
        "vision_tokens": vision,
        "text_tokens": text,
        "top_k": top_k,
        "num_active_blocks": num_blocks,
    }
    prefill_noise, decode_noise = np.exp(law.noise * rng.standard_normal(2))
    vision_ms = law.vision_ms(vision) / law.speed * prefill_noise
    decode_ms = law.decode_ms(**knobs) * decode_noise
    return {
        "actual_vision_tokens": int(vision),
        "actual_text_tokens": int(text),
        "output_tokens": int(output),
        "tier": tier,
        "top_k": top_k,
        "num_active_blocks": num_blocks,
        "T_vision_total": vision_ms,
        "T_LLM_prefill": law.prefill_ms(**knobs) * prefill_noise - vision_ms,
        "T_LLM_decode": decode_ms * int(output),
        "T_decode_per_token": decode_ms,
        **fields,
    }


def write_profiles(
    folder: Path, *, law: Law = Law(), datasets=DATASETS, count: int = 200, seed: int = 0
) -> Path:
    """`count` samples a data set, each in all 27 configurations; one file a configuration."""
    rng = np.random.default_rng(seed)
    for dataset in datasets:
        (folder / dataset).mkdir(parents=True)
        texts, visions, outputs = samples(rng, count)
        for configuration in configurations():
            tier = TIERS.index(configuration[0])
            records = [
                record(rng, law, configuration, texts[n], visions[n, tier], outputs[n], sample_id=n)
                for n in range(count)
            ]
            name = "{}_k{}_b{}.json".format(*configuration)
            content = {"per_sample_results": records}
            (folder / dataset / name).write_text(json.dumps(content))
    return folder


def law_predictions(law: Law, inputs_N5: np.ndarray) -> np.ndarray:
    """The law's noise-free times [N, 2]: no estimator can do better than their error."""
    vision, text, _, top_k, blocks = inputs_N5.astype(np.float64).T
    knobs = {
        "vision_tokens": vision,
        "text_tokens": text,
        "top_k": top_k,
        "num_active_blocks": blocks,
    }
    return np.stack((law.prefill_ms(**knobs), law.decode_ms(**knobs)), -1)
