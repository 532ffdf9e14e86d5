"""Loads, decodes, cuts and tokenises samples in threads, while the device computes earlier ones."""

from __future__ import annotations

import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor

from envs.spec import TIERS, DataError, Sample, Task, Tier
from rollout.molmoe import ModelInputs, Overview, Preprocessor


class PreparedSample:
    """A sample and its inputs, each made when first needed.

    Args:
        sample: the question and its image.
        preprocessor: turns them into inputs.
    """

    def __init__(self, sample: Sample, preprocessor: Preprocessor) -> None:
        self.sample = sample
        self._preprocessor = preprocessor
        self._overview: Overview | None = None
        self._has_overview = False
        self._inputs: dict[Tier, ModelInputs] = {}

    def overview(self) -> Overview | None:
        """The decoded image and its global crop; None for text alone.

        Raises:
            DataError: the image is unusable; names the sample.
        """
        if not self._has_overview:
            try:
                self._overview = self._preprocessor.overview(self.sample.image)
            except ValueError as error:
                raise DataError(f"sample {self.sample.id}: {error}") from None
            self._has_overview = True
        return self._overview

    def inputs(self, tier: Tier) -> ModelInputs:
        """The inputs at a tier.

        Raises:
            DataError: the image or the prompt is unusable; names the sample.
        """
        if tier not in self._inputs:
            overview = self.overview()
            try:
                self._inputs[tier] = self._preprocessor.at_tier(overview, self.sample.prompt, tier)
            except ValueError as error:
                raise DataError(f"sample {self.sample.id}: {error}") from None
        return self._inputs[tier]


class SampleLoader:
    """Samples by their place, prepared in advance if requested.

    Args:
        tasks: source of samples.
        preprocessor: turns them into inputs.
        num_threads: number of threads that prepare samples; 0 prepares none in advance.
    """

    def __init__(self, tasks: Task, preprocessor: Preprocessor, num_threads: int = 0) -> None:
        self.tasks = tasks
        self.preprocessor = preprocessor
        self.num_threads = num_threads
        self.waited_s = 0.0
        """Time that `load` took so far: what was not prepared in time."""
        self._pool = ThreadPoolExecutor(num_threads, "loading") if num_threads else None
        self._pending: OrderedDict[tuple[str, int], Future[PreparedSample]] = OrderedDict()

    def prepare(self, split: str, index: int) -> None:
        """Starts to prepare a sample at every tier; the oldest ones not taken are dropped.

        Called from any thread. An unusable sample raises when it is loaded, not here.
        """
        place = (split, index)
        if self._pool is None or place in self._pending:
            return
        self._pending[place] = self._pool.submit(self._prepared, split, index)
        while len(self._pending) > 2 * self.num_threads:
            self._pending.popitem(last=False)[1].cancel()

    def load(self, split: str, index: int) -> PreparedSample:
        """The sample of (split, index), prepared or not.

        Raises:
            DataError: it is unusable.
        """
        started = time.perf_counter()
        pending = self._pending.pop((split, index), None)
        try:
            if pending is not None:
                return pending.result()
            return PreparedSample(self.tasks.sample(split, index), self.preprocessor)
        finally:
            self.waited_s += time.perf_counter() - started

    def _prepared(self, split: str, index: int) -> PreparedSample:
        prepared = PreparedSample(self.tasks.sample(split, index), self.preprocessor)
        for tier in TIERS:
            prepared.inputs(tier)
        return prepared
