"""The CI script ends at the first command that fails, whichever it is."""

import os
import re
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / ".ci" / "run"
COMMANDS = ("pip", "pytest", "ruff", "pyright", "lint-imports", "codespell")

STUB = """#!/bin/sh
echo "{name} $*" >> {log}
[ "$(wc -l < {log})" -ne {fails_at} ]
"""


def run_with_stubs(folder: Path, fails_at: int) -> tuple[int, list[str]]:
    """Runs the script with commands that only write themselves down; one of them fails."""
    log, environment = folder / "log", folder / "venv" / "bin"
    environment.mkdir(parents=True)
    (environment / "activate").write_text(f"PATH={environment}:$PATH\n")
    log.touch()
    for name in COMMANDS:
        stub = environment / name
        stub.write_text(STUB.format(name=name, log=log, fails_at=fails_at))
        stub.chmod(0o755)
    (folder / "python3").write_text("#!/bin/sh\n")
    (folder / "python3").chmod(0o755)
    done = subprocess.run(
        [str(SCRIPT)],
        env={"PATH": f"{folder}:{os.environ['PATH']}", "CI_VENV": str(folder / "venv")},
        capture_output=True,
        timeout=60,
        check=False,
    )
    return done.returncode, log.read_text().splitlines()


def test_all_commands_run_where_none_fails(tmp_path):
    code, lines = run_with_stubs(tmp_path, fails_at=0)
    assert code == 0
    assert len(lines) == 9
    assert lines[:2] == ["pip install -q -c constraints.txt -e .[test]", "pytest "]


@pytest.mark.parametrize("number", range(1, 10))
def test_a_command_that_fails_ends_it(tmp_path, number):
    code, lines = run_with_stubs(tmp_path, fails_at=number)
    assert code != 0
    assert len(lines) == number


def test_it_calls_the_readmes_test_command():
    readme = (SCRIPT.parents[1] / "README.md").read_text()
    (install,) = re.findall(r"^(pip install .*'\.\[test\]') && pytest$", readme, re.MULTILINE)
    lines = SCRIPT.read_text().splitlines()
    place = lines.index(install.replace("pip install", "pip install -q"))
    assert lines[place + 1] == "pytest"
