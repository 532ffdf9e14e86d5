"""The work of one rollout actor as a plain class: requests in, records out.

Shapes: G members, D d_model.
"""

from __future__ import annotations

import logging
import math
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import torch

from envs.calibration import CALIBRATION_SPLIT, Calibration, SteadyTime
from envs.scoring import score_of
from envs.spec import (
    CHEAPEST_KNOBS,
    FULL_KNOBS,
    POSITIONS,
    TIERS,
    Execution,
    Knobs,
    Sample,
    Task,
)
from envs.tasks import SPLITS, DataError, Mixture
from envs.terms import Terms
from policy.config import PolicySetup
from policy.controller import Controller
from policy.weights import PolicyWeights
from rollout.executor import MolmoEExecutor
from rollout.fingerprint import Fingerprint
from rollout.fleet import MAX_REPLACEMENTS, substitute
from rollout.group_rollout import GroupRollout
from rollout.group_sharing import MolmoEGroupSession, run_configurations
from rollout.latency.clock import DeviceFacts
from rollout.latency.drift import FollowedTime
from rollout.profiling.records import ProfileRecord
from rollout.requests import (
    AnyRequest,
    FailedGroup,
    GradientRequest,
    GreedyRequest,
    GroupRequest,
    Prefixes,
    PrefixRequest,
    ScoreRequest,
)
from rollout.run_group import FinishedGroup, Member, run_group
from rollout.sample_loader import SampleLoader
from rollout.scoring import Scorer
from rollout.worker_config import KEPT_GROUPS_MIB

log = logging.getLogger(__name__)


def member_generators(request: GroupRequest, sample_id: str) -> list[torch.Generator]:
    """One generator per member, seeded by (run seed, step, sample id, member) alone."""
    base = [request.run_seed, request.step, zlib.crc32(sample_id.encode())]
    return [
        torch.Generator().manual_seed(
            int(np.random.SeedSequence([*base, member]).generate_state(1)[0])
        )
        for member in range(request.group_size)
    ]


