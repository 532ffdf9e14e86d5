"""Runs one prompt in resumable steps, with every stage timed.

`look` encodes the image's global crop, before a tier is chosen; `begin` encodes the tier's other
crops and embeds the prompt; `deepen` runs it to the insertion position, with the budget token as
the last row; `advance` runs the text through the rest with the chosen top_k and blocks, then
decodes. No text token attends to the budget token, whose keys and values leave the cache at the
insertion position, so the answer's tokens are the same with and without it. Hidden states are
equal within rounding: one row more changes the order in which matrix products add up.

Shapes: T prompt tokens, D d_model, C crops, P patches of a crop, X values of a patch, F features of
a patch, V vision tokens of a crop, I length of the image feature.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from envs.spec import (
    FULL_TOP_K,
    NUM_BLOCKS_TOTAL,
    NUM_SIZES,
    TIERS,
    DataError,
    Decoding,
    Elapsed,
    Execution,
    Features,
    Knobs,
    Sample,
    Stages,
    Tier,
    in_ms,
)
from rollout.block_skipping import BlockImportance
from rollout.budget_token import budget_token_vjp, token_states
from rollout.executor_config import ExecutorConfig
from rollout.image_feature import image_dim, pooled, sizes_of
from rollout.latency.clock import DeviceFacts, clock_for
from rollout.latency.drift import Pace
from rollout.latency.hooks import Timeline, block_modules, module_hooks
from rollout.latency.simulated import SimulatedLatency
from rollout.molmoe import ModelInputs, MolmoE, MolmoEConfig, Preprocessor
from rollout.molmoe.cache import KVCache
from rollout.molmoe.preprocess import staged_for
from rollout.prefix import GlobalCrop, Prefix
from rollout.runtime import Runtime, runtime_for
from rollout.sample_loader import PreparedSample


class MolmoEExecutor:
    """The frozen model with its preprocessor, block importance and clock.

    Args:
        model: the frozen model.
        preprocessor: turns image and prompt into inputs.
        importance: block importance scores.
        config: answer length, budget scope, repeated measurements.
        simulated: table that replaces the measured latencies; the model still runs.
        importance_by_task: scores for samples of single tasks, by task name.
        runtime: how it decodes; by default the one for the model's device.

    Raises:
        ValueError: the knobs or the scores do not fit the model.
    """

    def __init__(
        self,
        model: MolmoE,
        preprocessor: Preprocessor,
        importance: BlockImportance,
        config: ExecutorConfig | None = None,
        simulated: SimulatedLatency | None = None,
        importance_by_task: Mapping[str, BlockImportance] | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        check_knobs_fit(model.config)
        self.importance_by_task = dict(importance_by_task or {})
        for scores in (importance, *self.importance_by_task.values()):
            if len(scores.scores) != model.config.n_layers:
                raise ValueError(
                    f"importance scores of {len(scores.scores)} blocks for a model of "
                    f"{model.config.n_layers}: measure them with launch/block_importance.py"
                )
        self.model = model
        self.preprocessor = preprocessor
        self.importance = importance
        self.config = config or ExecutorConfig()
        self.simulated = simulated
        self.runtime = runtime or runtime_for(
            model, self.config.max_new_tokens, preprocessor.max_crops
        )
        self.timeline = Timeline(clock_for(model.device, self.config.clock))
        self.pace = Pace()
        """Pace of the global crop's encoding, which is the same work for every image."""
        self._current: PreparedSample | None = None

    @property
    def d_model(self) -> int:
        """Width of language features and latency tokens."""
        return self.model.config.d_model

    @property
    def image_dim(self) -> int:
        """Length of the image feature."""
        return image_dim(self.model.config)

    def device_facts(self) -> DeviceFacts:
        """Device, dtype, torch version, thread count, clock and runtime of this executor."""
        return DeviceFacts.of(
            self.model.device, self.model.dtype, self.clock_name, self.runtime.name
        )

    @property
    def clock_name(self) -> str:
        """The clock that latencies are from, as records name it."""
        return "simulated" if self.simulated is not None else self.timeline.clock.name

    @torch.inference_mode()
    def features(self, sample: Sample, crop: GlobalCrop | None) -> tuple[Features, Stages]:
        """What stage 1 sees of a sample, and the time for it besides the vision encoder's.

        Args:
            sample: the question and its image.
            crop: the sample's global crop; None for a controller that does not see the image.

        Raises:
            DataError: the prompt is unusable; names the sample.
        """
        image_I = np.zeros(0 if crop is None else self.image_dim, np.float32)
        try:
            ids = torch.from_numpy(self.preprocessor.encode_prompt(sample.prompt))
        except ValueError as error:
            raise DataError(f"sample {sample.id}: {error}") from None
        embed = self.model.wte.embedding_for(ids)
        if crop is not None:
            image_I[-1 - NUM_SIZES : -1] = self._sizes(sample, len(ids))
        with self.timeline.recorded() as stages:
            if crop is not None and crop.features_11PF is not None:
                image_I[-1] = 1.0  # there is an image
                with self.timeline.span("image_feature"):
                    mean_E = pooled(crop.features_11PF, self.model.config)
                    image_I[: len(mean_E)] = mean_E.cpu().numpy()
            with self.timeline.span("language_feature"):
                words_TD = embed(ids.to(self.model.device))
                language_D = words_TD.float().mean(0).cpu().numpy()
        return Features(language=language_D, image=image_I), self.charged(stages)

    def _sizes(self, sample: Sample, num_text_tokens: int) -> list[float]:
        """The sizes of a sample, which the preprocessor knows on the host."""
        overview = self._prepared(sample).overview()
        count = self.preprocessor.num_vision_tokens
        return sizes_of([count(overview, tier) for tier in TIERS], num_text_tokens)

    def charged(self, stages: Stages) -> Stages:
        """The controller's own stages as they count: not at all if latencies are simulated."""
        return {} if self.simulated is not None else stages

    @torch.inference_mode()
    def look(self, sample: Sample) -> GlobalCrop:
        """Decodes the sample's image and runs its global crop through the vision encoder.

        Raises:
            DataError: the image is unusable; names the sample.
        """
        started = time.perf_counter()
        overview, device = self._prepared(sample).overview(), self.model.device
        staged_11PX = None if overview is None else staged_for(device, overview.crop[None])
        host_ms = (time.perf_counter() - started) * 1e3
        features_11PF = None
        with self.timeline.recorded() as stages:
            if staged_11PX is not None:
                with self.timeline.span("copy"):
                    crop_11PX = staged_11PX.to(device, non_blocking=True)
                with self.timeline.span("vision_global"):
                    features_11PF = self.model.vision.encoder.crop_features(crop_11PX)
        if "vision_global" in stages:
            self.pace.note(stages["vision_global"].ms)
        return GlobalCrop(features_11PF=features_11PF, host_ms=host_ms, stages=stages)

    @torch.inference_mode()
    def begin(
        self,
        sample: Sample,
        tier: Tier,
        budget_token_D: np.ndarray | None,
        seen: GlobalCrop | None = None,
        max_new_tokens: int | None = None,
    ) -> Prefix:
        """Preprocesses the sample for a tier, encodes the image and embeds; runs no block.

        Args:
            sample: the question and its image.
            tier: image tier.
            budget_token_D: the budget token, which enters block 0 after the text; None for none.
            seen: the sample's global crop, which is encoded once for all tiers; None encodes it.
            max_new_tokens: maximum length of its answers, if it is to be shorter than others.

        Raises:
            DataError: the sample's image or prompt is unusable; names the sample.
        """
        seen = seen or self.look(sample)
        started = time.perf_counter()
        device = self.model.device
        inputs = self._inputs(sample, tier, max_new_tokens).without_global_crop().staged_for(device)
        token_D = None if budget_token_D is None else self._staged(budget_token_D)
        host_ms = (time.perf_counter() - started) * 1e3
        with self.timeline.recorded() as stages:
            with self.timeline.span("copy"):
                inputs = inputs.to(device)
                if token_D is not None:
                    token_D = token_D.to(device, non_blocking=True)
            x_1TD = self._embed(inputs, seen)
        for name, elapsed in seen.stages.items():
            stages[name] = stages.get(name, Elapsed()) + elapsed
        return Prefix(
            inputs=inputs.without_image(),
            host_ms=seen.host_ms + host_ms,
            importance=self.importance_by_task.get(sample.task, self.importance),
            cache=self._new_cache(inputs, max_new_tokens),
            hidden={0: x_1TD},
            latency_tokens={} if token_D is None else {0: token_D},
            stages=stages,
        )

    def restart(self, prefix: Prefix) -> Prefix:
        """The same embedded prompt before its first block, to run without a budget token."""
        return prefix.restarted(self._new_cache(prefix.inputs))

    def _new_cache(self, inputs: ModelInputs, max_new_tokens: int | None = None) -> KVCache:
        return self.model.new_cache(len(inputs.token_ids) + self.limit(max_new_tokens))

    def limit(self, max_new_tokens: int | None) -> int:
        """Maximum length of an answer in tokens: the executor's, or a shorter one."""
        limit = self.config.max_new_tokens
        return limit if max_new_tokens is None else min(max_new_tokens, limit)

    def expect(self, prepared: PreparedSample) -> None:
        """Takes the inputs of a sample that was prepared in advance."""
        self._current = prepared

    def _prepared(self, sample: Sample) -> PreparedSample:
        if self._current is None or self._current.sample is not sample:
            self._current = PreparedSample(sample, self.preprocessor)
        return self._current

    def _inputs(self, sample: Sample, tier: Tier, max_new_tokens: int | None = None) -> ModelInputs:
        inputs = self._prepared(sample).inputs(tier)
        limit = self.runtime.max_tokens
        length = len(inputs.token_ids) + self.limit(max_new_tokens)
        if length > limit:
            raise DataError(
                f"sample {sample.id}: prompt and answer may take {length} tokens and there is room "
                f"for {limit}; shorten the prompt or lower max_new_tokens"
            )
        return inputs

    def _staged(self, values: np.ndarray) -> Tensor:
        """An array in the model's dtype, where the device can copy it from."""
        values_host = torch.from_numpy(np.array(values)).to(self.model.dtype)
        return staged_for(self.model.device, values_host)

    def _on_device(self, values: np.ndarray) -> Tensor:
        """A copy of an array in the model's dtype."""
        return self._staged(values).to(self.model.device, non_blocking=True)

    def _embed(self, inputs: ModelInputs, seen: GlobalCrop) -> Tensor:
        """Embeds the prompt; of the image, all crops but the one that was seen are encoded here."""
        timeline, vision = self.timeline, self.model.vision
        tokens_1CVD = idx_1CV = None
        if seen.features_11PF is not None:
            assert inputs.images is not None
            assert inputs.image_masks is not None
            assert inputs.image_input_idx is not None
            idx_1CV = inputs.image_input_idx[None]
            with timeline.span("vision_crops"):
                others_1CPF = vision.encoder.crop_features(inputs.images[None])
                features_1CPF = torch.cat([seen.features_11PF, others_1CPF], dim=1)
                pooled_1CVE = vision.encoder.pool(features_1CPF, inputs.image_masks[None])
            with timeline.span("projector"):
                tokens_1CVD = vision.projector(pooled_1CVE)
        with timeline.span("embed"):
            return self.model.embed(inputs.token_ids[None], tokens_1CVD, idx_1CV)

    @torch.inference_mode()
    def deepen(self, prefix: Prefix, position: int) -> None:
        """Runs the prompt, and its budget token, through the blocks before `position` it lacks."""
        model, timeline, start = self.model, self.timeline, prefix.depth
        if position <= start:
            return
        with timeline.recorded() as stages, module_hooks(timeline, block_modules(model)):
            with timeline.span(f"block_{start:02}"):
                rows_1SD = prefix.rows()
            rows_1SD = model.run_blocks(rows_1SD, start, position, cache=prefix.cache)
        prefix.keep(rows_1SD, position)
        prefix.stages.update(stages)

    @torch.inference_mode()
    def latency_tokens(self, prefix: Prefix, budget_tokens_KD: np.ndarray) -> np.ndarray:
        """What other budget tokens become after each block of a prefix, off the clock.

        Returns:
            float32 [K, depth, D].
        """
        tokens_KD = self._on_device(budget_tokens_KD)
        states = [
            torch.stack(list(token_states(self.model, prefix.cache, token_D, prefix.depth)))
            for token_D in tokens_KD
        ]
        return torch.stack(states).float().cpu().numpy()

    @torch.inference_mode()
    def advance(
        self,
        prefix: Prefix,
        knobs: Knobs,
        budget_ms: float | None = None,
        decoding: Decoding | None = None,
    ) -> Execution:
        """Runs the blocks from the insertion position on and decodes; the prefix stays reusable.

        Args:
            prefix: the prompt, run to `knobs.position` by `deepen`.
            knobs: the whole configuration.
            budget_ms: budget for `ExecutorConfig.repeats`; None never repeats.
            decoding: how the answer is decoded.

        Returns:
            The execution; its stages do not include the controller's.
        """
        decoding = decoding or Decoding()
        execution = self._advance_once(prefix, knobs, decoding)
        if self.config.repeats == 1 or budget_ms is None:
            return execution
        if abs(execution.latency_ms / budget_ms - 1) > self.config.repeat_band:
            return execution
        runs = [execution]
        runs += [
            self._advance_once(prefix, knobs, decoding) for _ in range(self.config.repeats - 1)
        ]
        return sorted(runs, key=lambda run: run.latency_ms)[len(runs) // 2]

    def _advance_once(self, prefix: Prefix, knobs: Knobs, decoding: Decoding) -> Execution:
        model, timeline, position = self.model, self.timeline, knobs.position
        num_layers = model.config.n_layers
        skipped = prefix.importance.skipped(position, knobs.num_blocks)
        top_k = [model.config.top_k] * position + [knobs.top_k] * (num_layers - position)
        num_tokens = len(prefix.inputs.token_ids)
        cache = self.runtime.fork(prefix.cache, num_tokens, range(position))
        token_ids: list[int] = []
        with timeline.recorded() as stages:
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
            for token_id in self.runtime.decode(
                first_id,
                cache,
                top_k=top_k,
                skipped=skipped,
                max_new_tokens=self.limit(decoding.max_new_tokens),
                timeline=timeline,
            ):
                token_ids.append(token_id)
                decoding.on_token(token_id)
        stages = {**prefix.stages_until(position), **stages}
        if self.simulated is not None:
            table_ms = self.simulated.latency_ms(knobs)
            stages = {"simulated": Elapsed(table_ms, table_ms)}
        total = self.total(stages)
        is_finished = token_ids[-1] == model.config.eos_token_id
        return Execution(
            knobs=knobs,
            answer=self.preprocessor.decode(token_ids[:-1] if is_finished else token_ids),
            num_output_tokens=len(token_ids),
            finished=is_finished,
            latency_ms=total.ms,
            wall_ms=total.wall_ms,
            stages_ms=in_ms(stages),
            host_ms=prefix.host_ms,
            num_vision_tokens=prefix.inputs.num_vision_tokens,
            num_text_tokens=prefix.inputs.num_text_tokens,
            tiling=prefix.inputs.tiling,
        )

    def total(self, stages: Stages) -> Elapsed:
        """The sum of all stages that count toward the budget."""
        counted = (
            elapsed
            for name, elapsed in stages.items()
            if not (self.config.prefill_only and name.startswith("decode"))
        )
        return sum(counted, Elapsed())

    def budget_gradient(
        self, prefix: Prefix, budget_token_D: np.ndarray, gradients: dict[int, np.ndarray]
    ) -> np.ndarray:
        """Vector-Jacobian product from latency tokens back to the budget token.

        Args:
            prefix: the prompt, run at least to the deepest position of `gradients`.
            budget_token_D: the token that entered block 0.
            gradients: dL/d(latency token) [D] by insertion position.

        Returns:
            dL/d(budget token), [D], in the gradients' dtype.
        """
        token_D = self._on_device(budget_token_D)
        return budget_token_vjp(self.model, prefix.cache, token_D, gradients)


def check_knobs_fit(config: MolmoEConfig) -> None:
    """Raises ValueError, naming the knob, for a model to which the knobs do not apply."""
    if config.n_layers != NUM_BLOCKS_TOTAL:
        raise ValueError(
            f"the knob num_blocks is made for {NUM_BLOCKS_TOTAL} decoder blocks and this model has "
            f"{config.n_layers}: give one of {NUM_BLOCKS_TOTAL}"
        )
    if config.top_k != FULL_TOP_K or config.num_experts < FULL_TOP_K:
        raise ValueError(
            f"the knob top_k is made for {FULL_TOP_K} experts per token and this model takes "
            f"{config.top_k} of {config.num_experts}: give one that takes {FULL_TOP_K}"
        )
