"""Measures the time saved by shared groups and the reliability of measured latencies.

    python -m benchmarks.episodes --samples 12 --groups 60

Sections: sum of the stages against the wall clock; overhead of the hooks; repeatability of three
fixed configurations; composed latencies of a shared group against unshared runs; speed of a shared
group of 8 against the two-pass flow of this project's first version, which shares nothing; the
vision encoder in two passes against one batch, also at the published size; cost of the
vector-Jacobian product; cost of the controller. All comparisons are interleaved, on one thread.
"""

import sys
from dataclasses import dataclass, field

from benchmarks.options import read_options
from envs.checks import check_within
from launch.cluster.console import check_first, one_clear_error
from rollout.executor_config import ExecutorConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodesConfig:
    """One measurement.

    Attributes:
        quick: tiny sizes, to see within a minute that it runs.
        model: the frozen model.
        samples: number of samples.
        groups: number of groups for composed latencies.
        repeats: number of runs of each of three configurations.
        pairs: number of runs of each sample with and without hooks.
        published_rounds: number of rounds of the encoder of the published size, of 20 s each.
        executor: answer length, budget scope, repeated measurements.
    """

    quick: bool = False
    model: str = "embedded"
    samples: int = 12
    groups: int = 60
    repeats: int = 50
    pairs: int = 12
    published_rounds: int = 5
    executor: ExecutorConfig = field(default_factory=lambda: ExecutorConfig(max_new_tokens=16))

    def __post_init__(self) -> None:
        check_within(self, "samples", "groups", "repeats", "pairs", "published_rounds", low=2)


QUICK = EpisodesConfig(quick=True, samples=2, groups=2, repeats=2, pairs=2, published_rounds=2)


if __name__ == "__main__":
    check_first(lambda: read_options(QUICK, __doc__))  # before the imports that take seconds

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.random_model import MINIATURE
from envs.spec import CHEAPEST_KNOBS, FULL_KNOBS, Execution, Knobs, Sample, Tier, all_knobs
from launch.cluster.progress import counted
from policy.config import ControllerConfig
from policy.controller import Controller, choose
from policy.stage1 import NUM_PLAIN
from rollout.build import build_worker
from rollout.executor import MolmoEExecutor
from rollout.group_sharing import MolmoEGroupSession, run_configurations
from rollout.molmoe import MolmoEConfig, generate
from rollout.molmoe.vision import ImageEncoder
from rollout.worker import RolloutWorker
from rollout.worker_config import WorkerConfig

MIDDLE = Knobs(tier=Tier.MEDIUM, position=2, top_k=6, num_blocks=14)


def milliseconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3


def spread(values: list[float], unit: str = "ms") -> str:
    """The median with quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} {unit} [{low:.3f} {high:.3f}]"


def median_interval(values_SR: np.ndarray) -> str:
    """The median with its 95 % bootstrap interval, from resampled rows, whose noise is shared."""
    rng, rows = np.random.default_rng(0), len(values_SR)
    medians = [np.median(values_SR[rng.integers(0, rows, rows)]) for _ in range(2000)]
    low, high = np.quantile(medians, (0.025, 0.975))
    return f"{np.median(values_SR):.3f}, 95 % interval {low:.3f} to {high:.3f}"


def interquartile(values: np.ndarray) -> float:
    """The interquartile range."""
    low, high = np.quantile(values, (0.25, 0.75))
    return float(high - low)


def token_of(executor: MolmoEExecutor, seed: int = 0) -> np.ndarray:
    """A random budget token, float32 [D]."""
    return np.random.default_rng(seed).normal(size=executor.d_model).astype(np.float32)


def run_group(
    executor: MolmoEExecutor, sample: Sample, members: list[Knobs]
) -> tuple[MolmoEGroupSession, list[Execution]]:
    """Runs a group that shares work; its members' executions come in their order."""
    group = MolmoEGroupSession(executor, sample)
    group.begin([(k.tier, k.position) for k in members], token_of(executor))
    done = group.finish([(k.top_k, k.num_blocks) for k in members])
    return group, [execution for execution in done if execution is not None]


