"""Group rollouts with a controller on the device, their gradient, and the memory of it all."""

from __future__ import annotations

import time

import numpy as np
import torch

from benchmarks.gpu.report import Figure
from benchmarks.gpu.subject import Subject, quartiles
from envs.spec import NUM_BLOCKS, POSITIONS, TIERS, TOP_KS
from policy.config import ControllerConfig
from policy.controller import Controller, choose
from rollout.group_sharing import MolmoEGroupSession

BUDGET_MS = 50.0


def rollouts(subject: Subject) -> list[Figure]:
    """Groups whose members sample their choices, and the vector-Jacobian product of each."""
    executor, plan = subject.fast, subject.plan
    torch.manual_seed(0)
    config = ControllerConfig(
        d_model=executor.d_model,
        image_dim=executor.image_dim,
        budget_low_ms=10.0,
        budget_high_ms=100.0,
        price_low=0.01,
        price_high=2.0,
    )
    controller = Controller(config).to(plan.device)
    rollout_ms, gradient_ms = [], []
    for index in range(plan.groups + 1):
        members = [torch.Generator().manual_seed(100 * index + m) for m in range(plan.group_size)]
        started = time.perf_counter()
        session = rollout(subject, controller, index, members)
        middle = time.perf_counter()
        rows = np.random.default_rng(index).normal(size=(plan.group_size, executor.d_model))
        gradient = session.budget_gradient(rows.astype(np.float32))
        gradient_ms.append((time.perf_counter() - middle) * 1e3)
        rollout_ms.append((middle - started) * 1e3)
        if not np.isfinite(gradient).all() or not gradient.any():
            raise RuntimeError(f"the gradient of group {index} is zero or not finite")
    figures = []
    for what, values in (("rollout", rollout_ms), ("vector-Jacobian product", gradient_ms)):
        low, middle, high = quartiles(values[1:])
        name = f"group of {plan.group_size}: {what}, wall clock"
        figures.append(Figure(what=name, value=middle, unit="ms", low=low, high=high))
    return figures


@torch.no_grad()
def rollout(
    subject: Subject, controller: Controller, index: int, members: list[torch.Generator]
) -> MolmoEGroupSession:
    """One group: both stages of the controller around the shared work."""
    session = MolmoEGroupSession(subject.fast, subject.sample(index))
    (features, _), device = session.features(), subject.plan.device
    token_1D = controller.budget_tokens(torch.tensor([BUDGET_MS], device=device))
    language, image = (
        torch.from_numpy(x).to(device)[None] for x in (features.language, features.image)
    )
    logits = controller.stage1_logits(language, token_1D, image)
    stage1 = choose(logits, members).indices_B2.cpu().numpy()
    places = [(TIERS[t], POSITIONS[p]) for t, p in stage1]
    tokens_GD = session.begin(places, token_1D[0].cpu().numpy())
    positions_G = torch.from_numpy(stage1[:, 1]).to(device)
    logits = controller.stage2_logits(torch.from_numpy(tokens_GD).to(device), positions_G)
    stage2 = choose(logits, members).indices_B2.cpu().numpy()
    session.finish([(TOP_KS[k], NUM_BLOCKS[n]) for k, n in stage2])
    return session


def memory(subject: Subject) -> list[Figure]:
    """Memory on the device: weights, buffers, graphs and the peak so far."""
    runtime = subject.fast.runtime
    weights = sum(p.nbytes for p in subject.model.parameters())
    figures = {
        "weights": weights,
        "buffers of the fixed shape": runtime.num_bytes - subject.launcher.num_bytes,
        "all graphs": subject.launcher.num_bytes,
    }
    if subject.plan.device.type == "cuda":
        figures["peak of all tensors so far"] = torch.cuda.max_memory_allocated()
        figures["peak of what torch reserved"] = torch.cuda.max_memory_reserved()
    return [
        Figure(what=what, value=num_bytes / 2**20, unit="MiB")
        for what, num_bytes in figures.items()
    ]
