"""Hooks that time the frozen model's modules, and spans for the work between them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from envs.spec import Elapsed, Stages
from rollout.latency.clock import Clock, Mark
from rollout.molmoe import MolmoE


class Timeline:
    """Named spans between two marks, in the order in which they ended.

    The host's wall clock is read at every mark too. On CUDA the host runs ahead of the device and
    waits for it when times are read; the wait counts for the last span. The wall clock's figures
    are therefore meaningful only for whole episodes.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._spans: list[tuple[str, Mark, Mark]] = []

    def mark(self) -> Mark:
        """The present time, for `add`."""
        return self.clock.mark(), time.perf_counter_ns()

    def seen(self, mark: Mark) -> Mark:
        """A mark that the device has passed by now, with the present time as the host's."""
        return mark[0], time.perf_counter_ns()

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Times the `with` block; a block that raises leaves no span."""
        start = self.mark()
        yield
        self.add(name, start, self.mark())

    def add(self, name: str, start: Mark, end: Mark) -> None:
        """Adds a span whose ends are already marked."""
        self._spans.append((name, start, end))

    @contextmanager
    def recorded(self) -> Iterator[Stages]:
        """Gives the spans of the `with` block by name, once it has ended.

        Spans of one name are added up. A block that raises leaves none. Blocks do not nest.
        """
        stages: Stages = {}
        self._spans = []
        try:
            yield stages
            stages.update(self._read())
        finally:
            self._spans = []

    def _read(self) -> Stages:
        spans, stages = self._spans, Stages()
        if not spans:
            return stages
        reads = time.perf_counter_ns()
        times = self.clock.read_ms([(start[0], end[0]) for _, start, end in spans])
        waited_ms = (time.perf_counter_ns() - reads) / 1e6
        for (name, start, end), elapsed_ms in zip(spans, times, strict=True):
            elapsed = Elapsed(elapsed_ms, (end[1] - start[1]) / 1e6)
            stages[name] = stages.get(name, Elapsed()) + elapsed
        if self.clock.waits:
            stages[spans[-1][0]] += Elapsed(0.0, waited_ms)
        return stages


@contextmanager
def module_hooks(timeline: Timeline, modules: Iterable[tuple[str, nn.Module]]) -> Iterator[None]:
    """Records one span of the given name for every forward pass of each module.

    The hooks are removed when the `with` block ends, however it ends.
    """
    starts: dict[str, Mark] = {}
    mark = timeline.mark
    handles = []

    def attach(name: str, module: nn.Module) -> None:
        def before(_module: nn.Module, _args: object) -> None:
            starts[name] = mark()

        def after(_module: nn.Module, _args: object, _output: object) -> None:
            timeline.add(name, starts[name], mark())

        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(after))

    try:
        for name, module in modules:
            attach(name, module)
        yield
    finally:
        for handle in handles:
            handle.remove()


def block_modules(model: MolmoE) -> Iterator[tuple[str, nn.Module]]:
    """The decoder blocks, with the names of their stages."""
    for index, block in enumerate(model.blocks):
        yield f"block_{index:02}", block
