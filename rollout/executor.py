"""Runs one prompt in resumable steps, every stage on the clock.

`begin` prefills to the insertion position with the budget token riding along; `advance` runs the
rest with the chosen top_k and blocks, then decodes. The budget token never mixes with the text:
it passes through the blocks alone, reads the text's keys and values and leaves none of its own,
so the answer is the same, to the bit, with and without it.

Shapes: T prompt tokens, D d_model.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from envs.checks import check_within
from envs.spec import Execution, Knobs, Sample, Tier
from rollout.episodes import EpisodeGroup
from rollout.importance import BlockImportance
from rollout.latency.clock import DeviceFacts, clock_for
from rollout.latency.hooks import Stages, Timeline, block_modules, module_hooks, vision_modules
from rollout.latency.simulated import SimulatedLatency
from rollout.molmoe import ModelInputs, MolmoE, Preprocessor
from rollout.molmoe.cache import KVCache
from rollout.molmoe.generation import greedy_tokens


@dataclass(slots=True, kw_only=True)
class Prefix:
    """One tier's prompt, prefilled as deep as any member of the group needs.

    Attributes:
        inputs: the preprocessed prompt.
        host_ms: tokenising and image resizing.
        cache: keys and values of the text in blocks 0 .. depth - 1.
        depth: blocks that the text went through.
        hidden: the text's hidden states [1, T, D] by number of blocks.
        budget_token: the budget token behind `depth` blocks, [1, 1, D].
        latency_tokens: the budget token's hidden state [D] by number of blocks, in the model's
            dtype; records hold it as float32.
        stages: measured milliseconds; `budget_NN` is the budget token in block NN.
    """

    inputs: ModelInputs
    host_ms: float
    cache: KVCache
    hidden: dict[int, Tensor]
    budget_token: Tensor
    depth: int = 0
    latency_tokens: dict[int, Tensor] = field(default_factory=dict)
    stages: Stages = field(default_factory=dict)

    def stages_until(self, position: int) -> Stages:
        """What an episode that leaves at `position` spent in the prefix."""
        stages: Stages = {}
        for name, elapsed_ms in self.stages.items():
            kind, _, block = name.rpartition("_")
            if kind == "block" and int(block) < position:
                stages[name] = elapsed_ms
            elif kind == "budget" and int(block) < position:
                stages["budget_token"] = stages.get("budget_token", 0.0) + elapsed_ms
            elif kind not in ("block", "budget"):
                stages[name] = elapsed_ms
        return stages


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorConfig:
    """How episodes are executed.

    Attributes:
        max_new_tokens: longest answer, in tokens.
        prefill_only: budget scope; True leaves decode out of the latency.
        repeats: an episode whose latency is within `repeat_band` of its budget is run this often
            from the insertion position on, and the run of median latency counts. Odd.
        repeat_band: relative distance from the budget that counts as near.
    """

    max_new_tokens: int = 64
    prefill_only: bool = False
    repeats: int = 1
    repeat_band: float = 0.05

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}: give at least one")
        if self.repeats < 1 or self.repeats % 2 == 0:
            raise ValueError(
                f"repeats is {self.repeats}: give an odd number, so that one is median"
            )
        check_within(self, "repeat_band", low=0)


class MolmoEExecutor:
    """The frozen model with its preprocessor, block importance and clock.

    With `simulated` the model runs all the same, but latencies come from that table.
    """

    def __init__(
        self,
        model: MolmoE,
        preprocessor: Preprocessor,
        importance: BlockImportance,
        config: ExecutorConfig | None = None,
        simulated: SimulatedLatency | None = None,
    ) -> None:
        if len(importance.scores) != model.config.n_layers:
            raise ValueError(
                f"importance scores of {len(importance.scores)} blocks for a model of "
                f"{model.config.n_layers}: measure them with launch/importance.py"
            )
        self.model = model
        self.preprocessor = preprocessor
        self.importance = importance
        self.config = config or ExecutorConfig()
        self.simulated = simulated
        self.timeline = Timeline(clock_for(model.device))

    @property
    def d_model(self) -> int:
        """Width of language features and latency tokens."""
        return self.model.config.d_model

    def open(self, sample: Sample, budget_ms: float) -> EpisodeGroup:
        """Starts a group of episodes on one (sample, budget)."""
        return EpisodeGroup(self, sample, budget_ms)

    def device_facts(self) -> DeviceFacts:
        """Device, dtype, torch version and thread count of this executor."""
        return DeviceFacts.of(self.model.device, self.model.dtype)

    @torch.no_grad()
    def language_feature(self, sample: Sample) -> np.ndarray:
        """Mean word embedding of the prompt, float32 [D]; raises ValueError naming the sample."""
        try:
            ids = torch.from_numpy(self.preprocessor.encode_prompt(sample.prompt))
        except ValueError as error:
            raise ValueError(f"sample {sample.id}: {error}") from None
        return self.model.wte(ids.to(self.model.device)).float().mean(0).cpu().numpy()

    @torch.no_grad()
    def begin(self, sample: Sample, tier: Tier, budget_token_D: np.ndarray) -> Prefix:
        """Preprocesses for a tier, runs the vision encoder and embeds; no block runs yet.

        Raises:
            ValueError: naming the sample, if its image or prompt is unusable.
        """
        started = time.perf_counter()
        try:
            inputs = self.preprocessor(sample.image, sample.prompt, max_crops=tier.max_crops)
        except ValueError as error:
            raise ValueError(f"sample {sample.id}: {error}") from None
        inputs = inputs.to(self.model.device)
        host_ms = (time.perf_counter() - started) * 1e3
        x_1TD, stages = self._embed(inputs)
        token_D = torch.from_numpy(np.array(budget_token_D)).to(self.model.device, self.model.dtype)
        return Prefix(
            inputs=inputs,
            host_ms=host_ms,
            cache=self.model.new_cache(len(inputs.token_ids) + self.config.max_new_tokens),
            hidden={0: x_1TD},
            budget_token=token_D[None, None],
            stages=stages,
        )

    def _embed(self, inputs: ModelInputs) -> tuple[Tensor, Stages]:
        model, timeline = self.model, self.timeline
        timeline.take()
        vision = idx = None
        if inputs.images is not None and inputs.image_masks is not None:
            with module_hooks(timeline, vision_modules(model)):
                vision = model.encode_image(inputs.images[None], inputs.image_masks[None])
        if inputs.image_input_idx is not None:
            idx = inputs.image_input_idx[None]
        with timeline.span("embed"):
            x_1TD = model.embed(inputs.token_ids[None], vision, idx)
        return x_1TD, timeline.take()

    @torch.no_grad()
    def deepen(self, prefix: Prefix, position: int) -> None:
        """Takes text and budget token through the blocks before `position`, if they are not yet."""
        model, timeline, start = self.model, self.timeline, prefix.depth
        if position <= start:
            return
        with module_hooks(timeline, block_modules(model)):
            prefix.hidden[position] = model.run_blocks(
                prefix.hidden[start], start, position, cache=prefix.cache
            )
        for index in range(start, position):
            with timeline.span(f"budget_{index:02}"):
                prefix.budget_token = model.run_blocks(
                    prefix.budget_token, index, index + 1, cache=prefix.cache, store=False
                )
        prefix.latency_tokens[position] = prefix.budget_token[0, 0]
        prefix.depth = position
        prefix.stages.update(timeline.take())

    @torch.no_grad()
    def latency_tokens(self, prefix: Prefix, budget_tokens_KD: np.ndarray) -> np.ndarray:
        """What other budget tokens become behind each block of a prefix, off the clock.

        Returns:
            float32 [K, depth, D].
        """
        tokens_KD = torch.from_numpy(budget_tokens_KD).to(self.model.device, self.model.dtype)
        behind = []
        for token_D in tokens_KD:
            y_11D, states = token_D[None, None], []
            for index in range(prefix.depth):
                y_11D = self.model.run_blocks(
                    y_11D, index, index + 1, cache=prefix.cache, store=False
                )
                states.append(y_11D[0, 0])
            behind.append(torch.stack(states))
        return torch.stack(behind).float().cpu().numpy()

    @torch.no_grad()
    def advance(self, prefix: Prefix, knobs: Knobs, budget_ms: float | None = None) -> Execution:
        """Runs the blocks from the insertion position on and decodes; the prefix stays intact.

        Args:
            prefix: deepened to `knobs.position` before.
            knobs: the whole configuration.
            budget_ms: for `ExecutorConfig.repeats`; None never repeats.

        Returns:
            The execution, its stages without the controller's.
        """
        execution = self._advance_once(prefix, knobs)
        if self.config.repeats == 1 or budget_ms is None:
            return execution
        if abs(execution.latency_ms / budget_ms - 1) > self.config.repeat_band:
            return execution
        runs = [execution]
        runs += [self._advance_once(prefix, knobs) for _ in range(self.config.repeats - 1)]
        return sorted(runs, key=lambda run: run.latency_ms)[len(runs) // 2]

    def _advance_once(self, prefix: Prefix, knobs: Knobs) -> Execution:
        model, timeline, position = self.model, self.timeline, knobs.position
        num_layers = model.config.n_layers
        skipped = self.importance.skipped(position, knobs.num_blocks)
        top_k = [model.config.top_k] * position + [knobs.top_k] * (num_layers - position)
        cache = prefix.cache.fork(len(prefix.inputs.token_ids), blocks=range(position))
        timeline.take()
        with module_hooks(timeline, block_modules(model)):
            x_1TD = model.run_blocks(
                prefix.hidden[position],
                position,
                num_layers,
                cache=cache,
                top_k=top_k,
                skipped=skipped,
            )
        with timeline.span("head"):
            first_id = model.logits(x_1TD[:, -1]).argmax(-1)
        token_ids = self._decode(first_id, cache, top_k, skipped)
        stages = {**prefix.stages_until(position), **timeline.take()}
        if self.simulated is not None:
            stages = {"simulated": self.simulated.latency_ms(knobs)}
        is_finished = token_ids[-1] == model.config.eos_token_id
        return Execution(
            knobs=knobs,
            answer=self.preprocessor.decode(token_ids[:-1] if is_finished else token_ids),
            num_output_tokens=len(token_ids),
            finished=is_finished,
            latency_ms=self.latency_ms(stages),
            stages_ms=stages,
            host_ms=prefix.host_ms,
            num_vision_tokens=prefix.inputs.num_vision_tokens,
            num_text_tokens=prefix.inputs.num_text_tokens,
        )

    def _decode(
        self, first_id: Tensor, cache: KVCache, top_k: list[int], skipped: frozenset[int]
    ) -> list[int]:
        steps = greedy_tokens(
            self.model,
            first_id,
            cache,
            max_new_tokens=self.config.max_new_tokens,
            top_k=top_k,
            skipped=skipped,
        )
        token_ids: list[int] = []
        start = self.timeline.clock.mark()
        for token_id in steps:
            end = self.timeline.clock.mark()
            # The first token comes with the prefill; only reading it takes time here.
            name = f"decode_{len(token_ids):02}" if token_ids else "head"
            self.timeline.add(name, start, end)
            token_ids.append(token_id)
            start = end
        return token_ids

    def latency_ms(self, stages: Stages) -> float:
        """Sum of the stages within the budget's scope."""
        return sum(
            elapsed_ms
            for name, elapsed_ms in stages.items()
            if not (self.config.prefill_only and name.startswith("decode"))
        )

    def budget_gradient(
        self, prefix: Prefix, budget_token_D: np.ndarray, gradients: dict[int, np.ndarray]
    ) -> np.ndarray:
        """Vector-Jacobian product from latency tokens back to the budget token.

        Only the one token's path is differentiated: the text's keys and values are constants.

        Args:
            prefix: prefilled at least to the deepest position of `gradients`.
            budget_token_D: the token that entered block 0.
            gradients: dL/d(latency token) [D] by insertion position.

        Returns:
            dL/d(budget token), [D], in the gradients' dtype.
        """
        token_D = torch.from_numpy(np.array(budget_token_D))
        leaf = token_D.to(self.model.device, self.model.dtype).requires_grad_()
        outputs, upstream = [], []
        with torch.enable_grad():
            y_11D = leaf[None, None]
            for index in range(max(gradients)):
                y_11D = self.model.run_blocks(
                    y_11D, index, index + 1, cache=prefix.cache, store=False
                )
                if index + 1 in gradients:
                    outputs.append(y_11D[0, 0])
                    upstream.append(torch.from_numpy(gradients[index + 1]).to(y_11D))
            (result,) = torch.autograd.grad(outputs, leaf, upstream)
        dtype = next(iter(gradients.values())).dtype
        return result.cpu().to(torch.float64).numpy().astype(dtype)