def earlier_episode(executor: MolmoEExecutor, sample: Sample, knobs: Knobs, *, whole: bool) -> None:
    """One episode of the first version: a forward pass for the latency token, then the answer.

    The first pass runs through all blocks (`whole`), as a forward call of a published model does,
    or stops at the insertion position.
    """
    model = executor.model
    inputs = executor.preprocessor(sample.image, sample.prompt, knobs.tier.max_crops)
    token = torch.from_numpy(token_of(executor))[None, None]
    skipped = executor.importance.skipped(knobs.position, knobs.num_blocks)
    stop = model.config.n_layers if whole else knobs.position
    with torch.no_grad():
        x = torch.cat([model.embed_inputs(inputs), token], dim=1)
        model.run_blocks(x, 0, stop, cache=model.new_cache(x.shape[1]))
    top_k = [8] * knobs.position + [knobs.top_k] * (model.config.n_layers - knobs.position)
    limit = executor.config.max_new_tokens
    generate(model, inputs, max_new_tokens=limit, top_k=top_k, skipped=skipped)


def section_clock(worker: RolloutWorker, samples: list[Sample]) -> None:
    """The sum of the stages against the wall clock."""
    executor, ratios = worker.executor, []
    for sample in samples:
        for knobs in (FULL_KNOBS, MIDDLE, CHEAPEST_KNOBS):
            started = time.perf_counter()
            _, (execution,) = run_group(executor, sample, [knobs])
            wall_ms = (time.perf_counter() - started) * 1e3
            ratios.append((execution.wall_ms + execution.host_ms) / wall_ms)
    print(f"sum of stages and host work / wall clock of the episode: {spread(ratios, '')}")


def section_hooks(worker: RolloutWorker, samples: list[Sample], num_pairs: int) -> None:
    """What the hooks add to a full episode."""
    executor = worker.executor
    ratios = []
    for sample in counted(samples, "samples with and without hooks"):
        inputs = executor.preprocessor(sample.image, sample.prompt, 12)

        def bare(inputs=inputs) -> None:
            generate(executor.model, inputs, max_new_tokens=executor.config.max_new_tokens)

        def hooked(sample=sample) -> float:
            (execution,) = run_configurations(executor, sample, [FULL_KNOBS])
            return execution.wall_ms

        pairs = []
        for turn in range(num_pairs):
            if turn % 2:
                took, without = hooked(), milliseconds(bare)
            else:
                without, took = milliseconds(bare), hooked()
            pairs.append(100 * (took / without - 1))
        ratios.append(pairs)
    interval = median_interval(np.array(ratios))
    print(f"overhead of the hooks in a full episode, in per cent: {interval}")


def section_repeatability(worker: RolloutWorker, sample: Sample, repeats: int) -> None:
    """How much three fixed configurations vary on one sample."""
    runs: dict[Knobs, list[float]] = {k: [] for k in (CHEAPEST_KNOBS, MIDDLE, FULL_KNOBS)}
    for _ in counted(range(repeats), "repeats"):
        for knobs, values in runs.items():
            _, (execution,) = run_group(worker.executor, sample, [knobs])
            values.append(execution.latency_ms)
    for knobs, values in runs.items():
        median, cv = statistics.median(values), np.std(values) / np.mean(values)
        tail = float(np.quantile(values, 0.95)) / median
        print(
            f"{repeats} repeats of {knobs}: median {median:.2f} ms, CV {cv:.1%}, p95/p50 {tail:.3f}"
        )


def section_composed(worker: RolloutWorker, samples: list[Sample]) -> None:
    """Runs a shared group, then all members unshared, twice, so that the gaps in time are equal.

    Members of a group share the clock's noise in their common segments, so many groups are needed
    to compare spreads; intervals come from resampling groups.
    """
    rng, every, ratios, own = np.random.default_rng(0), list(all_knobs()), [], []
    for sample in counted(samples, "composed groups"):
        members = [every[i] for i in rng.integers(0, len(every), 8)]
        _, shared = run_group(worker.executor, sample, members)
        first, second = (
            [run_group(worker.executor, sample, [knobs])[1][0].latency_ms for knobs in members]
            for _ in range(2)
        )
        ratios.append([x.latency_ms / y for x, y in zip(shared, first, strict=True)])
        own.append([y / x for x, y in zip(first, second, strict=True)])
    ratios_SG, own_SG = np.array(ratios), np.array(own)
    rows = [rng.integers(0, len(samples), len(samples)) for _ in range(2000)]
    widths = [interquartile(ratios_SG[r]) / interquartile(own_SG[r]) for r in rows]
    low, high = np.quantile(widths, (0.025, 0.975))
    print(f"composed / unshared latency: {median_interval(ratios_SG)}")
    print(f"unshared / unshared latency (noise of the clock): {median_interval(own_SG)}")
    print(
        f"interquartile range, composed over unshared: {interquartile(ratios_SG):.3f} / "
        f"{interquartile(own_SG):.3f} = {interquartile(ratios_SG) / interquartile(own_SG):.2f}, "
        f"95 % interval {low:.2f} to {high:.2f}"
    )


