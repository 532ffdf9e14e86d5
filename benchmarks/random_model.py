"""Models with random weights in the published layout, and a preprocessor without a tokenizer.

Imported where tyro and Ray may be absent; see benchmarks/gpu.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from rollout.molmoe import MolmoE, MolmoEConfig, Preprocessor, VisionConfig
from rollout.molmoe.checkpoint import INDEX, tensor_slots

SHARD_BYTES = 2 * 10**9

MINIATURE = MolmoEConfig(
    d_model=32,
    n_heads=4,
    embedding_size=96,
    additional_vocab_size=4,
    num_experts=16,
    expert_hidden=16,
    max_position_embeddings=512,
    eos_token_id=80,
    vit_layers=(-1, -3),
    overlap_margins=(2, 2),
    vision=VisionConfig(num_layers=3, dim=16, num_heads=2, mlp_dim=32, patch_size=4, image_size=32),
)
"""All sixteen blocks, with everything else below the published size: runs in milliseconds."""

NARROW = MolmoEConfig(
    d_model=64,
    n_heads=4,
    embedding_size=128,
    additional_vocab_size=16,
    expert_hidden=32,
    eos_token_id=0,
    vision=VisionConfig(dim=32, num_heads=2, mlp_dim=64),
)
"""All layers, crops and experts as published, so that prompts are as long and knobs mean the same;
only the widths are small."""


def write(folder: Path, config: MolmoEConfig, *, dtype: torch.dtype = torch.float32) -> int:
    """Writes random shards one by one, so that only one is in memory; returns the bytes.

    They are drawn on the GPU where there is one, which takes seconds instead of minutes.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device("meta"):
        slots = tensor_slots(MolmoE(config))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    generator = torch.Generator(device).manual_seed(0)
    shard: dict[str, torch.Tensor] = {}
    size = total = number = 0
    weight_map: dict[str, str] = {}

    def flush() -> None:
        nonlocal shard, size, number
        file = f"model-{number:05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
        shard, size, number = {}, 0, number + 1

    for name, slot in slots.items():
        is_gain = slot.ndim == 1 and name.endswith("weight")
        values = torch.empty(slot.shape, dtype=dtype, device=device)
        std = 0.02 if slot.ndim > 1 else 0.0
        values = values.fill_(1) if is_gain else values.normal_(0, std, generator=generator)
        shard[name] = values.cpu()
        size += values.nbytes
        total += values.nbytes
        if size > SHARD_BYTES:
            flush()
    if shard:
        flush()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return total


class BarePreprocessor(Preprocessor):
    """A preprocessor without tokenizer files: every prompt has the same 20 tokens."""

    def __init__(self, config: MolmoEConfig) -> None:
        self.config, self.bos = config, config.eos_token_id
        specials = (config.eos_token_id + offset for offset in range(1, 5))
        self.im_start, self.im_end, self.im_patch, self.im_col = specials

    def encode_prompt(self, prompt: str) -> np.ndarray:
        """The same token ids for every prompt."""
        return np.arange(20) + 10

    def decode(self, token_ids: list[int]) -> str:
        """The ids themselves, as text."""
        return " ".join(map(str, token_ids))
