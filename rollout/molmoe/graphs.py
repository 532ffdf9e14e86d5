"""CUDA graphs of the parts of a decode step. The only module that needs a GPU to run."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from rollout.molmoe.static_cache import Part

WARM_UP_ROUNDS = 2
"""Plain runs of every part before it is captured, so that libraries have loaded their kernels."""


class CudaGraphs:
    """One CUDA graph per part, all in one memory pool; implements `static_cache.Launcher`.

    Parts hand nothing to each other but the decoder's buffers, which lie outside the pool, so they
    may share its memory in any order of replays.
    """

    runtime = "graphs"

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.num_bytes = 0
        self.capture_s = 0.0
        self._graphs: dict[Part, torch.cuda.CUDAGraph] = {}
        self._copies = [_TokenCopy(), _TokenCopy()]

    def prepare(self, parts: Mapping[Part, Callable[[], None]]) -> None:
        """Runs each part on a side stream, then captures it there."""
        started = time.perf_counter()
        with torch.cuda.device(self.device):
            free_before = self._free_bytes()
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_ROUNDS):
                    for work in parts.values():
                        work()
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.synchronize()
            pool = torch.cuda.graph_pool_handle()
            for part, work in parts.items():
                self._graphs[part] = self._captured(work, pool, stream)
            self.num_bytes = max(free_before - self._free_bytes(), 0)
        self.capture_s = time.perf_counter() - started

    def _captured(
        self, work: Callable[[], None], pool: tuple[int, int], stream: torch.cuda.Stream
    ) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as those that load samples, may continue with their own CUDA calls.
        options = {"pool": pool, "stream": stream, "capture_error_mode": "thread_local"}
        with torch.cuda.graph(graph, **options):
            work()
        return graph

    def _free_bytes(self) -> int:
        """Free memory of the device, without what torch merely caches."""
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]

    def run(self, part: Part) -> None:
        """Replays the graph of a part in the current stream."""
        self._graphs[part].replay()

    def send(self, token_id_1: Tensor) -> Callable[[], int]:
        """Copies the token after all that was launched so far; at most two copies are awaited."""
        self._copies.reverse()
        return self._copies[0].start(token_id_1)


class _TokenCopy:
    """A place in page-locked memory, and the event after which it can be read."""

    def __init__(self) -> None:
        self._host_1 = torch.zeros(1, dtype=torch.int64, pin_memory=True)
        self._done = torch.cuda.Event()

    def start(self, token_id_1: Tensor) -> Callable[[], int]:
        self._host_1.copy_(token_id_1, non_blocking=True)
        self._done.record()
        return self._read

    def _read(self) -> int:
        self._done.synchronize()
        return int(self._host_1)
