"""The active fields of MolmoE's config.json, checked once at loading."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envs.checks import did_you_mean
from rollout.model_name import MODEL_NAMES, check_model_name

SUPPORTED: dict[str, tuple[Any, ...]] = {
    "activation_type": ("swiglu",),
    "alibi": (False,),
    "attention_layer_norm": (True,),
    "attn_logit_softcapping": (None,),
    "block_type": ("moe",),
    "clip_qkv": (None,),
    "final_logit_softcapping": (None,),
    "image_padding_embed": ("pad_and_partial_pad",),
    "image_pooling_2d": ("attention-meanq",),
    "image_pooling_h": (2,),
    "image_pooling_w": (2,),
    "image_projector": ("mlp",),
    "include_bias": (False,),
    "layer_norm_type": ("rms",),
    "moe_interleave": (False,),
    "moe_shared_expert": (False,),
    "norm_after": (False,),
    "normalize_input_embeds": (False,),
    "qkv_bias": (False,),
    "rope": (True,),
    "rope_full_precision": (True,),
    "rope_impl": ("llama",),
    "scale_logits": (False,),
    "use_cls_feature": (False,),
    "use_position_ids": (True,),
    "weight_tying": (False,),
}
"""Values that change what is computed; a config.json with others is refused by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """The CLIP-style image encoder."""

    num_layers: int = 23
    dim: int = 1024
    num_heads: int = 16
    mlp_dim: int = 4096
    norm_eps: float = 1e-5
    patch_size: int = 14
    image_size: int = 336

    @property
    def grid(self) -> int:
        """Patches along one side of a crop."""
        return self.image_size // self.patch_size

    @property
    def patch_dim(self) -> int:
        """Values of one flattened RGB patch."""
        return self.patch_size * self.patch_size * 3


@dataclass(frozen=True, slots=True, kw_only=True)
class MolmoEConfig:
    """Everything that the computation depends on; defaults are MolmoE-1B-0924's."""

    d_model: int = 2048
    n_layers: int = 16
    n_heads: int = 16
    embedding_size: int = 50304
    additional_vocab_size: int = 128
    num_experts: int = 64
    top_k: int = 8
    expert_hidden: int = 1024
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    max_position_embeddings: int = 32768
    eos_token_id: int = 50279
    vit_layers: tuple[int, ...] = (-2, -9)
    overlap_margins: tuple[int, int] = (4, 4)
    max_crops: int = 12
    vision: VisionConfig = field(default_factory=VisionConfig)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads

    @property
    def pooled_grid(self) -> int:
        """Vision tokens along one side of a crop, after 2x2 pooling."""
        return self.vision.grid // 2

    @classmethod
    def from_dict(cls, raw: dict[str, Any], *, eos_token_id: int = 50279) -> MolmoEConfig:
        """Reads the published layout; raises ValueError naming unsupported or missing fields."""
        problems = [
            f"{key} = {raw[key]!r} (supported: {', '.join(map(repr, ok))})"
            for key, ok in SUPPORTED.items()
            if key in raw and raw[key] not in ok
        ]
        if raw.get("n_kv_heads") not in (None, raw.get("n_heads")):
            problems.append(f"n_kv_heads = {raw['n_kv_heads']!r} (supported: null or n_heads)")
        vision_raw = raw.get("vision_backbone") or {}
        if vision_raw.get("image_mlp_activations", "quick_gelu") != "quick_gelu":
            problems.append(f"image_mlp_activations = {vision_raw['image_mlp_activations']!r}")
        if problems:
            raise ValueError("unsupported MolmoE config: " + "; ".join(problems))
        try:
            return cls._read(raw, vision_raw, eos_token_id)
        except KeyError as error:
            raise ValueError(f"MolmoE config lacks the field {error}") from None

    @classmethod
    def _read(
        cls, raw: dict[str, Any], vision_raw: dict[str, Any], eos_token_id: int
    ) -> MolmoEConfig:
        hidden = raw.get("mlp_hidden_size") or raw["mlp_ratio"] * raw["d_model"]
        vision = VisionConfig(
            num_layers=vision_raw["image_num_layers"],
            dim=vision_raw["image_emb_dim"],
            num_heads=vision_raw["image_num_heads"],
            mlp_dim=vision_raw["image_mlp_dim"],
            norm_eps=vision_raw["image_norm_eps"],
            patch_size=vision_raw["image_patch_size"],
            image_size=vision_raw["image_default_input_size"][0],
        )
        config = cls(
            d_model=raw["d_model"],
            n_layers=raw["n_layers"],
            n_heads=raw["n_heads"],
            embedding_size=raw.get("embedding_size") or raw["vocab_size"],
            additional_vocab_size=raw["additional_vocab_size"],
            num_experts=raw["moe_num_experts"],
            top_k=raw["moe_top_k"],
            expert_hidden=hidden // 2,
            norm_eps=raw["layer_norm_eps"],
            rope_theta=raw["rope_theta"],
            max_position_embeddings=raw["max_position_embeddings"],
            eos_token_id=eos_token_id,
            vit_layers=tuple(raw["vit_layers"]),
            overlap_margins=(raw["overlap_margins"][0], raw["overlap_margins"][1]),
            max_crops=raw["max_crops"],
            vision=vision,
        )
        config.check(num_pos=vision_raw["image_num_pos"])
        return config

    def check(self, *, num_pos: int) -> None:
        """Raises ValueError for sizes that do not fit one another."""
        vision, problems = self.vision, []
        if self.d_model % self.n_heads or self.head_dim % 2:
            problems.append(f"d_model {self.d_model} does not split into {self.n_heads} even heads")
        if not 1 <= self.top_k <= self.num_experts:
            problems.append(f"moe_top_k {self.top_k} is not within 1..{self.num_experts} experts")
        if num_pos != vision.grid**2 + 1 or vision.grid % 2:
            problems.append(f"image_num_pos {num_pos} is not an even patch grid of {vision.grid}")
        if any(not -vision.num_layers <= layer < vision.num_layers for layer in self.vit_layers):
            problems.append(f"vit_layers {self.vit_layers} exceed {vision.num_layers} layers")
        if problems:
            raise ValueError("unsupported MolmoE config: " + "; ".join(problems))

    @classmethod
    def from_folder(cls, folder: Path) -> MolmoEConfig:
        """Reads config.json and generation_config.json; raises ValueError if they are unusable."""
        raw = read_json(folder / "config.json")
        generation = folder / "generation_config.json"
        eos = read_json(generation)["eos_token_id"] if generation.is_file() else 50279
        return cls.from_dict(raw, eos_token_id=eos)

    def to_dict(self) -> dict[str, Any]:
        """The published layout, with the fixed values spelled out."""
        vision = self.vision
        return {
            **{key: ok[0] for key, ok in SUPPORTED.items()},
            "architectures": ["MolmoForCausalLM"],
            "model_type": "molmo",
            "d_model": self.d_model,
            "n_layers": self.n_layers,
            "n_heads": self.n_heads,
            "n_kv_heads": None,
            "vocab_size": self.embedding_size,
            "embedding_size": self.embedding_size,
            "additional_vocab_size": self.additional_vocab_size,
            "moe_num_experts": self.num_experts,
            "moe_top_k": self.top_k,
            "mlp_ratio": 1,
            "mlp_hidden_size": 2 * self.expert_hidden,
            "layer_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "max_position_embeddings": self.max_position_embeddings,
            "vit_layers": list(self.vit_layers),
            "overlap_margins": list(self.overlap_margins),
            "max_crops": self.max_crops,
            "vision_backbone": {
                "image_default_input_size": [vision.image_size, vision.image_size],
                "image_emb_dim": vision.dim,
                "image_head_dim": vision.dim // vision.num_heads,
                "image_mlp_activations": "quick_gelu",
                "image_mlp_dim": vision.mlp_dim,
                "image_model_type": "openai",
                "image_norm_eps": vision.norm_eps,
                "image_num_heads": vision.num_heads,
                "image_num_key_value_heads": vision.num_heads,
                "image_num_layers": vision.num_layers,
                "image_num_pos": vision.grid**2 + 1,
                "image_patch_size": vision.patch_size,
                "image_pos_patch_size": vision.patch_size,
            },
        }


