"""Mistakes in --trackers are found before anything starts."""

import logging

import pytest

from launch.run.opening import open_run
from launch.tracking import names
from launch.tracking.names import check_trackers
from launch.tracking.tensorboard import TensorBoard
from tests import launch_rig


def test_a_tracker_that_is_not_installed_is_one_clear_error_with_its_cure(tmp_path, monkeypatch):
    monkeypatch.setattr(names, "find_spec", lambda _name: None)
    monkeypatch.setattr(
        "launch.run.opening.connect", lambda _address: pytest.fail("Ray was started")
    )
    config = launch_rig.config(run_dir=str(tmp_path / "run"), trackers=("mlflow",))
    with pytest.raises(ValueError, match=r"not installed: pip install -e '\.\[mlflow\]'"):
        open_run(config).__enter__()
    assert not (tmp_path / "run").exists()


def test_a_folder_of_the_same_name_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "trackio").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(names, "find_spec", lambda name: type("Spec", (), {"origin": None}))
    with pytest.raises(ValueError, match="trackio: the package is not installed"):
        check_trackers(("trackio",))


def test_one_that_is_named_twice_is_refused():
    with pytest.raises(ValueError, match="names tensorboard twice"):
        check_trackers(("tensorboard", "tensorboard"))
    check_trackers(("tensorboard",))
    check_trackers(())


def test_wandb_without_a_key_is_an_error_unless_it_is_offline(monkeypatch, tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(ValueError, match="wandb login"):
        check_trackers(("wandb",))
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_trackers(("wandb",))


def test_tensorboards_failure_is_logged_once_and_ends_nothing(tmp_path, monkeypatch, caplog):
    board = TensorBoard(tmp_path)
    board.begin_at(0)

    def full(*_args, **_options):
        raise OSError("No space left on device")

    for name in ("add_scalar", "add_histogram", "add_figure"):
        monkeypatch.setattr(board.writer, name, full)
    with caplog.at_level(logging.WARNING):
        board.scalars(0, {"a": 1.0})
        board.histogram(0, "b", None)
        board.figure(0, "c", None)
        board.close()
    assert caplog.text.count("No space left on device") == 1
