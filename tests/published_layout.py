"""A random model in the published layout and geometry, narrow enough for a laptop.

Blocks, experts, top_k, crops and all image parameters are those of MolmoE-1B-0924, so that prompts
are as long and knobs mean the same; only the widths are small. The files are laid out as on the
hub: shards with an index, config.json with the published keys, no importance scores.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.random_model import NARROW
from rollout.molmoe import save_model
from tests.rollout.molmoe.tiny import random_model
from tests.rollout.rig import tokenizer

REVISION = "0123456789abcdef0123456789abcdef01234567"


def write_model(folder: Path) -> Path:
    """Writes the model and its tokenizer to a folder, which is created if needed; returns it."""
    save_model(random_model(NARROW), folder, max_shard_bytes=2**20)
    _spell_as_published(folder / "config.json")
    generation = {"_from_model_config": True, "eos_token_id": NARROW.eos_token_id}
    (folder / "generation_config.json").write_text(json.dumps({**generation, "pad_token_id": 1}))
    tokenizer().backend_tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_hub_cache(cache_root: Path, repo_id: str) -> dict[str, str]:
    """Writes the model to a hub cache, as if `repo_id` had been downloaded.

    Returns:
        Environment variables with which a process finds it there without the network.
    """
    home = cache_root / "hub" / f"models--{repo_id.replace('/', '--')}"
    write_model(home / "snapshots" / REVISION)
    (home / "refs").mkdir(parents=True, exist_ok=True)
    (home / "refs" / "main").write_text(REVISION)
    return {"HF_HOME": str(cache_root), "HF_HUB_OFFLINE": "1"}


def _spell_as_published(path: Path) -> None:
    """Rewrites config.json like the published one: a ratio for the hidden size, unused fields."""
    raw = json.loads(path.read_text())
    raw |= {
        "auto_map": {"AutoModelForCausalLM": "modeling_molmoe.MolmoForCausalLM"},
        "mlp_hidden_size": None,
        "mlp_ratio": 1,
        "moe_dropless": True,
        "vocab_size": raw["embedding_size"] - 24,
    }
    path.write_text(json.dumps(raw, indent=2))
