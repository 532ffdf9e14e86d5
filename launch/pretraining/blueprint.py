"""Definition of the small model: sizes, tokenizer, initial weights, the files of its folder."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn

from envs.tasks import chain, counting, digits, reading, recall
from envs.tasks.easy_vqa import EasyVqa
from envs.tasks.render import COLOR_NAMES, SHAPES
from envs.tasks.wording import templates
from rollout.molmoe import MolmoE, MolmoEConfig, VisionConfig, save_model

EOS, PAD, UNKNOWN = "<|endoftext|>", "<|padding|>", "<|unknown|>"
SPECIALS = (EOS, PAD, UNKNOWN, "<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<|image|>")
CHARS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
WORDINGS = (
    digits.READ,
    digits.COUNT,
    digits.EXISTS,
    digits.SUM,
    reading.READ,
    counting.COUNT,
    recall.ASK,
)


def vocabulary() -> list[str]:
    """All tokens by id: special tokens, characters, continuation characters, the tasks' words."""
    text = " ".join(t for wording in WORDINGS for t in templates(wording, "train"))
    text = re.sub(r"{\w+}", " ", text)
    vqa = EasyVqa()
    for pairs in vqa._questions["train"].values():
        text += " " + " ".join(question + " " + answer for question, answer in pairs)
    words = set(re.findall(r"[a-z]+", text))
    words |= {word for place in (*digits.PLACES, *reading.BANDS) for word in place.split()}
    words |= {*COLOR_NAMES, *SHAPES, *(f"{shape}s" for shape in SHAPES)}
    words |= {"objects", "word", "number", "yes", "no", "plus", "minus", *chain.PERMUTATIONS}
    words |= {"User", "Assistant", "vqa", "digits", "reading", "counting", "recall", "chain"}
    for relation, values in recall.RELATIONS.items():
        words |= {relation, *values}
    words = {word for word in words if len(word) > 1}
    return [*SPECIALS, *CHARS, *PUNCTUATION, *(f"##{char}" for char in CHARS), *sorted(words)]


def build_tokenizer() -> Tokenizer:
    """A tokenizer with one token per known word; all other words are spelt by characters."""
    vocab = {token: index for index, token in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocab, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    return tokenizer


def small_config() -> MolmoEConfig:
    """16 blocks of 16 experts (top 8); scenes of 112 x 140 px are cut into at most 12 crops."""
    size = len(vocabulary())
    return MolmoEConfig(
        d_model=128,
        n_heads=4,
        embedding_size=-(-size // 16) * 16,
        additional_vocab_size=16,
        num_experts=16,
        expert_hidden=48,
        max_position_embeddings=4096,
        eos_token_id=0,
        vit_layers=(-1, -3),
        overlap_margins=(2, 2),
        vision=VisionConfig(
            num_layers=3, dim=160, num_heads=5, mlp_dim=640, patch_size=7, image_size=56
        ),
    )


def new_model(seed: int) -> MolmoE:
    """A model with initial weights; the outputs of blocks start small, for stability."""
    torch.manual_seed(seed)
    model = MolmoE(small_config())
    depth = model.config.n_layers
    for name, weight in model.named_parameters():
        if weight.ndim < 2 and "class_embedding" not in name:
            continue  # norms start at one, biases at zero
        fan_in = weight.shape[-1]
        std = fan_in**-0.5
        if name.endswith("attn_out.weight"):
            std /= (2 * depth) ** 0.5
        if "embedding" in name and "patch" not in name:
            std = 0.3 if "position" in name or "class" in name else 0.5
        if "pad_embed" in name:
            std = 0.02
        if name.endswith("gate.weight"):
            std *= 0.5
        nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std)
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    _start_local(model)
    return model.requires_grad_(True)


OFFSETS = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))
"""Relative patch that each head of the vision encoder attends to initially: itself, right, left,
below, above."""


