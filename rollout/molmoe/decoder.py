"""The frozen model, run in explicit steps: embed, blocks [start, stop), logits.

Shapes: B batch, T new tokens, S all tokens, D d_model, C crops, V vision tokens of a crop,
W vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rollout.molmoe.attention import Attention, AttentionContext, RMSNorm, Rotary
from rollout.molmoe.cache import BlockCache, KVCache
from rollout.molmoe.config import MolmoEConfig
from rollout.molmoe.moe import SparseMoE
from rollout.molmoe.preprocess import ModelInputs
from rollout.molmoe.vision import VisionBackbone


class Block(nn.Module):
    """One decoder block."""

    def __init__(self, config: MolmoEConfig) -> None:
        super().__init__()
        self.attn = Attention(config)
        self.mlp = SparseMoE(config)

    def forward(
        self, x_BTD: Tensor, cache: BlockCache, context: AttentionContext, top_k: int
    ) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x_BTD = x_BTD + self.attn(x_BTD, cache, context)
        return x_BTD + self.mlp(x_BTD, top_k)


class TokenEmbedding(nn.Module):
    """Two tables side by side, indexed without ever being concatenated."""

    def __init__(self, config: MolmoEConfig) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(config.embedding_size, config.d_model))
        self.new_embedding = nn.Parameter(torch.empty(config.additional_vocab_size, config.d_model))

    def forward(self, token_ids: Tensor) -> Tensor:
        """Ids [...] -> embeddings [..., D]; padding (-1) is embedded as id 0."""
        ids = token_ids.clamp(min=0)
        base = F.embedding(ids.clamp(max=len(self.embedding) - 1), self.embedding)
        if not len(self.new_embedding):
            return base
        extra = F.embedding((ids - len(self.embedding)).clamp(min=0), self.new_embedding)
        return torch.where((ids >= len(self.embedding))[..., None], extra, base)

    def embedding_for(self, token_ids: Tensor) -> Callable[[Tensor], Tensor]:
        """As `forward`, for ids that the host knows: words need the first table alone."""
        has_words_only = token_ids.min() >= 0 and token_ids.max() < len(self.embedding)
        return (lambda ids: F.embedding(ids, self.embedding)) if has_words_only else self


class MolmoE(nn.Module):
    """MolmoE-1B-0924's architecture at any size, in evaluation mode and without gradients."""

    def __init__(self, config: MolmoEConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionBackbone(config)
        self.wte = TokenEmbedding(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.ln_f = RMSNorm(config.d_model, config.norm_eps)
        self.lm_head = nn.Linear(config.d_model, config.embedding_size, bias=False)
        self._rotary = Rotary(config)
        self.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.lm_head.weight.dtype

    def new_cache(self, capacity: int, *, batch: int = 1) -> KVCache:
        """An empty cache for `capacity` tokens; a block's memory is taken when it first runs."""
        shape = (batch, self.config.n_heads, capacity, self.config.head_dim)
        return KVCache(shape, self.dtype, self.device)

    def encode_image(self, images_BCPX: Tensor, masks_BCP: Tensor) -> Tensor:
        """Patches and their valid fractions -> vision tokens [B, C, V, D]."""
        return self.vision(images_BCPX, masks_BCP)

    def embed(
        self, token_ids_BT: Tensor, vision_BCVD: Tensor | None = None, idx_BCV: Tensor | None = None
    ) -> Tensor:
        """Token embeddings with the vision tokens ADDED at their indices (negative: ignored).

        Args:
            token_ids_BT: ids; -1 is padding.
            vision_BCVD: what `encode_image` returned, or None for text alone.
            idx_BCV: position in the row's own sequence of each vision token.

        Returns:
            [B, T, D].
        """
        x_BTD = self.wte(token_ids_BT)
        if vision_BCVD is None or idx_BCV is None:
            return x_BTD
        batch, length, dim = x_BTD.shape
        rows = torch.arange(batch, device=x_BTD.device)[:, None] * (length + 1)
        flat_idx = idx_BCV.flatten(1)
        target = torch.where(flat_idx >= 0, flat_idx, length) + rows
        padded = F.pad(x_BTD, (0, 0, 0, 1)).flatten(0, 1)
        padded = padded.index_add(0, target.flatten(), vision_BCVD.reshape(-1, dim))
        return padded.view(batch, length + 1, dim)[:, :length]

    def embed_inputs(self, inputs: ModelInputs) -> Tensor:
        """Embeds one preprocessed prompt, image included: [1, T, D]."""
        if inputs.images is None or inputs.image_masks is None or inputs.image_input_idx is None:
            return self.embed(inputs.token_ids[None])
        vision = self.encode_image(inputs.images[None], inputs.image_masks[None])
        return self.embed(inputs.token_ids[None], vision, inputs.image_input_idx[None])

    def run_blocks(
        self,
        x_BTD: Tensor,
        start: int,
        stop: int,
        *,
        cache: KVCache,
        top_k: int | Sequence[int] | None = None,
        skipped: Collection[int] = (),
        attention_mask_BS: Tensor | None = None,
        store: bool = True,
    ) -> Tensor:
        """Runs blocks start .. stop - 1 over the new tokens.

        Args:
            x_BTD: hidden states; they follow the tokens that the cache holds for these blocks.
            start: first block.
            stop: end of the range of blocks, exclusive.
            cache: keys and values; skipped blocks get no entry.
            top_k: experts per token, one number or one per block of the model; by default that of
                the configuration.
            skipped: blocks to skip; they act as the identity and are never entered.
            attention_mask_BS: True where a token (cached ones included) is real; None if all are.
            store: whether the keys and values of the new tokens stay in the cache.

        Returns:
            Hidden states after the last block, [B, T, D].
        """
        running = [index for index in range(start, stop) if index not in skipped]
        if not running:
            return x_BTD
        context = self._context(
            x_BTD.shape[1], cache.length(running[0]), attention_mask_BS, store=store
        )
        default = self.config.top_k if top_k is None else top_k
        for index in running:
            k = default if isinstance(default, int) else default[index]
            x_BTD = self.blocks[index](x_BTD, cache.block(index), context, k)
        return x_BTD

    def logits(self, x_BD: Tensor) -> Tensor:
        """Final norm and head for the given positions only: [..., D] -> [..., W]."""
        return self.lm_head(self.ln_f(x_BD))

    @torch.no_grad()
    def forward_logits(self, inputs: ModelInputs) -> Tensor:
        """Logits of every position of a whole prompt: [T, W]."""
        x_1TD = self.embed_inputs(inputs)
        cache = self.new_cache(x_1TD.shape[1])
        return self.logits(self.run_blocks(x_1TD, 0, self.config.n_layers, cache=cache)[0])

    def _context(
        self, num_new: int, num_past: int, attention_mask_BS: Tensor | None, *, store: bool
    ) -> AttentionContext:
        total = num_past + num_new
        cos, sin = self._rotary.table(total, self.device)
        if attention_mask_BS is None:
            mask = None
            if num_new > 1 and num_past:
                mask = self._causal(num_new, total)[None, None]
            cos, sin = cos[num_past:total], sin[num_past:total]
            return AttentionContext(cos=cos, sin=sin, mask=mask, store=store)
        positions = (attention_mask_BS.long().cumsum(-1) - 1).clamp(min=0)[:, num_past:total]
        mask = self._causal(num_new, total) & attention_mask_BS[:, None, None, :total].bool()
        cos, sin = cos[positions][:, None], sin[positions][:, None]
        return AttentionContext(cos=cos, sin=sin, mask=mask, store=store)

    def _causal(self, num_new: int, total: int) -> Tensor:
        keep = torch.ones(num_new, total, dtype=torch.bool, device=self.device)
        return keep.tril(total - num_new)