class RolloutWorker:
    """One frozen model with its tasks; the policy comes with each call.

    Args:
        executor: the frozen model.
        tasks: source of samples and scores.
        name: name of the worker in the run.
        kept_groups_mib: memory in MiB for groups that wait for their gradient.
        loader_threads: number of threads that prepare the next samples.
    """

    def __init__(
        self,
        executor: MolmoEExecutor,
        tasks: Task,
        name: str = "local",
        kept_groups_mib: int = KEPT_GROUPS_MIB,
        loader_threads: int = 0,
    ) -> None:
        self.executor, self.scorer = executor, Scorer(executor)
        self.loader = SampleLoader(tasks, executor.preprocessor, loader_threads)
        self.name = name
        self.kept_bytes = kept_groups_mib * 2**20
        self.incarnation = 0
        self._setup: PolicySetup | None = None
        self._controller: Controller | None = None
        self._weights = (-1, "")
        self._present: dict[Calibration, FollowedTime] = {}
        self._kept: OrderedDict[int, MolmoEGroupSession] = OrderedDict()

    @property
    def tasks(self) -> Task:
        """Source of samples and scores."""
        return self.loader.tasks

    def _load(self, split: str, index: int) -> Sample:
        """The sample of (split, index), with its inputs prepared if that was requested in time."""
        prepared = self.loader.load(split, index)
        self.executor.expect(prepared)
        return prepared.sample

    def install(self, setup: PolicySetup, weights: PolicyWeights) -> None:
        """Builds the controller if the setup is new, and loads the weights if they are new.

        Raises:
            ValueError: the weights are damaged or do not fit.
        """
        if setup != self._setup:
            controller = Controller(setup.controller).requires_grad_(False)
            controller.check_compatible(
                d_model=self.executor.d_model, image_dim=self.executor.image_dim
            )
            self._controller = controller.to(self.executor.model.device)
            self._setup, self._weights = setup, (-1, "")
        if (weights.version, weights.sha256) != self._weights:
            weights.check()
            assert self._controller is not None
            self._controller.load_numpy(weights.arrays)
            self._weights = (weights.version, weights.sha256)

    def present_time(self, calibration: Calibration | None) -> FollowedTime | SteadyTime:
        """The present time of this device by a calibration.

        Without a calibration, and where latencies are simulated, nothing drifts.
        """
        if calibration is None or self.executor.simulated is not None:
            return SteadyTime()
        if calibration not in self._present:
            self._present[calibration] = FollowedTime(calibration, self._probe, self.executor.pace)
        return self._present[calibration]

    def _probe(self, number: int) -> tuple[float, float]:
        cheapest, full = self.extreme_latencies(CALIBRATION_SPLIT, number)
        return cheapest, full

    def has(self, setup: PolicySetup, version: int, sha256: str) -> bool:
        """Whether these weights are already installed."""
        return setup == self._setup and (version, sha256) == self._weights

    def rollout(self, request: GroupRequest) -> GroupRollout | FailedGroup:
        """Runs one group with the installed policy; an unusable sample gives a FailedGroup."""
        result = self._run(request, lambda sample: member_generators(request, sample.id))
        if isinstance(result, FailedGroup):
            return result
        finished, record = result
        session = finished.group.session
        assert isinstance(session, MolmoEGroupSession)
        self._keep(request.group_id, session)
        return record

    def greedy(self, request: GreedyRequest) -> GroupRollout | FailedGroup:
        """Runs one episode with the installed policy's most likely choices."""
        result = self._run(request, lambda _sample: (None,))
        return result if isinstance(result, FailedGroup) else result[1]

    def _run(
        self, request: AnyRequest, members: Callable[[Sample], Sequence[Member]]
    ) -> tuple[FinishedGroup, GroupRollout] | FailedGroup:
        assert self._controller is not None, "install a policy first"
        assert self._setup is not None
        present = self._follow(self._setup.calibration)
        try:
            sample = self._load(request.split, request.index)
            finished = run_group(
                self.executor,
                self._controller,
                present,
                sample,
                Terms(budget_ms=request.budget_ms, price=request.price),
                members(sample),
            )
            return finished, self._record(request, finished)
        except DataError as error:
            return FailedGroup(group_id=request.group_id, reason=str(error))

    def _record(self, request: AnyRequest, finished: FinishedGroup) -> GroupRollout:
        """What is sent of a group; its answers are scored here."""
        group, outcomes = finished.group, finished.outcomes
        sample, (version, sha256) = group.sample, self._weights
        executions = [outcome.execution for outcome in outcomes]
        answers = tuple(execution.answer for execution in executions)
        scores = [score_of(self.tasks, sample, answer) for answer in answers]
        return GroupRollout(
            group_id=request.group_id,
            split=request.split,
            index=request.index,
            sample_id=sample.id,
            task=sample.task,
            budget_ms=request.budget_ms,
            price=request.price,
            policy_version=version,
            policy_sha256=sha256,
            budget_token=finished.budget_token,
            language_feature=finished.features.language,
            image_feature=finished.features.image,
            actions=finished.actions,
            log_probs=finished.log_probs,
            latency_tokens=finished.latency_tokens,
            scores=np.array(scores, dtype=np.float32),
            latencies_ms=np.array([outcome.latency_ms for outcome in outcomes]),
            feasible=group.is_feasible(),
            clock=self.executor.clock_name,
            device_budget_ms=group.device_budget_ms,
            device_ms=np.array([outcome.device_ms for outcome in outcomes]),
            wall_ms=np.array([outcome.wall_ms for outcome in outcomes]),
            num_text_tokens=executions[0].num_text_tokens,
            num_vision_tokens=np.array([e.num_vision_tokens for e in executions]),
            num_output_tokens=np.array([e.num_output_tokens for e in executions]),
            tilings=tuple(execution.tiling for execution in executions),
            answers=answers,
            stages_ms=tuple(outcome.stages_ms for outcome in outcomes),
            actor=self.name,
            incarnation=self.incarnation,
        )

    def score(self, request: ScoreRequest) -> np.ndarray:
        """Scores configurations of some samples, float32 [S, E]; no latency is measured.

        Scores of a sample that cannot be used or scored are not a number.
        """
        samples, asked = {}, []
        for row, (index, actions_E4) in enumerate(
            zip(request.indices, request.actions_SE4, strict=True)
        ):
            try:
                sample = self._load(request.split, index)
                prefixes = self.scorer.embedded(sample, actions_E4)
            except DataError as error:
                log.warning("not scored: %s", error)
                continue
            samples[row] = sample
            asked += prefixes
        answers, num_each = self.scorer.answers(asked), request.actions_SE4.shape[1]
        scores_SE = np.full(request.actions_SE4.shape[:2], np.nan, np.float32)
        for number, (row, sample) in enumerate(samples.items()):
            own = answers[number * num_each : (number + 1) * num_each]
            try:
                scores_SE[row] = [score_of(self.tasks, sample, answer) for answer in own]
            except DataError as error:
                log.warning("not scored: %s", error)
        return scores_SE

    def budget_gradient(self, request: GradientRequest) -> np.ndarray:
        """Maps dL/d(latency token) of a group to dL/d(budget token), [D].

        A group that this worker did not run, or did not keep, is prefilled again.
        """
        group, token_D = self._kept.get(request.group_id), request.budget_token_D
        if group is None or group.budget_token_D is None or (group.budget_token_D != token_D).any():
            sample = self._load(request.split, request.index)
            group = MolmoEGroupSession(self.executor, sample)
            stage1 = [(TIERS[t], POSITIONS[p]) for t, p, *_ in request.actions_G4]
            group.begin(stage1, request.budget_token_D)
            self._keep(request.group_id, group)
        return group.budget_gradient(request.gradients_GD)

    def execute(self, knobs: Knobs, split: str, index: int) -> tuple[Execution, float]:
        """Runs one configuration on one sample, without a controller: execution and score."""
        sample = self._load(split, index)
        (execution,) = run_configurations(self.executor, sample, [knobs])
        return execution, score_of(self.tasks, sample, execution.answer)

    def extreme_latencies(self, split: str, index: int) -> list[float]:
        """Latencies in ms of the cheapest and the full configuration on one sample."""
        return self._latencies_ms((CHEAPEST_KNOBS, FULL_KNOBS), split, index)

    def _latencies_ms(self, configurations: Sequence[Knobs], split: str, index: int) -> list[float]:
        """Latencies of configurations, on another sample in place of an unusable one.

        Raises:
            DataError: MAX_REPLACEMENTS samples in a row are unusable.
        """
        place, attempts = index, 0
        while True:
            try:
                return [self.execute(k, split, place)[0].latency_ms for k in configurations]
            except DataError as error:
                attempts += 1
                if attempts > MAX_REPLACEMENTS:
                    raise
                log.warning("measured on another sample: %s", error)
                place = substitute(index, attempts)

    def cheapest_ms(
        self, split: str, index: int, repeats: int, calibration: Calibration | None
    ) -> list[float]:
        """Latencies of the cheapest configuration on one sample, in calibrated ms.

        They are not a number if the sample is unusable.
        """
        present = self._follow(calibration)
        try:
            runs = [self.execute(CHEAPEST_KNOBS, split, index)[0] for _ in range(repeats)]
        except DataError as error:
            log.warning("left out: %s", error)
            return [math.nan] * repeats
        return [present.to_calibrated(run.latency_ms) for run in runs]

    def profile(
        self,
        configurations: Sequence[Knobs],
        split: str,
        index: int,
        calibration: Calibration | None = None,
    ) -> list[ProfileRecord]:
        """Runs many configurations on one sample; work that they share is done once.

        There are no records of a sample that is unusable.
        """
        present = self._follow(calibration)
        try:
            sample = self._load(split, index)
            executions = run_configurations(self.executor, sample, configurations)
            scores = [score_of(self.tasks, sample, e.answer) for e in executions]
        except DataError as error:
            log.warning("left out: %s", error)
            return []
        return [
            ProfileRecord.of(
                sample,
                execution,
                score,
                clock=self.executor.clock_name,
                calibrated_ms=present.to_calibrated(execution.latency_ms),
            )
            for execution, score in zip(executions, scores, strict=True)
        ]

    def prefixes(self, request: PrefixRequest) -> Prefixes:
        """The controller's inputs for one sample; no answer is decoded."""
        sample = self._load(request.split, request.index)
        group = MolmoEGroupSession(self.executor, sample)
        features, _ = group.features()
        group.begin([(tier, max(POSITIONS)) for tier in TIERS], None)
        tokens = [
            self.executor.latency_tokens(group.prefixes[tier], request.budget_tokens_KD)
            for tier in TIERS
        ]
        return Prefixes(features=features, latency_tokens=np.stack(tokens, axis=1))

    def warm_up(self, rounds: int = 2) -> None:
        """Runs cheap and full configurations at every tier; their times are discarded."""
        for index in range(rounds):
            for tier in TIERS:
                for knobs in (FULL_KNOBS, CHEAPEST_KNOBS):
                    chosen = Knobs(
                        tier=tier,
                        position=knobs.position,
                        top_k=knobs.top_k,
                        num_blocks=knobs.num_blocks,
                    )
                    self._latencies_ms((chosen,), self._warm_split, index)
        self.executor.pace.reset()  # it was taken while the device was cold

    def reference_latency_ms(self, repeats: int = 5) -> float:
        """Median latency of the full configuration on one fixed sample."""
        runs = self._latencies_ms((FULL_KNOBS,) * repeats, self._warm_split, 0)
        return float(np.median(runs))

    def facts(self) -> DeviceFacts:
        """Device, dtype, torch version and thread count of this worker."""
        return self.executor.device_facts()

    def fingerprint(self) -> Fingerprint:
        """The fingerprint of model, tasks and device; slow, because it reads all weights."""
        return Fingerprint.of(self.executor, self.tasks)

    def census(self) -> dict[str, dict[str, int]]:
        """Samples of each data set by split, and those dropped because of a shared picture."""
        return self.tasks.census() if isinstance(self.tasks, Mixture) else {}

    @property
    def _warm_split(self) -> str:
        """The split on which the worker warms up: the first one that has samples."""
        if not isinstance(self.tasks, Mixture):
            return SPLITS[0]
        return next(filter(self.tasks.has_samples, SPLITS), SPLITS[0])

    def _follow(self, calibration: Calibration | None) -> FollowedTime | SteadyTime:
        """The present time by a calibration, after a probe if one is due."""
        present = self.present_time(calibration)
        if isinstance(present, FollowedTime):
            present.follow()
        return present

    def _keep(self, group_id: int, group: MolmoEGroupSession) -> None:
        """Keeps a group for its gradient and drops the oldest ones if memory is short."""
        group.trim()
        self._kept.pop(group_id, None)
        room = self.kept_bytes - group.num_bytes
        if room < 0:
            return
        while sum(kept.num_bytes for kept in self._kept.values()) > room:
            self._kept.popitem(last=False)
        self._kept[group_id] = group
