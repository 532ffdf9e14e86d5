"""The published checkpoint layout: sharded safetensors, streamed into the target dtype."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rollout.molmoe.config import MolmoEConfig, read_json, resolve_folder
from rollout.molmoe.decoder import MolmoE

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
LM_HEAD_NAMES = ("lm_head.weight", "model.lm_head.weight")


def load_model(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> MolmoE:
    """Loads a folder or hub id in the published layout, shard by shard, into `dtype`.

    Raises:
        ValueError: the folder, its config or one of its shards is unusable; the message says why.
    """
    folder = resolve_folder(source)
    config = MolmoEConfig.from_folder(folder)
    with torch.device("meta"):
        model = MolmoE(config)
    model = model.to(dtype).to_empty(device=device)
    slots = tensor_slots(model)
    wanted = {name: tuple(slot.shape) for name, slot in slots.items()}
    problems: list[str] = []
    for name, tensor in read_shards(folder):
        slot_name = LM_HEAD_NAMES[0] if name in LM_HEAD_NAMES else name
        slot = slots.pop(slot_name, None)
        if slot is None:
            problems.append(f"{'twice' if slot_name in wanted else 'unknown'}: {name}")
        elif tuple(tensor.shape) != wanted[slot_name]:
            problems.append(f"shape of {name}: {tuple(tensor.shape)}, not {wanted[slot_name]}")
        else:
            with torch.no_grad():
                slot.copy_(tensor)
    problems += [f"missing: {name}" for name in slots]
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(f"{folder} does not fit its config.json: {'; '.join(problems[:8])}{more}")
    return model


def tensor_slots(model: MolmoE) -> dict[str, Tensor]:
    """Published tensor names and the views of the model's parameters that they fill."""
    slots: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        parameter = parameter.detach()
        if name.startswith("blocks.") or name.startswith(("wte.", "ln_f.")):
            name = f"model.transformer.{name}"
        elif name.startswith("vision."):
            name = "model.vision_backbone." + _published_vision_name(name)
        if name.endswith(".mlp.gate_up"):
            for expert, fused in enumerate(parameter):
                prefix = name.removesuffix("gate_up") + f"experts.{expert}"
                half = len(fused) // 2
                slots[f"{prefix}.gate_proj.weight"] = fused[:half]
                slots[f"{prefix}.up_proj.weight"] = fused[half:]
        elif name.endswith(".mlp.down"):
            for expert, weight in enumerate(parameter):
                prefix = name.removesuffix("down") + f"experts.{expert}"
                slots[f"{prefix}.down_proj.weight"] = weight
        else:
            slots[name] = parameter
    return slots


def _published_vision_name(name: str) -> str:
    name = name.removeprefix("vision.").removeprefix("encoder.")
    if name.startswith("projector."):
        return "image_" + name
    return name.replace("image_vit.resblocks.", "image_vit.transformer.resblocks.")


def check_shards(folder: Path) -> dict[str, set[str]]:
    """The names of the tensors that a folder's index promises, by shard.

    Without an index there is one shard, of which nothing is promised. A hub id, which is no local
    folder, promises nothing: its shards come when they are loaded.

    Raises:
        ValueError: a shard is missing.
    """
    if not folder.is_dir():
        return {}
    promised: dict[str, set[str]] = {}
    if (folder / INDEX).is_file():
        for name, shard in read_json(folder / INDEX)["weight_map"].items():
            promised.setdefault(shard, set()).add(name)
    else:
        promised[SINGLE] = set()
    for shard in sorted(promised):
        if not (folder / shard).is_file():
            raise ValueError(f"{folder / shard} is missing: download or copy the checkpoint again")
    return promised


def read_shards(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yields every tensor of a folder, one shard open at a time.

    Raises:
        ValueError: for a missing or truncated shard, or one without a tensor its index promises.
    """
    promised = check_shards(folder)
    for shard in sorted(promised):
        path = folder / shard
        try:
            with safe_open(path, framework="pt") as tensors:
                absent = promised[shard].difference(tensors.keys())
                if absent:
                    raise ValueError(f"{path} lacks {sorted(absent)[0]}, which its index promises")
                for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                    yield name, tensors.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(
                f"{path} is truncated or no safetensors file ({error}): download it again"
            ) from None


def save_model(model: MolmoE, folder: Path, *, max_shard_bytes: int = 5 * 10**9) -> None:
    """Writes config.json and safetensors in the published layout."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.config.to_dict(), indent=1) + "\n")
    generation = {"eos_token_id": model.config.eos_token_id}
    (folder / "generation_config.json").write_text(json.dumps(generation) + "\n")
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensor_slots(model).items():
        num_bytes = tensor.numel() * tensor.element_size()
        if shards[-1] and size + num_bytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += num_bytes
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        copies = {name: tensor.contiguous().clone() for name, tensor in shard.items()}
        save_file(copies, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
    if len(shards) > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    else:
        (folder / INDEX).unlink(missing_ok=True)
