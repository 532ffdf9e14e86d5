"""Other implementations on the same weights and device: transformers' OLMoE, the published flow.

OLMoE has the decoder's shape; both get the tokens of the high tier's prompt as text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from transformers import DynamicCache, OlmoeConfig, OlmoeForCausalLM, StaticCache
from transformers.models.olmoe.modeling_olmoe import OlmoeRotaryEmbedding

from benchmarks.gpu.report import Figure
from benchmarks.gpu.speed import interleaved
from benchmarks.gpu.subject import Subject, quartiles
from benchmarks.published_flow import PublishedFlow, blocks_of
from envs.spec import Tier
from rollout.latency.clock import clock_for
from rollout.molmoe import MolmoE

Step = Callable[[torch.Tensor], torch.Tensor]
"""Feeds token ids [1, T] after those before and returns the most likely next one, [1, 1]."""


def olmoe(ours: MolmoE, experts: str) -> OlmoeForCausalLM:
    """Transformers' OLMoE on our decoder's weights, without copying them."""
    config = ours.config
    settings = OlmoeConfig(
        vocab_size=config.embedding_size,
        hidden_size=config.d_model,
        intermediate_size=config.expert_hidden,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_experts=config.num_experts,
        num_experts_per_tok=config.top_k,
        norm_topk_prob=False,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=False,
        pad_token_id=1,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]: of the base class
        experts_implementation=experts,  # pyright: ignore[reportCallIssue]
    )
    with torch.device("meta"):
        model = OlmoeForCausalLM(settings)
    model.load_state_dict(_olmoe_weights(ours), assign=True)
    model.model.rotary_emb = OlmoeRotaryEmbedding(settings).to(ours.device)
    return model.eval().requires_grad_(False)


def _olmoe_weights(ours: MolmoE) -> dict[str, torch.Tensor]:
    weights = {
        "model.embed_tokens.weight": ours.wte.embedding,
        "model.norm.weight": ours.ln_f.weight,
        "lm_head.weight": ours.lm_head.weight,
    }
    for index, block in enumerate(blocks_of(ours)):
        q, k, v = block.attn.att_proj.weight.chunk(3)
        parts = {
            "self_attn.q_proj.weight": q,
            "self_attn.k_proj.weight": k,
            "self_attn.v_proj.weight": v,
            "self_attn.o_proj.weight": block.attn.attn_out.weight,
            "self_attn.q_norm.weight": block.attn.q_norm.weight,
            "self_attn.k_norm.weight": block.attn.k_norm.weight,
            "input_layernorm.weight": block.attn.attn_norm.weight,
            "post_attention_layernorm.weight": block.mlp.ff_norm.weight,
            "mlp.gate.weight": block.mlp.gate.weight,
            "mlp.experts.gate_up_proj": block.mlp.gate_up,
            "mlp.experts.down_proj": block.mlp.down,
        }
        weights |= {f"model.layers.{index}.{name}": weight for name, weight in parts.items()}
    return weights


def olmoe_step(model: OlmoeForCausalLM, cache: DynamicCache | StaticCache) -> Step:
    """Steps of OLMoE with a given cache."""

    def step(ids_1T: torch.Tensor) -> torch.Tensor:
        out = model(input_ids=ids_1T, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1:].argmax(-1)

    return step


def published_step(flow: PublishedFlow) -> Step:
    """Steps of the published flow."""
    return lambda ids_1T: flow.step(ids_1T)[:, -1:]


def ours_step(model: MolmoE, capacity: int) -> Step:
    """Steps of our own growing cache; only the prefill is compared."""
    cache = model.new_cache(capacity)

    def step(ids_1T: torch.Tensor) -> torch.Tensor:
        x_1TD = model.run_blocks(model.embed(ids_1T), 0, model.config.n_layers, cache=cache)
        return model.logits(x_1TD[:, -1:]).argmax(-1)

    return step


def implementations(subject: Subject, capacity: int) -> dict[str, Callable[[], Step]]:
    """Makes a fresh answer of each implementation, by name."""
    looped, batched = (olmoe(subject.model, kind) for kind in ("eager", "batched_mm"))
    grouped = olmoe(subject.model, "grouped_mm")

    def static() -> StaticCache:
        return StaticCache(config=batched.config, max_cache_len=capacity)

    return {
        "ours, growing cache": lambda: ours_step(subject.model, capacity),
        "transformers, expert loop": lambda: olmoe_step(looped, DynamicCache(config=looped.config)),
        "transformers, grouped_mm": lambda: olmoe_step(
            grouped, DynamicCache(config=grouped.config)
        ),
        # Batched experts copy the weights for every token; a prefill has no memory for that.
        "transformers, static cache, batched_mm in decode": lambda: _switched(
            static(), grouped, batched
        ),
        "the published flow": lambda: published_step(PublishedFlow(subject.model)),
    }


def _switched(cache: StaticCache, prefill: OlmoeForCausalLM, decode: OlmoeForCausalLM) -> Step:
    """One model for the prompt and another one for single tokens, with one cache."""
    steps = olmoe_step(prefill, cache), olmoe_step(decode, cache)
    return lambda ids_1T: steps[ids_1T.shape[1] == 1](ids_1T)


@torch.no_grad()
def others(subject: Subject) -> list[Figure]:
    """Milliseconds of a text prefill and per token, next to ours on the same tokens."""
    plan = subject.plan
    length = len(subject.prefix(Tier.HIGH).inputs.token_ids)
    generator = torch.Generator().manual_seed(0)
    ids_1T = torch.randint(10, plan.config.eos_token_id - 10, (1, length), generator=generator)
    ids_1T = ids_1T.to(plan.device)
    clock = clock_for(plan.device)
    made = implementations(subject, length + plan.compared_tokens + 2)
    tokens: dict[str, list[int]] = {}

    def measured(name: str, fresh: Callable[[], Step]) -> Callable[[], tuple[float, float]]:
        def run() -> tuple[float, float]:
            step, marks, ids = fresh(), [clock.mark()], []
            token_11 = step(ids_1T)
            ids.append(int(token_11))
            marks.append(clock.mark())
            for _ in range(plan.compared_tokens):
                token_11 = step(token_11)
                ids.append(int(token_11))
            marks.append(clock.mark())
            tokens[name] = ids
            prefill_ms, decode_ms = clock.read_ms(list(pairwise(marks)))
            return prefill_ms, decode_ms / plan.compared_tokens

        return run

    ways = {name: measured(name, fresh) for name, fresh in made.items()}
    runs = interleaved(ways, plan.eager_rounds)
    return [figure for name, pairs in runs.items() for figure in _figures(name, pairs, tokens)]


def _figures(
    name: str, pairs: list[tuple[float, float]], tokens: dict[str, list[int]]
) -> Iterator[Figure]:
    expected = next(iter(tokens.values()))
    same = 100 * sum(a == b for a, b in zip(tokens[name], expected, strict=True)) / len(expected)
    for what, unit, values in zip(
        ("prefill", "decode"), ("ms", "ms/token"), zip(*pairs, strict=True), strict=True
    ):
        low, middle, high = quartiles(values)
        title = f"{name}: {what} ({same:.0f} % of our tokens)"
        yield Figure(what=title, value=middle, unit=unit, low=low, high=high)