@torch.no_grad()
def _start_local(model: MolmoE) -> None:
    """Lets the vision encoder start similar to a convolution, because it learns slowly otherwise.

    Position embeddings start as sines and cosines of row and column. Keys start as the identity,
    and the queries of each head as the rotation that maps a position to that of one neighbour (the
    idea of ConViT, d'Ascoli et al., 2021, with plain weights). Most of the mean is removed from
    the patch filters, because contrast is what matters.
    """
    vit, vision = model.vision.encoder.image_vit, model.config.vision
    vit.patch_embedding.weight -= 0.8 * vit.patch_embedding.weight.mean(1, keepdim=True)
    width = vision.dim // vision.num_heads
    angles = torch.cat([torch.linspace(0.25, 2.2, width // 4 - 1), torch.tensor([math.pi])])
    rows, cols = (
        t.flatten() for t in torch.meshgrid(*[torch.arange(vision.grid)] * 2, indexing="ij")
    )
    waves = [f(c[:, None] * angles) for c in (rows, cols) for f in (torch.sin, torch.cos)]
    vit.positional_embedding[1:] = torch.cat(waves, dim=-1).repeat(1, vision.num_heads)
    for layer, gain in zip(vit.resblocks, (2.4, 2.0, 1.5), strict=True):
        attention: Any = layer.attention
        attention.wk.weight.copy_(gain * torch.eye(vision.dim))
        turns = [_turn(offset, angles) for offset in OFFSETS]
        attention.wq.weight.copy_(gain * torch.block_diag(*turns))
    _start_apart(model, width)


def _start_apart(model: MolmoE, width: int) -> None:
    """Lets each of four heads of the 2x2 pooling start with one patch instead of blurring all four.

    The last angle of rows and columns is pi, so its cosine distinguishes even from odd. These two
    channels of each head's part of the position embedding are kept almost free of pixels, and the
    pooling's queries start as constants that select one of the four combinations.
    """
    vision, pooling = model.config.vision, model.vision.encoder.image_pooling_2d
    even_row, even_col = (
        torch.arange(vision.num_heads) * width + place for place in (width // 2 - 1, width - 1)
    )
    patches = model.vision.encoder.image_vit.patch_embedding.weight
    patches[even_row] *= 0.05
    patches[even_col] *= 0.05
    earliest = len(model.config.vit_layers) - 1  # the features of the earliest layer come last
    for head, signs in enumerate(((1, 1), (1, -1), (-1, 1), (-1, -1))):
        for axis, channels in enumerate((even_row, even_col)):
            key = head * width + axis
            pooling.wk.weight[key] = 0
            pooling.wk.weight[key, earliest * vision.dim + channels] = 3.0 / vision.num_heads
            pooling.wq.weight[key] = 0
            pooling.wq.bias[key] = 6.0 * signs[axis]


def _turn(offset: tuple[int, int], angles: Tensor) -> Tensor:
    """The matrix that shifts (sin, cos) of rows and columns by an offset."""
    parts = []
    for shift in offset:
        cos, sin = torch.diag((shift * angles).cos()), torch.diag((shift * angles).sin())
        parts.append(torch.cat([torch.cat([cos, sin], 1), torch.cat([-sin, cos], 1)], 0))
    return torch.block_diag(*parts)


def write_folder(model: MolmoE, folder: Path) -> None:
    """Writes weights in bfloat16, config, tokenizer and generation config."""
    folder.mkdir(parents=True, exist_ok=True)
    half = MolmoE(model.config).to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    save_model(half, folder)
    build_tokenizer().save(str(folder / "tokenizer.json"))
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    (folder / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n")
    vision = model.config.vision
    preprocessor = {
        "processor_class": "MolmoProcessor",
        "image_processor_type": "MolmoImageProcessor",
        "max_crops": model.config.max_crops,
        "overlap_margins": list(model.config.overlap_margins),
        "base_image_input_size": [vision.image_size, vision.image_size],
        "image_patch_size": vision.patch_size,
        "image_token_length_h": model.config.pooled_grid,
        "image_token_length_w": model.config.pooled_grid,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")