def section_sharing(worker: RolloutWorker, samples: list[Sample]) -> None:
    """A shared group against the two-pass flow of this project's first version."""
    rng, every = np.random.default_rng(1), list(all_knobs())
    for name, distinct in (("uniform over 225", 225), ("three distinct", 3)):
        ratios: dict[bool, list[float]] = {True: [], False: []}
        rates = []
        for sample in counted(samples, f"shared groups, {name}"):
            pool = [every[i] for i in rng.choice(len(every), distinct, replace=False)]
            members = [pool[i] for i in rng.integers(0, distinct, 8)]
            if distinct < 8:
                members[:distinct] = pool  # so that each of them occurs
            shared = milliseconds(lambda s=sample, m=members: run_group(worker.executor, s, m))
            for whole in ratios:
                earlier = milliseconds(
                    lambda s=sample, m=members, w=whole: [
                        earlier_episode(worker.executor, s, k, whole=w) for k in m
                    ]
                )
                ratios[whole].append(earlier / shared)
            rates.append(8e3 / shared)
        print(
            f"group of 8, {name}: {spread(ratios[True], 'times')} the speed of the two-pass flow, "
            f"{spread(ratios[False], 'times')} if its first pass stops at the insertion position; "
            f"{spread(rates, 'episodes/s')}"
        )


def section_further_sharing(worker: RolloutWorker) -> None:
    """Counts the block runs saved if siblings also shared blocks up to the first differing one."""
    importance, rng, every = worker.executor.importance, np.random.default_rng(3), list(all_knobs())
    for name, distinct in (("uniform over 225", 225), ("three distinct", 3)):
        now = then = 0
        for _ in range(2000):
            pool = [every[i] for i in rng.choice(len(every), distinct, replace=False)]
            members = {pool[i] for i in rng.integers(0, distinct, 8)}
            families: dict[tuple, set[int]] = {}
            for k in members:
                families.setdefault((k.tier, k.position, k.top_k), set()).add(k.num_blocks)
            for (_, position, _), counts in families.items():
                runs = [
                    tuple(b for b in importance.kept(position, n) if b >= position) for n in counts
                ]
                now += sum(map(len, runs))
                then += len({run[: i + 1] for run in runs for i in range(len(run))})
        print(f"further sharing, {name}: {100 * (1 - then / now):.1f} % of block runs saved")


def section_vision(worker: RolloutWorker, samples: list[Sample]) -> None:
    """The encoder in two passes, global crop first, over one batch of all crops; then groups."""
    executor = worker.executor
    encoder = executor.model.vision.encoder
    seen = [sample for sample in samples if sample.image is not None]
    ratios: dict[str, list[float]] = {tier.name.lower(): [] for tier in Tier}
    ratios |= {"low and medium": [], "all three": []}
    for sample in seen * 3:
        inputs = [executor.preprocessor(sample.image, sample.prompt, t.max_crops) for t in Tier]
        crops = []
        for i in inputs:
            assert i.images is not None and i.image_masks is not None  # noqa: PT018
            crops.append((i.images[None], i.image_masks[None]))

        def whole(places: list[int], crops=crops) -> None:
            for place in places:
                encoder(*crops[place])

        def split(places: list[int], crops=crops) -> None:
            first = encoder.crop_features(crops[0][0][:, :1])
            for place in places:
                images, masks = crops[place]
                others = encoder.crop_features(images[:, 1:])
                encoder.pool(torch.cat([first, others], dim=1), masks)

        for name, places in zip(ratios, ([0], [1], [2], [0, 1], [0, 1, 2]), strict=True):
            calls = [lambda p=places: split(p), lambda p=places: whole(p)]
            times = [[milliseconds(call) for call in calls] for _ in range(3)]
            ours, theirs = np.median(times, axis=0)
            ratios[name].append(float(ours / theirs))
    for name, found in ratios.items():
        print(f"vision encoder, {name}: two passes over one batch {spread(found, '')}")


