"""A misspelt name gets one line with the nearest name that is known."""

import importlib

import pytest

from envs.checks import did_you_mean, nearest
from envs.tasks.registry import check_config, check_names
from envs.tasks.scene import check_split
from envs.tasks.vqa.config import DataConfig
from launch.profile_knobs import chosen_configurations
from launch.run.command_line import configuration
from launch.serving.config import config_from
from rollout.molmoe.config import resolve_config

OPTIONS = {
    "evaluate": ("run --tst a.npz", "--test"),
    "report": ("run --ou page.html", "--out"),
    "tour": ("--promt chain", "--prompt"),
    "generate": ("--promt a --budget-ms 5", "--prompt"),
    "serve": ("--prot 80", "--port"),
    "profile_knobs": ("out --splt test", "--split"),
    "block_importance": ("out.json --chek", "--check"),
    "fit_latency_estimator": ("--result_dir a --output_dir b", "--results_dir"),
    "pretrain_tiny": ("--num-worker 2", "--num-workers"),
    "joint_grpo": ("embedded --worker.tilin fill", "--worker.tiling"),
}
"""By program: arguments with a misspelt option, and the option that is meant."""

NAMES = {
    "did you mean chain?": lambda: check_names(["chian"]),
    "did you mean text_vqa?": lambda: check_config(DataConfig(images={"text_vqua": "a"})),
    "did you mean validation?": lambda: check_split("validaton"),  # codespell:ignore
    "did you mean low-p1-k4-b12?": lambda: chosen_configurations(["low-p1-k4-b2"]),
    "did you mean corners?": lambda: chosen_configurations(["corner"]),
    "did you mean embedded?": lambda: resolve_config("embeded"),  # codespell:ignore
    "did you mean port?": lambda: config_from({"prot": 80}),
    "did you mean doctor?": lambda: configuration(["docter"], None),
    "did you mean embedded-warm?": lambda: configuration(["embedded-worm"], None),
}


@pytest.mark.parametrize(("program", "case"), OPTIONS.items())
def test_a_misspelt_option(program, case, monkeypatch, capsys):
    arguments, meant = case
    module = importlib.import_module(f"launch.{program}")
    monkeypatch.setattr("sys.argv", [f"{program}.py", *arguments.split()])
    with pytest.raises((SystemExit, ValueError)) as ended:
        module.main()
    said = str(ended.value) if ended.type is ValueError else capsys.readouterr().err
    assert said.count("\n") <= 1, "it is one line"
    assert f"did you mean {meant}?" in said


def test_a_misspelt_choice(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        configuration(["--trackers", "wandbb"], None)
    assert "did you mean wandb?" in capsys.readouterr().err


@pytest.mark.parametrize(("hint", "call"), NAMES.items())
def test_a_misspelt_name(hint, call):
    with pytest.raises(ValueError, match=hint.replace("?", r"\?")):
        call()


def test_the_nearest_name_is_near():
    assert nearest("embedde", ["embedded", "earlier", "doctor"]) == "embedded"
    assert nearest("xyz", ["embedded", "earlier", "doctor"]) == ""
    assert did_you_mean("xyz", ["embedded"]) == ""
