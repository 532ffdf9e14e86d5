"""A launcher that writes down which parts ran, in the place of CUDA graphs."""

from rollout.molmoe.static_cache import EMBED, HEAD, Part, PlainCalls


class Recorder(PlainCalls):
    """Runs the parts by plain calls and keeps their names, in order.

    Args:
        misbound: parts that run the work of another part, by name.
    """

    def __init__(self, misbound: dict[Part, Part] | None = None) -> None:
        self.ran: list[Part] = []
        self.misbound = misbound or {}

    def prepare(self, parts):
        super().prepare({name: parts[self.misbound.get(name, name)] for name in parts})

    def run(self, part):
        self.ran.append(part)
        super().run(part)

    def steps(self) -> list[list[Part]]:
        """The blocks and top-k of each step; every step begins with EMBED and ends with HEAD."""
        steps: list[list[Part]] = []
        for part in self.ran:
            if part == EMBED:
                assert not steps or self._is_whole(steps[-1])
                steps.append([])
            steps[-1].append(part)
        assert all(map(self._is_whole, steps))
        return [step[1:-1] for step in steps]

    @staticmethod
    def _is_whole(step: list[Part]) -> bool:
        return step[0] == EMBED and step[-1] == HEAD
