"""CUDA graphs: on a stand-in for torch.cuda everywhere, and on a GPU where there is one."""

from contextlib import contextmanager

import pytest
import torch

from rollout.molmoe import MolmoEConfig
from rollout.molmoe.graphs import WARM_UP_ROUNDS, CudaGraphs
from rollout.molmoe.static_cache import HEAD, FixedShapeDecoder, PlainCalls
from tests.rollout.molmoe.tiny import TINY, random_model

TOP_KS = (2, 4)
ROUTE = [(0, 4), (1, 2), (3, 2)]


def decoded(decoder: FixedShapeDecoder, length: int = 8) -> list[int]:
    """Token ids of a text prompt, decoded through ROUTE; each is read one step late."""
    model = decoder.model
    prompt = torch.tensor([[5, 9, 2, 33, 17, 4, 8]], device=model.device)
    empty = model.new_cache(prompt.shape[1])
    cache = decoder.fork(empty, 0, ())
    top_k = [4, 2, 2, 2]
    with torch.no_grad():
        x = model.run_blocks(model.embed(prompt), 0, 4, cache=cache, top_k=top_k, skipped=(2,))
        first = model.logits(x[:, -1]).argmax(-1)
        decoder.start(first, prompt.shape[1])
        tokens, arriving = [], decoder.launcher.send(first)
        for _ in range(length):
            decoder.step(ROUTE)
            following = decoder.launcher.send(decoder.token_1)
            tokens.append(arriving())
            arriving = following
    return tokens


class Stub:
    """torch.cuda's part that `CudaGraphs` uses, on a CPU: a graph repeats the captured calls."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.capturing = None
        stub = self

        class Graph:
            def __init__(self):
                self.calls = []

            def replay(self):
                stub.log.append("replay")
                for call in self.calls:
                    call()

        class Stream:
            def wait_stream(self, other):
                stub.log.append("wait")

        class Event:
            def record(self):
                stub.log.append("record")

            def synchronize(self):
                stub.log.append("read")

        self.CUDAGraph, self.Stream, self.Event = Graph, Stream, Event

    @contextmanager
    def device(self, device):
        yield

    @contextmanager
    def stream(self, stream):
        yield

    @contextmanager
    def graph(self, graph, *, pool, stream, capture_error_mode):
        assert pool == (0, 1)
        assert capture_error_mode == "thread_local"
        self.capturing = graph
        self.log.append("capture")
        yield
        self.capturing = None

    def current_stream(self):
        return self.Stream()

    def graph_pool_handle(self):
        return (0, 1)

    def mem_get_info(self):
        return (10_000 - 100 * self.log.count("capture"), 20_000)

    def synchronize(self):
        pass

    empty_cache = synchronize


class StubbedGraphs(CudaGraphs):
    """Lets the stub's graphs know the work that is captured."""

    def _captured(self, work, pool, stream):
        graph = super()._captured(work, pool, stream)
        graph.calls.append(work)
        return graph


@pytest.fixture
def stub(monkeypatch):
    stub, zeros = Stub(), torch.zeros
    monkeypatch.setattr("rollout.molmoe.graphs.torch.cuda", stub)

    def unpinned(*sizes, pin_memory=False, **options):
        return zeros(*sizes, **options)

    monkeypatch.setattr("rollout.molmoe.graphs.torch.zeros", unpinned)
    return stub


def test_graphs_on_a_stand_in_for_cuda(stub):
    model = random_model(TINY)
    expected = decoded(FixedShapeDecoder(model, TOP_KS, 40, PlainCalls()))
    graphs = StubbedGraphs(torch.device("cuda", 0))
    decoder = FixedShapeDecoder(model, TOP_KS, 40, graphs)
    num_parts = 4 * len(TOP_KS) + 2
    assert stub.log.count("capture") == num_parts
    assert graphs.num_bytes == 100 * num_parts
    assert decoder.position_1.item() == 0, "warm-up leaves nothing behind"
    assert WARM_UP_ROUNDS > 0
    stub.log.clear()
    assert decoded(decoder) == expected
    step = ["replay"] * (len(ROUTE) + 2) + ["record", "read"]
    assert stub.log == ["record", *step * len(expected)], "a token is read after the next launch"


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture(scope="module")
def models():
    config = MolmoEConfig(
        n_layers=4,
        embedding_size=512,
        num_experts=16,
        vit_layers=TINY.vit_layers,
        vision=TINY.vision,
    )
    model = random_model(config).to("cuda", torch.bfloat16)
    graphs = CudaGraphs(model.device)
    replayed = FixedShapeDecoder(model, TOP_KS, 100, graphs)
    return FixedShapeDecoder(model, TOP_KS, 100, PlainCalls()), replayed


@pytest.mark.gpu
@needs_gpu
def test_graphs_decode_what_plain_calls_do(models):
    plain, replayed = models
    assert decoded(replayed, 40) == decoded(plain, 40)
    assert decoded(replayed, 40) == decoded(plain, 40), "again, from the same memory"


@pytest.mark.gpu
@needs_gpu
def test_every_graph_is_bound_to_its_own_part(models):
    parts = [*((b, k) for b in range(4) for k in TOP_KS), HEAD]
    outcomes = []
    for decoder in models:
        generator = torch.Generator("cuda").manual_seed(0)
        start = torch.randn(1, 2048, generator=generator, device="cuda", dtype=torch.bfloat16)
        states = []
        for part in parts:
            decoder.start(torch.tensor([3], device="cuda"), 5)
            decoder.launcher.run("embed")
            decoder.x_1D.copy_(start)
            decoder.launcher.run(part)
            states.append((decoder.x_1D.clone(), decoder.token_1.clone()))
        outcomes.append(states)
    for part, mine, theirs in zip(parts, *outcomes, strict=True):
        assert all(map(torch.equal, mine, theirs)), part
    xs = [x for x, _ in outcomes[0][:-1]]
    assert not any(torch.equal(a, b) for i, a in enumerate(xs) for b in xs[:i])


@pytest.mark.gpu
@needs_gpu
def test_memory_of_graphs_is_known_and_stays_where_it_is(models):
    _, replayed = models
    before = [buffer.data_ptr() for buffer in replayed.buffers()]
    decoded(replayed)
    assert [buffer.data_ptr() for buffer in replayed.buffers()] == before
    assert replayed.launcher.num_bytes > 0
    assert replayed.launcher.capture_s > 0
