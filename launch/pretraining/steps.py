"""Losses of one batch: patch labels for the vision encoder, answers for the whole model.

Shapes: B scenes, C crops, V vision tokens of a crop, P patches of a crop or tokens of the prefix,
S label points, T tokens, D d_model, L looks, M boxes, G guided heads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from envs.spec import TIERS, Tier
from envs.tasks.render import NUM_CLASSES, NUM_COLORS
from launch.pretraining import forward as fw
from launch.pretraining.batches import IGNORE, SOURCES, QuestionBatch
from launch.pretraining.blueprint import build_tokenizer
from launch.pretraining.config import PretrainingLossConfig
from launch.pretraining.muon import product_dtype
from launch.pretraining.pixels import (
    PATCH_POINTS,
    TOKEN_POINTS,
    TierLayout,
    label_targets,
    make_crops,
    tier_layout,
    tokens_under,
)
from rollout.molmoe import MolmoE, Preprocessor

FIRST_SHAPE_CLASS = NUM_CLASSES - 3
EASY_TASK = list(SOURCES).index("easy_vqa")
"""Index of the easy task, for which half of the experts should suffice."""

GUIDED_BLOCKS = (3, 6)
"""Blocks with supervised heads: words that name a location attend to its content in the first one,
answer tokens to the glyphs that they are read from in the second one."""

NOTHING_WEIGHT = 0.15
"""Weight of empty label points, which are the majority."""


def shown_by_look(look_M: Tensor, shown_MP: Tensor, num_looks: int) -> Tensor:
    """Tokens to attend to by look and guided head, from those of each box: bool [L, G, P].

    If a look has as many boxes as there are guided heads, each head gets its own box; otherwise
    all heads get all boxes.
    """
    counts_L = torch.bincount(look_M, minlength=num_looks)
    first_L = counts_L.cumsum(0) - counts_L
    number_M = torch.arange(len(look_M)) - first_L[look_M]
    heads = torch.arange(fw.GUIDED_HEADS)
    apart_M = counts_L[look_M] == fw.GUIDED_HEADS
    taken_MG = (number_M[:, None] == heads) | ~apart_M[:, None]
    shown_LGP = torch.zeros(num_looks, fw.GUIDED_HEADS, shown_MP.shape[1])
    shown_MGP = shown_MP[:, None] & taken_MG[..., None]
    return shown_LGP.index_add(0, look_M, shown_MGP.float()) > 0


class LabelHead(nn.Module):
    """Predicts class and colour at the label points of a feature vector."""

    def __init__(self, dim: int, points: int) -> None:
        super().__init__()
        self.points = points
        self.class_head = nn.Linear(dim, points * NUM_CLASSES)
        self.color_head = nn.Linear(dim, points * NUM_COLORS)

    def forward(
        self, features: Tensor, targets: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, float]:
        """Loss, and accuracy on points that are not empty.

        Args:
            features: [..., width].
            targets: class and colour, [..., points, 2].
            dtype: of the matrix products.
        """
        x = features.reshape(-1, features.shape[-1]).float()
        x = F.rms_norm(x, x.shape[-1:]).to(dtype)
        classes = F.linear(x, self.class_head.weight.to(dtype), self.class_head.bias.to(dtype))
        classes = classes.unflatten(-1, (self.points, NUM_CLASSES)).flatten(0, 1).float()
        kinds, colors = targets.flatten(0, -2).unbind(-1)
        weight = torch.ones(NUM_CLASSES)
        weight[0] = NOTHING_WEIGHT
        loss = F.cross_entropy(classes, kinds, weight=weight)
        hues = F.linear(x, self.color_head.weight.to(dtype), self.color_head.bias.to(dtype))
        hues = hues.unflatten(-1, (self.points, NUM_COLORS)).flatten(0, 1).float()
        tinted = (kinds >= FIRST_SHAPE_CLASS) & (colors > 0)
        tint = F.cross_entropy(hues[tinted], colors[tinted], reduction="sum")
        loss = loss + 0.3 * tint / tinted.sum().clamp(min=1)
        something = kinds > 0
        right = (classes.detach().argmax(-1) == kinds)[something].float().mean()
        return loss, float(right)


class Trainee(nn.Module):
    """The model with the label heads that only pretraining needs.

    Args:
        model: the model to train.
        dtype: dtype of the matrix products; by default the faster one on this CPU.
    """

    def __init__(self, model: MolmoE, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.model = model
        self.dtype = product_dtype() if dtype is None else dtype
        vision = model.config.vision
        self.token_head = LabelHead(model.config.d_model, TOKEN_POINTS)
        self.patch_head = LabelHead(vision.dim * len(model.config.vit_layers), PATCH_POINTS)
        self.features: Tensor | None = None
        model.vision.encoder.image_vit.register_forward_hook(self._keep_features)
        tokenizer = build_tokenizer()
        preprocessor = Preprocessor(
            model.config, PreTrainedTokenizerFast(tokenizer_object=tokenizer)
        )
        role = torch.tensor(tokenizer.encode(" User:").ids)
        self.role_ids = role
        self.layouts: dict[Tier, TierLayout] = {t: tier_layout(preprocessor, t) for t in TIERS}

    def prefix_ids(self, tier: Tier | None) -> Tensor:
        """The prefix that all questions about a scene share: BOS, image tokens, role."""
        image = torch.tensor([0]) if tier is None else self.layouts[tier].prefix_ids
        return torch.cat([image, self.role_ids])

    def see(self, batch: QuestionBatch) -> Tensor:
        """Vision tokens of the batch's scenes, [B, C, V, D]."""
        layout = self.layouts[batch.tier]
        return fw.vision_tokens(self.model, make_crops(batch.images, layout), layout, self.dtype)

    @torch.no_grad()
    def calm_vision(self, batch: QuestionBatch) -> None:
        """Scales the vision tokens to the size of word embeddings.

        They grow while only labels are trained, and would otherwise destroy what the decoder has
        learned from text when they first appear.
        """
        words = self.model.wte.embedding.square().mean().sqrt()
        self.model.vision.projector.w2.weight *= words / self.see(batch).square().mean().sqrt()

    @torch.no_grad()
    def raise_experts(self, gain: float) -> None:
        """Scales up the experts' outputs, except in the first and in the last two blocks.

        Router probabilities are not renormalised, so the experts' outputs start small compared
        with attention, which then learns everything that it can learn without them.
        """
        for block in self.model.blocks[1:-2]:
            mlp: Any = block.mlp
            mlp.down *= gain

    def _keep_features(self, module: nn.Module, args: object, output: Tensor) -> None:
        self.features = output

    def label_losses(
        self, vision_BCVD: Tensor, batch: QuestionBatch
    ) -> tuple[Tensor, float, float]:
        """(loss, accuracy on patches, accuracy on vision tokens); empty points are not counted.

        The patches are supervised directly, because the path through the pooling learns slowly.
        """
        layout = self.layouts[batch.tier]
        assert self.features is not None
        patches, seen = self.patch_head(
            self.features, label_targets(batch.labels, layout.patch_points_CPS), self.dtype
        )
        tokens, kept = self.token_head(
            vision_BCVD, label_targets(batch.labels, layout.token_points_CVS), self.dtype
        )
        return patches + tokens, seen, kept

    def hidden(
        self,
        batch: QuestionBatch,
        vision_BCVD: Tensor | None,
        *,
        top_k: int | None = None,
        skipped: tuple[int, ...] = (),
    ) -> fw.Hidden:
        """Hidden states after the last block, without those of the prefix."""
        tier = None if vision_BCVD is None else batch.tier
        prefix = self.prefix_ids(tier)
        rows, start = len(batch.tokens), len(prefix)
        tokens = torch.cat([prefix.expand(rows, -1), batch.tokens], dim=1)
        segments = F.pad(batch.segments, (start, 0))
        places = torch.arange(start).expand(rows, -1)
        positions = torch.cat([places, batch.offsets + start], dim=1)
        config = self.model.config
        easy = F.pad(batch.tasks == EASY_TASK, (start, 0))
        rope = (config.head_dim, config.rope_theta)
        layout = fw.make_layout(segments, positions, easy, rope, self.dtype)
        x = fw.embed(self.model, tokens, vision_BCVD, None if tier is None else self.layouts[tier])
        guides = {} if tier is None else self._guides(batch, start)
        out = fw.decode(self.model, x, layout, top_k=top_k, skipped=skipped, guides=guides)
        return replace(out, x_BTD=out.x_BTD[:, start:])

    def _guides(self, batch: QuestionBatch, start: int) -> dict[int, fw.Guide]:
        """Attention targets by block, of words that name a location and of answer tokens."""
        shown_MP = tokens_under(batch.boxes[:, 1:], self.layouts[batch.tier], start)
        shown_LGP = shown_by_look(batch.boxes[:, 0], shown_MP, len(batch.looks))
        guides = {}
        for is_answer, block in enumerate(GUIDED_BLOCKS):
            mine = (batch.looks[:, 2] == is_answer) & shown_LGP.any(-1).all(-1)
            if mine.any():
                rows, places, _ = batch.looks[mine].unbind(-1)
                guides[block] = fw.Guide(
                    rows_L=rows, places_L=places + start, shown_LGP=shown_LGP[mine]
                )
        return guides

    def answer_losses(
        self, batch: QuestionBatch, vision_BCVD: Tensor | None, config: PretrainingLossConfig
    ) -> tuple[Tensor, dict[str, float]]:
        """(loss, scalars to log: the parts of the loss, and token accuracy of answers by task)."""
        out = self.hidden(batch, vision_BCVD)
        asked, traced = batch.targets != IGNORE, batch.traces != IGNORE
        logits = fw.answer_logits(self.model, out.x_BTD[asked], self.dtype)
        targets, tasks = batch.targets[asked], batch.tasks[asked]
        answer = F.cross_entropy(logits, targets)
        loss = answer + config.balance * out.balance + config.dominance * out.dominance
        loss = loss + config.blindness * out.blindness
        log = {
            "loss/answer": float(answer.detach()),
            "router/balance": float(out.balance.detach()),
            "router/dominance": float(out.dominance.detach()),
            "loss/blindness": float(out.blindness.detach()),
        }
        if traced.any():
            steps = fw.answer_logits(self.model, out.x_BTD[traced], self.dtype)
            trace = F.cross_entropy(steps, batch.traces[traced])
            loss, log["loss/trace"] = loss + config.trace * trace, float(trace.detach())
        right = (logits.detach().argmax(-1) == targets).float()
        for index, name in enumerate(SOURCES):
            mine = (tasks == index) & (targets != 0)
            if mine.any():
                log[f"token_accuracy/{name}"] = float(right[mine].mean())
        return loss, log