def section_random_vision(config: MolmoEConfig, rounds: int) -> None:
    """The same for four crops and an encoder of another size, with random weights."""
    torch.manual_seed(0)
    encoder = ImageEncoder(config).eval()
    images = torch.randn(1, 4, config.vision.grid**2, config.vision.patch_dim)
    masks = torch.ones(images.shape[:3])

    def split() -> None:
        crops = [encoder.crop_features(images[:, part]) for part in (slice(1), slice(1, None))]
        encoder.pool(torch.cat(crops, dim=1), masks)

    def whole() -> None:
        encoder(images, masks)

    ratios = []
    for turn in range(rounds):
        took: dict[Callable[[], None], float] = {}
        for call in (split, whole) if turn % 2 else (whole, split):
            started = time.thread_time()
            call()
            took[call] = time.thread_time() - started
        ratios.append(took[split] / took[whole])
    size = f"width {config.vision.dim}, random weights"
    print(f"vision encoder of {size}, low tier: {spread(ratios, '')}")


def section_gradient(worker: RolloutWorker, samples: list[Sample]) -> None:
    """The vector-Jacobian product as a share of its group's rollout."""
    rng, every, shares = np.random.default_rng(2), list(all_knobs()), []
    for sample in samples:
        members = [every[i] for i in rng.integers(0, len(every), 8)]
        started = time.perf_counter()
        group, _ = run_group(worker.executor, sample, members)
        episodes_ms = (time.perf_counter() - started) * 1e3
        gradients = rng.normal(size=(8, worker.executor.d_model)).astype(np.float32)
        group.budget_gradient(gradients)
        took = milliseconds(lambda g=group, x=gradients: g.budget_gradient(x))
        shares.append(100 * took / episodes_ms)
    print(f"vector-Jacobian product as a share of its group's rollout: {spread(shares, '%')}")


def section_controller(worker: RolloutWorker, samples: list[Sample]) -> None:
    """Both stages and the budget token, at this model's width and at the published one."""
    for d_model in (worker.executor.d_model, 2048):
        # The width of the published model's vision encoder is half of its own.
        width = worker.executor.image_dim if d_model < 2048 else 1024 + NUM_PLAIN
        config = ControllerConfig(
            d_model=d_model,
            image_dim=width,
            budget_low_ms=10,
            budget_high_ms=100,
            price_low=0.01,
            price_high=2.0,
        )
        controller = Controller(config).requires_grad_(False)
        feature, token = torch.randn(1, d_model), torch.randn(1, d_model)
        image = torch.randn(1, width)

        def stages(c=controller, f=feature, t=token, i=image) -> None:
            choose(c.stage1_logits(f, t, i))
            choose(c.stage2_logits(t, torch.tensor([0])))

        both = [milliseconds(stages) for _ in range(300)][50:]

        def encoder(c=controller) -> None:
            c.budget_tokens(torch.tensor([50.0]))

        encode = [milliseconds(encoder) for _ in range(300)]
        print(
            f"d_model {d_model}: both stages {spread(both)}, budget token {spread(encode[50:])}, "
            f"{controller.num_stage_weights()} weights in the stages"
        )
    medians = [run_group(worker.executor, sample, [MIDDLE])[1][0].latency_ms for sample in samples]
    print(f"for comparison, an episode of {MIDDLE}: {spread(medians)}")


def main() -> int:
    """Runs all sections."""
    options = read_options(QUICK, __doc__)
    worker = build_worker(WorkerConfig(model=options.model, executor=options.executor))
    torch.set_num_threads(1)
    worker.warm_up()
    many = [worker.tasks.sample("validation", index) for index in range(options.groups)]
    samples = many[: options.samples]
    section_clock(worker, samples)
    section_hooks(worker, samples, options.pairs)
    section_repeatability(worker, samples[0], options.repeats)
    section_composed(worker, many)
    section_sharing(worker, samples)
    section_further_sharing(worker)
    with torch.no_grad():
        section_vision(worker, samples)
        geometry = MINIATURE if options.quick else MolmoEConfig()
        section_random_vision(geometry, options.published_rounds)
    section_gradient(worker, samples)
    section_controller(worker, samples)
    return 0


if __name__ == "__main__":
    sys.exit(one_clear_error(main))