def read_json(path: Path, if_missing: str = "is this a MolmoE folder?") -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        path: of the file.
        if_missing: what the message about an absent file asks or advises.

    Raises:
        ValueError: if the file is absent or holds no JSON object; names it.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: {if_missing}") from None
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}): write or download it again"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a JSON {type(content).__name__} and not an object with names and "
            "values: write or download it again"
        )
    return content


def resolve_folder(source: str | Path) -> Path:
    """Returns a local folder: `source` itself, or the snapshot of a hub id.

    Raises:
        ValueError: if it is neither a folder nor a hub id that may be downloaded.
        OSError: if the hub does not deliver it now.
    """
    if Path(source).is_dir():
        return Path(source)
    return _from_hub(source, ["*.json", "*.safetensors"])


def downloaded_bytes(source: str) -> int:
    """Size of what the cache of this machine has of a hub id so far; 0 for a folder."""
    from huggingface_hub.constants import HF_HUB_CACHE

    blobs = Path(HF_HUB_CACHE) / f"models--{source.replace('/', '--')}" / "blobs"
    return sum(path.stat().st_size for path in blobs.glob("*")) if blobs.is_dir() else 0


def resolve_config(source: str | Path) -> MolmoEConfig:
    """The configuration of a folder or hub id; of a hub id, only two small files are fetched.

    Raises:
        ValueError: as `resolve_folder` and `MolmoEConfig.from_folder` do.
    """
    if Path(source).is_dir():
        return MolmoEConfig.from_folder(Path(source))
    return MolmoEConfig.from_folder(_from_hub(source, ["config.json", "generation_config.json"]))


def _from_hub(source: str | Path, patterns: list[str]) -> Path:
    """The snapshot of a hub id with the files of these patterns, from the cache if it has them."""
    check_model_name(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(source), allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        is_refused = isinstance(error, HFValidationError) or status in (401, 403, 404)
        # What is not refused may be delivered later: an OSError is tried again.
        raise (ValueError if is_refused else OSError)(
            f"{source} is not a local folder, and the hub did not deliver it "
            f"({type(error).__name__}): check the name and the connection"
            f"{did_you_mean(str(source), MODEL_NAMES)}"
        ) from error
