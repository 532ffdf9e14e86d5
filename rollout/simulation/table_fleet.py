"""An environment with a known optimum: episodes from a profile table instead of a running model.

`TableFleet` replaces the actors in the training loop. Scores and latencies come from measurements
of every configuration on every sample; the latency token comes from a fixed random network in
place of the frozen blocks, and gradients through it are exact. Everything else (the loop, the
controller, the learner and the rewards) is the same as in a real run.

Shapes: N groups, G members, B = N G episodes, D d_model, 4 heads, I length of the image feature,
K budgets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from envs.calibration import Calibration, PresentTime, SteadyTime
from envs.spec import HEADS, POSITIONS, TIERS
from policy.config import PolicySetup
from policy.controller import Controller, choose
from policy.weights import PolicyWeights
from rollout.fleet import FleetStats
from rollout.group_rollout import GroupRollout
from rollout.profiling.profile_table import ProfileTable
from rollout.requests import (
    AnyRequest,
    GreedyRequest,
    GroupRequest,
    Prefixes,
    PrefixRequest,
    ScoreRequest,
)
from rollout.simulation.stand_in_blocks import StandInBlocks
from rollout.simulation.table_samples import TableSamples, column_by_action
from rollout.worker import member_generators


@dataclass(frozen=True, slots=True, kw_only=True)
class _Collected:
    """Inputs of the vector-Jacobian products of the batch that was collected last."""

    row_of: Mapping[int, int]
    budget_token_ND: Tensor
    feature_ND: Tensor
    actions_NG4: Tensor


class TableFleet:
    """Runs a whole batch of groups at once, from tables; implements `rollout.fleet.Fleet`.

    The index of a request counts modulo the number of samples in the split.

    Args:
        splits: samples by split.
        blocks: computes latency tokens.
        controller_class: the controller that chooses, for studies of what it needs to see.

    Attributes:
        slowdown: latencies relative to the table.
        present: present time of the device.
    """

    def __init__(
        self,
        splits: Mapping[str, TableSamples],
        blocks: StandInBlocks,
        controller_class: type[Controller] = Controller,
    ) -> None:
        self.splits = dict(splits)
        self.blocks = blocks
        self.controller_class = controller_class
        self.stats = FleetStats()
        self.slowdown = 1.0
        self.present: PresentTime = SteadyTime()
        self._columns = {name: column_by_action(s.table) for name, s in self.splits.items()}
        self._batches: dict[int, tuple[list[AnyRequest], PolicySetup, PolicyWeights]] = {}
        self._next_ticket = 0
        self._controller: tuple[PolicySetup, Controller] | None = None
        self._collected: _Collected | None = None

    def submit(
        self, requests: Sequence[AnyRequest], setup: PolicySetup, weights: PolicyWeights
    ) -> int:
        """Keeps the batch until it is collected; its groups must share one size and split."""
        if len({(r.split, _size(r)) for r in requests}) != 1:
            raise ValueError("a table runs batches of one split and one group size: split this one")
        ticket = self._next_ticket
        self._next_ticket += 1
        self._batches[ticket] = (sorted(requests, key=lambda r: r.group_id), setup, weights)
        return ticket

    @torch.no_grad()
    def collect(self, ticket: int) -> list[GroupRollout]:
        """Chooses knobs for all groups and looks up their outcomes."""
        requests, setup, weights = self._batches.pop(ticket)
        controller = self._install(setup, weights)
        samples = self.splits[requests[0].split]
        rows = [r.index % len(samples.table.sample_ids) for r in requests]
        feature_ND = torch.from_numpy(samples.language_feature_SD[rows])
        image_NI = torch.from_numpy(samples.image_feature_SI[rows])
        token_ND = controller.budget_tokens(
            *torch.tensor([(r.budget_ms, r.price) for r in requests]).T
        )
        size = _size(requests[0]) or 1
        generators = [
            generator
            for request, row in zip(requests, rows, strict=True)
            if isinstance(request, GroupRequest)
            for generator in member_generators(request, samples.table.sample_ids[row])
        ] or None
        feature_BD, token_BD = (x.repeat_interleave(size, 0) for x in (feature_ND, token_ND))
        image_BI = image_NI.repeat_interleave(size, 0)
        first = choose(controller.stage1_logits(feature_BD, token_BD, image_BI), generators)
        tier_B, position_B = first.indices_B2.unbind(1)
        latency_token_BD = self.blocks(token_BD, feature_BD, tier_B, position_B)
        second = choose(controller.stage2_logits(latency_token_BD, position_B), generators)
        actions_NG4 = torch.cat((first.indices_B2, second.indices_B2), 1).view(-1, size, len(HEADS))
        log_probs_NG4 = torch.cat((first.log_probs_B2, second.log_probs_B2), 1).view(
            -1, size, len(HEADS)
        )
        self._collected = _Collected(
            row_of={request.group_id: n for n, request in enumerate(requests)},
            budget_token_ND=token_ND,
            feature_ND=feature_ND,
            actions_NG4=actions_NG4,
        )
        tokens_NGD = latency_token_BD.view(len(requests), size, -1).numpy()
        return [
            self._record(
                request,
                weights,
                rows[n],
                token_ND[n].numpy(),
                actions_NG4[n].numpy(),
                log_probs_NG4[n].numpy(),
                tokens,
            )
            for n, (request, tokens) in enumerate(zip(requests, tokens_NGD, strict=True))
        ]

    def drop_batches(self) -> None:
        """Forgets the batches that were not collected."""
        self._batches.clear()

    def evaluate(
        self, requests: Sequence[GreedyRequest], setup: PolicySetup, weights: PolicyWeights
    ) -> list[GroupRollout]:
        """Greedy episodes, as groups of one."""
        return self.collect(self.submit(requests, setup, weights))

    def cheapest_ms(
        self,
        split: str,
        indices: Sequence[int],
        repeats: int,
        calibration: Calibration | None,
    ) -> np.ndarray:
        """The table's latencies of the cheapest configuration, which never vary: [N, repeats]."""
        table = self.splits[split].table
        rows = [index % len(table.sample_ids) for index in indices]
        return np.repeat(table.cheapest_ms[rows, None].astype(np.float64), repeats, axis=1)

    def budget_gradients(
        self, groups: Sequence[GroupRollout], gradients: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Exact vector-Jacobian products of the batch collected last."""
        batch = self._collected
        assert batch is not None, "collect a batch first"
        rows_N = torch.tensor([batch.row_of[group.group_id] for group in groups])
        token_ND = batch.budget_token_ND[rows_N].requires_grad_()
        actions_NG4 = batch.actions_NG4[rows_N]
        size = actions_NG4.shape[1]
        latency_token_BD = self.blocks(
            token_ND.repeat_interleave(size, 0),
            batch.feature_ND[rows_N].repeat_interleave(size, 0),
            *actions_NG4[..., :2].flatten(0, 1).unbind(1),
        )
        upstream_BD = torch.from_numpy(np.concatenate(gradients)).to(latency_token_BD)
        (result_ND,) = torch.autograd.grad(latency_token_BD, token_ND, upstream_BD)
        return list(result_ND.numpy())

    def scores(self, requests: Sequence[ScoreRequest]) -> list[np.ndarray]:
        """The table's scores, float32 [S, E] for each request."""
        results = []
        for request in requests:
            table = self.splits[request.split].table
            rows = np.array(request.indices) % len(table.sample_ids)
            columns = self._columns[request.split][tuple(np.moveaxis(request.actions_SE4, -1, 0))]
            results.append(table.scores[rows[:, None], columns].astype(np.float32))
        return results

    @torch.no_grad()
    def prefixes(self, requests: Sequence[PrefixRequest]) -> list[Prefixes]:
        """Language features and latency tokens, for a warm start."""
        results = []
        for request in requests:
            samples = self.splits[request.split]
            row = request.index % len(samples.table.sample_ids)
            feature_D = torch.from_numpy(samples.language_feature_SD[row])
            token_KD = torch.from_numpy(request.budget_tokens_KD)
            places = torch.cartesian_prod(torch.arange(len(TIERS)), torch.arange(len(POSITIONS)))
            count, num_places = len(token_KD), len(places)
            latency_token_BD = self.blocks(
                token_KD.repeat_interleave(num_places, 0),
                feature_D.expand(count * num_places, -1),
                *places.repeat(count, 1).unbind(1),
            )
            results.append(
                Prefixes(
                    features=samples.features(row),
                    latency_tokens=latency_token_BD.view(
                        count, len(TIERS), len(POSITIONS), -1
                    ).numpy(),
                )
            )
        return results

    def outcomes(
        self, request: AnyRequest, table: ProfileTable, row: int, columns_G: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and latencies in ms, [G] each, of some configurations on one sample."""
        return table.scores[row, columns_G], table.latencies_ms[row, columns_G].astype(np.float64)

    def _install(self, setup: PolicySetup, weights: PolicyWeights) -> Controller:
        if self._controller is None or self._controller[0] != setup:
            controller = self.controller_class(setup.controller).requires_grad_(False)
            self._controller = (setup, controller)
        controller = self._controller[1]
        controller.load_numpy(weights.arrays)
        return controller

    def _record(
        self,
        request: AnyRequest,
        weights: PolicyWeights,
        row: int,
        budget_token_D: np.ndarray,
        actions_G4: np.ndarray,
        log_probs_G4: np.ndarray,
        latency_tokens_GD: np.ndarray,
    ) -> GroupRollout:
        samples = self.splits[request.split]
        table = samples.table
        columns_G = self._columns[request.split][tuple(actions_G4.T)]
        scores_G, table_ms_G = self.outcomes(request, table, row, columns_G)
        device_G = table_ms_G * self.slowdown
        latencies_G = np.array([self.present.to_calibrated(ms) for ms in device_G])
        cheapest_ms = float(table.cheapest_ms[row])
        return GroupRollout(
            group_id=request.group_id,
            split=request.split,
            index=request.index,
            sample_id=table.sample_ids[row],
            task=table.tasks[row],
            budget_ms=request.budget_ms,
            price=request.price,
            policy_version=weights.version,
            policy_sha256=weights.sha256,
            budget_token=budget_token_D,
            language_feature=samples.language_feature_SD[row],
            image_feature=samples.image_feature_SI[row],
            actions=actions_G4,
            log_probs=log_probs_G4,
            latency_tokens=latency_tokens_GD,
            scores=scores_G,
            latencies_ms=latencies_G,
            feasible=bool(
                (latencies_G <= request.budget_ms).any() or cheapest_ms <= request.budget_ms
            ),
            clock="table",
            device_budget_ms=self.present.to_present(request.budget_ms),
            device_ms=device_G,
            wall_ms=device_G,
            num_text_tokens=0,
            num_vision_tokens=np.zeros(len(scores_G), np.int64),
            num_output_tokens=np.zeros(len(scores_G), np.int64),
            tilings=((0, 0),) * len(scores_G),
            answers=tuple(f"score {score:g}" for score in scores_G),
            stages_ms=tuple({"table": latency} for latency in device_G.tolist()),
            actor="table",
            incarnation=0,
        )


def _size(request: AnyRequest) -> int:
    """Number of members that sample their choices; 0 for a greedy episode."""
    return request.group_size if isinstance(request, GroupRequest) else 0
