"""Greedy decoding: a thin loop over the model's steps."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rollout.molmoe.cache import KVCache
from rollout.molmoe.decoder import MolmoE
from rollout.molmoe.preprocess import ModelInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """An answer: ids without the end-of-sequence token, and whether that token was reached."""

    token_ids: list[int]
    finished: bool


def decode_step(
    model: MolmoE,
    token_id_1: Tensor,
    cache: KVCache,
    *,
    top_k: int | Sequence[int] | None = None,
    skipped: Collection[int] = (),
) -> Tensor:
    """Feeds one token and returns the next greedy one, [1] int64; nothing is read on the host."""
    x_11D = model.embed(token_id_1[None])
    x_11D = model.run_blocks(
        x_11D, 0, model.config.n_layers, cache=cache, top_k=top_k, skipped=skipped
    )
    return model.logits(x_11D[:, -1]).argmax(-1)


@torch.no_grad()
def greedy_tokens(
    model: MolmoE,
    first_id_1: Tensor,
    cache: KVCache,
    *,
    max_new_tokens: int,
    top_k: int | Sequence[int] | None = None,
    skipped: Collection[int] = (),
) -> Iterator[int]:
    """Yields the answer's ids, the end-of-sequence token included if it comes within the limit.

    There is one host read per token, here and nowhere else. The first id comes from the prefill and
    is yielded before any step runs.
    """
    token_id_1 = first_id_1
    for count in range(1, max_new_tokens + 1):
        token = int(token_id_1)
        yield token
        if token == model.config.eos_token_id or count == max_new_tokens:
            return
        token_id_1 = decode_step(model, token_id_1, cache, top_k=top_k, skipped=skipped)


def generate(
    model: MolmoE,
    inputs: ModelInputs,
    *,
    max_new_tokens: int = 64,
    top_k: int | Sequence[int] | None = None,
    skipped: Collection[int] = (),
) -> Generation:
    """Prefills one prompt and decodes greedily.

    Raises:
        ValueError: `max_new_tokens` is not positive, or the prompt exceeds the positions.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: ask for at least one token")
    cache = model.new_cache(len(inputs.token_ids) + max_new_tokens)
    with torch.no_grad():
        x_1TD = model.run_blocks(
            model.embed_inputs(inputs),
            0,
            model.config.n_layers,
            cache=cache,
            top_k=top_k,
            skipped=skipped,
        )
        first_id = model.logits(x_1TD[:, -1]).argmax(-1)
    tokens = list(
        greedy_tokens(
            model, first_id, cache, max_new_tokens=max_new_tokens, top_k=top_k, skipped=skipped
        )
    )
    finished = tokens[-1] == model.config.eos_token_id
    return Generation(token_ids=tokens[:-1] if finished else tokens, finished=finished)
