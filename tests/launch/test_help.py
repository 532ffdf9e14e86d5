"""Help and mistakes on the command line are answered before anything slow is imported."""

import json
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
import contextlib, io, json, os, runpy, sys

os.environ["COLUMNS"] = "200"
for command, code, expected in json.loads(sys.argv[1]):
    sys.argv, said = command, io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        assert (ended.code or 0) == code, (command, ended.code, said.getvalue())
    assert expected in said.getvalue(), (command, said.getvalue())
    assert not code or said.getvalue().count(chr(10)) == 1, (command, said.getvalue())
    slow = set(sys.modules) & set({SLOW_IMPORTS!r}.split())
    assert not slow, f"{{command}} imports {{slow}}"
"""


def ask(cases):
    """Runs programs in one process; by case arguments, the exit code, and words that it says."""
    command = [sys.executable, "-c", ASK_ALL, json.dumps(cases)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_program_imports_anything_slow_for_its_help():
    assert {"launch.joint_grpo", "launch.generate", "benchmarks.gpu.__main__"} <= {*PROGRAMS}
    asked = [*PROGRAMS, "launch.joint_grpo embedded", "launch.joint_grpo doctor"]
    ask([([*program.split(), "--help"], 0, USAGES.get(program, "usage: ")) for program in asked])


USAGES = {
    "launch.report": "usage: report.py [-h] RUN [RUN ...] [--out FILE]\n",
    "launch.tour": "usage: tour.py [-h] [OPTIONS] [RUN]\n",
    "launch.serve": "usage: serve.py [-h] [OPTIONS] [RUN]\n",
}
"""What the help says of what goes without an option."""

MISTAKES = {
    "generate --prompt  --budget-ms 5": "--prompt is empty: ask a question",
    "generate --prompt a --budget-ms 0": "latency budget 0.0 ms: give a positive",
    "generate --prompt a --budget-ms nan": "latency budget nan ms: give a positive",
    "generate --prompt a --budget-ms 5 --price -1": "price of time -1.0: give a finite",
    "generate --prompt a --budget-ms 5 --image /no.png": "--image /no.png does not exist",
    "generate --prompt a --budget-ms 5 --controller /no": "--controller /no does not exist",
    "generate --prompt a --budget-ms 5 --worker.model /no": "/no is not a folder: give a MolmoE",
    "generate --prompt a --budget-ms 5 --worker.num-threads 0": "num_threads is 0: give",
    "tour --prompt ": "--prompt is empty: ask a question",
    "tour /no": "RUN /no does not exist",
    "tour --prompt a --image /no.png": "--image /no.png does not exist",
    "tour --num-budgets 0": "num_budgets is 0: give",
    "report": "no run is named",
    "report /no": "RUN /no does not exist",
    "report pyproject.toml": "RUN pyproject.toml is a file: give the folder of a training run",
    "serve /no": "RUN /no does not exist",
    "evaluate /no --test a": "RUN-DIR /no does not exist",
    "evaluate docs --test docs": "--test docs is a folder: give a file",
    "export_controller /no out": "RUN /no does not exist",
    "joint_grpo nothing": "there is no recipe or command 'nothing'",
    "joint_grpo --sed 3": "there is no option --sed; did you mean --seed?",
    "joint_grpo --budget.low-ms nan --budget.high-ms 5": "low_ms is nan: give",
    "joint_grpo --worker.model /no": "/no is not a folder: give a MolmoE",
    "joint_grpo --worker.tasks chian": "unknown task 'chian'",
    "joint_grpo --simulated-latency /no": "--simulated-latency /no does not exist",
}
"""What a command line is answered with; two spaces, or one at the end, enclose an empty word."""


def test_a_mistake_on_the_command_line_is_one_line_at_once_and_exits_with_2():
    ask([(f"launch.{line}".split(" "), 2, said) for line, said in MISTAKES.items()])
