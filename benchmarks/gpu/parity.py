"""Whether the device computes what it should."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.gpu.report import Figure
from benchmarks.gpu.subject import Subject, knobs, launcher_for
from benchmarks.random_model import BarePreprocessor
from envs.spec import TOP_KS, Tier
from rollout.molmoe import MolmoE, MolmoEConfig
from rollout.molmoe.static_cache import EMBED, FixedShapeDecoder, Launcher, Part, PlainCalls

ROOT = Path(__file__).parents[2]
GPU_TESTS = "tests/rollout/test_graphs.py"
TEST_LIMIT_S = 150
LOGITS_LIMIT_PERCENT = 8.0
"""Root mean square of the difference in logits that bfloat16 may make, relative to the logits."""


def gpu_tests(subject: Subject) -> list[Figure]:
    """Runs the tests that need CUDA, without the suite's plugins and fixtures.

    Raises:
        RuntimeError: a test failed; holds the end of its output.
    """
    if subject.plan.device.type != "cuda":
        return []
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(ROOT)]
    command += ["--noconftest", "-p", "no:cacheprovider", "-W", "ignore", str(ROOT / GPU_TESTS)]
    run = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=TEST_LIMIT_S, check=False
    )
    if run.returncode:
        raise RuntimeError(f"{GPU_TESTS} failed: {run.stdout[-3000:]}")
    return [Figure(what=f"failed tests in {GPU_TESTS}", value=0.0, unit="tests", at_most=0.0)]


def small_model(config: MolmoEConfig) -> MolmoE:
    """A random model in float32 on the CPU."""
    model, generator = MolmoE(config), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_vector = parameter.ndim == 1
        parameter.copy_(1 + 0.1 * noise if is_vector else noise * parameter.shape[-1] ** -0.5)
    return model


@torch.no_grad()
def against_float32(subject: Subject) -> list[Figure]:
    """A small model in the measured dtype on the device, next to float32 on the CPU."""
    plan = subject.plan
    exact, preprocessor = small_model(plan.small), BarePreprocessor(plan.small)
    inputs = preprocessor(subject.sample().image, "q", Tier.LOW.max_crops)
    expected = exact.forward_logits(inputs)
    model = exact.to(plan.device, plan.dtype)
    found = model.forward_logits(inputs.to(plan.device)).float().cpu()
    difference = (found - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    same = (found.argmax(-1) == expected.argmax(-1)).float().mean()
    return [
        Figure(
            what="logits of a small model: difference from float32 on the CPU, relative",
            value=100 * difference.item(),
            unit="%",
            at_most=LOGITS_LIMIT_PERCENT,
        ),
        Figure(what="positions with the same most likely token", value=100 * same.item(), unit="%"),
    ]


def differing_parts(model: MolmoE, launcher: Launcher) -> list[Part]:
    """Parts that a launcher runs differently from plain calls, from the same state on.

    This finds a part that is bound to another block or top-k, and one that does not reread the
    buffers.
    """
    decoders = [FixedShapeDecoder(model, TOP_KS, 64, way) for way in (PlainCalls(), launcher)]
    outcomes = [list(_outcomes(decoder)) for decoder in decoders]
    return [
        part
        for (part, mine), (_, theirs) in zip(*outcomes, strict=True)
        if not all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(mine, theirs, strict=True))
    ]


def _outcomes(decoder: FixedShapeDecoder) -> Iterator[tuple[Part, list[torch.Tensor]]]:
    """Each part and what it leaves behind; every part starts from a state of its own."""
    model, generator = decoder.model, torch.Generator().manual_seed(0)
    parts = decoder.parts(TOP_KS)
    for number, part in enumerate(parts):
        token_1 = torch.tensor([number % model.config.embedding_size], device=model.device)
        decoder.start(token_1, number % 32)
        decoder.launcher.run(EMBED)
        if part != EMBED:
            noise = torch.randn(decoder.x_1D.shape, generator=generator)
            decoder.x_1D.copy_(noise.to(model.device, model.dtype))
            decoder.launcher.run(part)
        left = [decoder.x_1D, decoder.token_1, decoder.position_1]
        yield part, [tensor.clone() for tensor in left]


def graphs_against_plain_calls(subject: Subject) -> list[Figure]:
    """Parts and answers by graphs, by plain calls of the same shape, and by the growing cache."""
    wrong = differing_parts(subject.model, launcher_for(subject.plan.device))
    answers = {"plain calls": subject.uncaptured, "the growing cache": subject.eager}
    agreeing: dict[str, list[float]] = {name: [] for name in answers}
    for top_k, num_blocks in ((8, 16), (6, 14), (4, 12)):
        prefix = subject.prefix(Tier.LOW)
        mine = subject.fast.advance(prefix, knobs(top_k, num_blocks, Tier.LOW)).answer.split()
        for name, executor in answers.items():
            chosen = knobs(top_k, num_blocks, Tier.LOW)
            theirs = executor.advance(prefix, chosen).answer.split()
            pairs = list(zip(mine, theirs, strict=False))
            first = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
            agreeing[name].append(100 * first / max(len(mine), len(theirs), 1))
    return [
        Figure(
            what=f"parts that differ from plain calls {wrong[:4]}",
            value=len(wrong),
            unit="parts",
            at_most=0.0,
        ),
        *(
            Figure(
                what=f"tokens before the first that differs from {name}",
                value=min(shares),
                unit="% of the answer",
            )
            for name, shares in agreeing.items()
        ),
    ]
