"""How the frozen model decodes: the growing cache, or a fixed shape in CUDA graphs.

Latencies of two runtimes are not comparable: launched one by one, the kernels of one token cost a
GPU's host more time than the GPU, regardless of the top-k. So the runtime's name is part of every
profile and checkpoint.

Shapes: D d_model.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Protocol

from torch import Tensor

from envs.spec import TOP_KS
from rollout.latency.clock import Mark
from rollout.latency.hooks import Timeline
from rollout.molmoe import MolmoE
from rollout.molmoe.cache import KVCache
from rollout.molmoe.generation import greedy_tokens
from rollout.molmoe.graphs import CudaGraphs
from rollout.molmoe.static_cache import FixedShapeDecoder, Launcher, capacity_for

log = logging.getLogger(__name__)


class Runtime(Protocol):
    """Decodes answers after a prefill, with each step timed."""

    @property
    def name(self) -> str:
        """The name that profiles and checkpoints carry."""
        ...

    @property
    def max_tokens(self) -> int:
        """Largest number of tokens of a prompt and its answer."""
        ...

    @property
    def num_bytes(self) -> int:
        """Memory on the device that is taken once, for all answers."""
        ...

    def fork(self, cache: KVCache, num_tokens: int, blocks: Iterable[int]) -> KVCache:
        """A cache with the first tokens of some blocks, for the rest of a prefill and `decode`."""
        ...

    def decode(
        self,
        first_id_1: Tensor,
        cache: KVCache,
        *,
        top_k: Sequence[int],
        skipped: Collection[int],
        max_new_tokens: int,
        timeline: Timeline,
    ) -> Iterator[int]:
        """Yields the answer's token ids, the end-of-sequence token included if it was reached.

        Args:
            first_id_1: the first token, from the prefill.
            cache: what `fork` returned, after the whole prompt has passed all blocks that run.
            top_k: experts per token of every block of the model.
            skipped: blocks that do not run.
            max_new_tokens: maximum length of the answer, in tokens.
            timeline: receives one span `decode_NN` for each token after the first.
        """
        ...


def runtime_for(model: MolmoE, max_new_tokens: int, max_crops: int | None = None) -> Runtime:
    """The runtime of a device: graphs on CUDA, the growing cache elsewhere.

    Attention over a fixed capacity and copied expert weights would make a CPU slower, and it does
    not wait for launches.
    """
    if model.device.type == "cuda":
        return FixedShapeRuntime(model, max_new_tokens, CudaGraphs(model.device), max_crops)
    return EagerRuntime(model)


class EagerRuntime:
    """Every operation is launched by itself, and the cache grows with the answer.

    Args:
        model: the frozen model.
    """

    name = "eager"
    num_bytes = 0

    def __init__(self, model: MolmoE) -> None:
        self.model = model
        self.max_tokens = model.config.max_position_embeddings

    def fork(self, cache: KVCache, num_tokens: int, blocks: Iterable[int]) -> KVCache:
        """See `Runtime.fork`."""
        return cache.fork(num_tokens, blocks)

    def decode(
        self,
        first_id_1: Tensor,
        cache: KVCache,
        *,
        top_k: Sequence[int],
        skipped: Collection[int],
        max_new_tokens: int,
        timeline: Timeline,
    ) -> Iterator[int]:
        """See `Runtime.decode`."""
        steps = greedy_tokens(
            self.model,
            first_id_1,
            cache,
            max_new_tokens=max_new_tokens,
            top_k=top_k,
            skipped=skipped,
        )
        start = timeline.mark()
        for number, token_id in enumerate(steps):
            end = timeline.mark()
            timeline.add(_stage(number), start, end)
            yield token_id
            start = end


class FixedShapeRuntime:
    """Steps of a fixed shape; each is launched before the token of the last one is read.

    The end of an answer is therefore found one step late. That step is not charged.

    Args:
        model: the frozen model.
        max_new_tokens: length of an answer for which there is room after any prompt, in tokens.
        launcher: prepares and runs the parts of a step.
        max_crops: largest number of an image's crops; by default the model's.
    """

    def __init__(
        self,
        model: MolmoE,
        max_new_tokens: int,
        launcher: Launcher,
        max_crops: int | None = None,
    ) -> None:
        self.model, self.launcher = model, launcher
        self.max_tokens = capacity_for(model.config, max_new_tokens, max_crops)
        started = time.perf_counter()
        self.decoder = FixedShapeDecoder(model, TOP_KS, self.max_tokens, launcher)
        log.info(
            "runtime %s: prepared in %.1f s, %.0f MiB of buffers for %d tokens, %.0f MiB of graphs",
            self.name,
            time.perf_counter() - started,
            self.decoder.num_bytes / 2**20,
            self.max_tokens,
            launcher.num_bytes / 2**20,
        )

    @property
    def name(self) -> str:
        """The launcher's name for it."""
        return self.launcher.runtime

    @property
    def num_bytes(self) -> int:
        """Memory of the buffers and of the graphs."""
        return self.decoder.num_bytes + self.launcher.num_bytes

    def fork(self, cache: KVCache, num_tokens: int, blocks: Iterable[int]) -> KVCache:
        """See `Runtime.fork`; there is one such cache at a time."""
        return self.decoder.fork(cache, num_tokens, blocks)

    def decode(
        self,
        first_id_1: Tensor,
        cache: KVCache,
        *,
        top_k: Sequence[int],
        skipped: Collection[int],
        max_new_tokens: int,
        timeline: Timeline,
    ) -> Iterator[int]:
        """See `Runtime.decode`."""
        running = [(block, top_k[block]) for block in range(len(top_k)) if block not in skipped]
        self.decoder.start(first_id_1, cache.length(running[0][0]))
        start = timeline.mark()
        arriving, end = self.launcher.send(first_id_1), timeline.mark()
        for number in range(max_new_tokens):
            is_last = number + 1 == max_new_tokens
            following = None if is_last else self._launch(running, timeline)
            token_id = arriving()
            end = timeline.seen(end)
            timeline.add(_stage(number), start, end)
            yield token_id
            if following is None or token_id == self.model.config.eos_token_id:
                return
            start, (arriving, end) = end, following

    def _launch(
        self, running: Sequence[tuple[int, int]], timeline: Timeline
    ) -> tuple[Callable[[], int], Mark]:
        """Launches a step: what waits for its token, and the mark of its end."""
        self.decoder.step(running)
        return self.launcher.send(self.decoder.token_1), timeline.mark()


def _stage(number: int) -> str:
    """The stage of a token; the first is part of the prefill and costs its read."""
    return f"decode_{number:02}" if number else "head"
