"""The acceptance run: does the model run on this GPU as it should, and how fast?

Example: python -m benchmarks.gpu --out /tmp/gpu

Needs torch, transformers, safetensors, tokenizers, numpy, pillow and pytest; neither Ray nor
gymnasium nor tyro, so that its options are argparse's, unlike those of other benchmarks. It writes
a model of the published geometry with random bfloat16 weights (14 GB, deleted once it is loaded),
takes at most eight minutes on an H100, and leaves one JSON file and one table, which it also
prints. The exit code is 1 if a section failed or a goal was missed. `--quick` runs a miniature, on
any device.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

PARSER = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
PARSER.add_argument("--out", type=Path, required=True, help="folder for gpu.json and gpu.md")
PARSER.add_argument(
    "--quick", action="store_true", help="a tiny model, on the CPU if there is no GPU"
)

if __name__ == "__main__":
    PARSER.parse_args()  # answers --help before the imports that take seconds

import logging
import tempfile
import time
import traceback
from collections.abc import Callable

import torch
import transformers

from benchmarks.gpu import experts, groups, others, parity, speed
from benchmarks.gpu.plan import Plan
from benchmarks.gpu.report import Figure, Report
from benchmarks.gpu.subject import Subject
from rollout.latency.clock import DeviceFacts
from rollout.molmoe.graphs import CudaGraphs

Section = Callable[[Subject], list[Figure]]

SECTIONS: dict[str, Section] = {
    "tests": parity.gpu_tests,
    "float32": parity.against_float32,
    "graphs": parity.graphs_against_plain_calls,
    "decode": speed.decode,
    "prefill": speed.prefill,
    "hooks": speed.hooks,
    "repeatability": speed.repeatability,
    "groups": groups.rollouts,
    "memory": groups.memory,
    "decode without graphs": speed.decode_without_graphs,
    "others": others.others,
    "experts": experts.experts,
}
"""The most important sections come first, in case time runs out; those that may break the device
come last."""


def acceptance(plan: Plan, out: Path) -> Report:
    """Runs all sections; one that fails is reported, and the others still run."""
    started, report = time.perf_counter(), Report()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix="weights-") as folder:
        subject = Subject(plan, Path(folder))
    report.facts = facts(subject) | {"loaded after, s": round(time.perf_counter() - started, 1)}
    for name, section in SECTIONS.items():
        begun = time.perf_counter()
        if begun - started > plan.limit_s:
            report.errors[name] = f"left out: {plan.limit_s:.0f} s have passed"
            continue
        try:
            report.sections[name] = section(subject)
        except Exception as error:  # the other figures are still worth having
            report.errors[name] = f"{type(error).__name__}: {error}".replace("\n", " ")[:2000]
            logging.error("section %s failed: %s", name, traceback.format_exc())
        report.seconds[name] = round(time.perf_counter() - begun, 1)
        report.write(out / "gpu.json")
    report.facts["whole run, s"] = round(time.perf_counter() - started, 1)
    report.write(out / "gpu.json")
    (out / "gpu.md").write_text(report.table() + "\n")
    return report


def facts(subject: Subject) -> dict[str, object]:
    """Device, versions and sizes."""
    plan, clock = subject.plan, subject.fast.clock_name
    device = DeviceFacts.of(plan.device, plan.dtype, clock, subject.fast.runtime.name)
    found: dict[str, object] = {
        "device": device.device,
        "dtype": device.dtype,
        "runtime": device.runtime,
        "clock": device.clock,
        "torch": device.torch_version,
        "transformers": transformers.__version__,
        "weights": f"{subject.num_bytes / 1e9:.2f} GB, random",
        "capacity": f"{subject.fast.runtime.max_tokens} tokens",
    }
    if plan.device.type == "cuda":
        found["cuda"] = torch.version.cuda
    if isinstance(subject.launcher, CudaGraphs):
        found["capture, s"] = round(subject.launcher.capture_s, 1)
    return found


def main() -> int:
    """Runs from the command line; returns the exit code."""
    options = PARSER.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cpu" and not options.quick:
        PARSER.error("there is no CUDA device: use --quick to try the run without one")
    plan = (Plan.miniature if options.quick else Plan.published)(device)
    report = acceptance(plan, options.out)
    print(report.table())
    return 0 if report.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
