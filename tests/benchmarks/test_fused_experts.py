"""The Triton candidate for one token's experts, in Triton's interpreter."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

COMPARE = """
import torch
from benchmarks.gpu.fused_experts import fused_experts
from rollout.molmoe.moe import gathered_experts

torch.manual_seed(0)
for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 0.02)):
    for d_model, hidden, top_k in ((64, 32, 8), (64, 48, 4), (1024, 512, 4)):
        gate_up = (torch.randn(9, 2 * hidden, d_model) * d_model**-0.5).to(dtype)
        down = (torch.randn(9, d_model, hidden) * hidden**-0.5).to(dtype)
        x, weights = torch.randn(1, d_model).to(dtype), torch.rand(1, top_k).to(dtype)
        chosen = torch.randperm(9)[None, :top_k]
        ours = fused_experts(x, weights, chosen, gate_up, down).float()
        expected = gathered_experts(x, weights, chosen, gate_up, down).float()
        assert (ours - expected).norm() < limit * expected.norm(), (dtype, d_model)
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="there is no Triton on this machine")
def test_fused_experts_are_the_gathered_ones():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", COMPARE]
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )
    assert run.returncode == 0, run.stderr[-2000:]
