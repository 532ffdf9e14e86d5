"""`--help` of every program answers before anything slow is imported."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("launch", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if '\nif __name__ == "__main__":' in path.read_text()
]
SLOW_IMPORTS = "matplotlib pandas pyarrow ray sklearn tensorboard torch transformers"
ASK_ALL = f"""
import contextlib, io, runpy, sys

for program in sys.argv[1:]:
    command, said = program.split(), io.StringIO()
    sys.argv = [*command, "--help"]
    try:
        with contextlib.redirect_stdout(said):
            runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        assert not ended.code, program
    assert "usage: " in said.getvalue(), program
    slow = set(sys.modules) & set({SLOW_IMPORTS!r}.split())
    assert not slow, f"{{program}} --help imports {{slow}}"
"""


def test_no_program_imports_anything_slow_for_its_help():
    assert {"launch.joint_grpo", "launch.generate", "benchmarks.gpu.__main__"} <= {*PROGRAMS}
    asked = [*PROGRAMS, "launch.joint_grpo embedded", "launch.joint_grpo doctor"]
    command = [sys.executable, "-c", ASK_ALL, *asked]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
