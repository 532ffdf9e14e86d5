import errno
import hashlib
import io
import itertools
import json
import logging
import os
import pickle

import numpy as np
import pytest
import torch

from learner import folders
from learner.archive import name_of
from learner.checkpoint import CheckpointError, CheckpointStore, find_controller
from learner.config import LearnerConfig, ReplayConfig
from learner.learner import Learner
from policy.controller import Controller
from policy.weights import weights_sha256
from tests.learner.synthetic import make_controller
from tests.learner.test_learner import make_groups, update
from tests.learner.test_replay import BLOCKS
from tests.learner.test_replay import make_groups as measured_groups


@pytest.fixture
def learner_state(tmp_path):
    return Learner(make_controller(), LearnerConfig()).state_dict()


def state_at(step, **more):
    return {"next_step": step, **more}


def save_steps(root, steps, metrics=None, extra=None, **kwargs) -> CheckpointStore:
    store = CheckpointStore(root, **kwargs)
    learner = Learner(make_controller(), LearnerConfig())
    for index, step in enumerate(steps):
        update(learner, *make_groups(learner, seed=step))
        metric = metrics[index] if metrics else None
        state = state_at(step, position=step, **(extra or {}))
        store.save(step, learner.controller, learner.state_dict(), state, metric)
    return store


def test_round_trip(tmp_path):
    learner = Learner(make_controller(), LearnerConfig())
    update(learner, *make_groups(learner))
    numpy_state = np.random.default_rng(3).bit_generator.state
    state = {
        "next_step": 7,
        "random": numpy_state,
        "position": [1, 2],
        "sizes": (3, 4),
        "revision": "abc",
    }
    store = CheckpointStore(tmp_path / "run")
    path = store.save(7, learner.controller, learner.state_dict(), state, metric=0.5)
    assert path.name == "step_00000007"
    assert (tmp_path / "run" / "latest").read_text().strip() == path.name
    loaded = store.load_latest()
    assert loaded is not None
    assert (loaded.step, loaded.metric, loaded.path) == (7, 0.5, path)
    assert loaded.state == {**state, "sizes": [3, 4]}
    digest = learner.weights().sha256
    assert weights_sha256(loaded.controller.to_numpy()) == digest
    assert weights_sha256(Controller.load(path).to_numpy()) == digest
    assert not list((tmp_path / "run").glob(".*"))


def test_resume_from_a_checkpoint_is_bit_identical(tmp_path):
    whole = Learner(make_controller(), LearnerConfig(epochs=2))
    store = CheckpointStore(tmp_path / "run", keep_last=10)
    for seed in range(4):
        store.save(seed, whole.controller, whole.state_dict(), state_at(seed))
        update(whole, *make_groups(whole, seed=seed))
    for cut in range(4):
        loaded = store.load(tmp_path / "run" / f"step_{cut:08d}", to_resume=True)
        resumed = Learner(loaded.controller, LearnerConfig(epochs=2))
        resumed.load_state_dict(loaded.learner_state)
        for seed in range(cut, 4):
            update(resumed, *make_groups(resumed, seed=seed))
        assert resumed.weights().sha256 == whole.weights().sha256


def test_empty_folder_has_no_checkpoint(tmp_path):
    assert CheckpointStore(tmp_path / "new").load_latest() is None


def test_keeps_the_last_and_the_best(tmp_path):
    metrics = [0.1, 0.9, None, float("nan"), 0.2, 0.3]
    store = save_steps(tmp_path, range(1, 7), metrics, keep_last=2)
    assert store.steps() == [2, 5, 6]
    assert store.best() == tmp_path / "step_00000002"


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: truncate(folder / "controller.safetensors"), "controller.safetensors is"),
        (lambda folder: truncate(folder / "learner.pt"), "learner.pt is torn or corrupt"),
        (lambda folder: (folder / "state.json").write_text("{}"), "state.json is torn or corrupt"),
        (lambda folder: (folder / "controller.json").unlink(), "controller.json cannot be read"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json cannot be"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json cannot be"),
        (
            lambda folder: (folder / "manifest.json").write_text(
                '{"step": 3, "metric": null, "files": {}}'
            ),
            "does not list",
        ),
    ],
)
def test_a_damaged_checkpoint_is_skipped_with_a_message(tmp_path, caplog, damage, message):
    store = save_steps(tmp_path, [1, 2, 3])
    damage(tmp_path / "step_00000003")
    with caplog.at_level(logging.WARNING):
        loaded = store.load_latest()
    assert loaded is not None
    assert (loaded.step, loaded.state) == (2, state_at(2, position=2))
    assert "skipping the checkpoint of step 3" in caplog.text
    assert message in caplog.text


def test_no_sound_checkpoint_is_an_error_not_a_fresh_start(tmp_path):
    store = save_steps(tmp_path, [1, 2])
    for step in (1, 2):
        (tmp_path / f"step_{step:08d}" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        store.load_latest()


@pytest.mark.parametrize("full_at", range(7))
def test_full_disk_loses_nothing_older(tmp_path, monkeypatch, learner_state, full_at):
    """The disk is full at each of the seven files in turn, archive and pointer included."""
    store = save_steps(tmp_path, [1, 2])
    learner_state["archive"][name_of(b"new")] = b"new"
    write, calls = folders.write_synced, []

    def failing_write(path, content):
        calls.append(path)
        if len(calls) == full_at + 1:
            write(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, content)

    monkeypatch.setattr(folders, "write_synced", failing_write)
    controller = make_controller()
    with pytest.raises(CheckpointError, match=r"No space left on device.*older checkpoints are"):
        store.save(3, controller, learner_state, state_at(3))
    monkeypatch.undo()
    assert not list(tmp_path.rglob(".writing*"))
    assert [store.load(tmp_path / f"step_{step:08d}").step for step in (1, 2)] == [1, 2]
    loaded = store.load_latest()
    assert loaded is not None
    assert loaded.step == (3 if full_at == 6 else 2)
    store.save(3, controller, learner_state, state_at(3))


def test_a_killed_writers_remains_are_ignored_and_removed(tmp_path, learner_state):
    store = save_steps(tmp_path, [1])
    remains = tmp_path / ".writing_step_00000002"
    remains.mkdir()
    (remains / "state.json").write_text("{")
    loaded = store.load_latest()
    assert loaded is not None
    assert loaded.step == 1
    store.save(2, make_controller(), learner_state, state_at(2))
    assert not remains.exists()
    assert store.steps() == [1, 2]


def test_a_checkpoint_set_aside_by_a_killed_writer_is_put_back(tmp_path, learner_state):
    store = save_steps(tmp_path, [1])
    os.rename(tmp_path / "step_00000001", tmp_path / ".replaced_step_00000001")
    store.save(2, make_controller(), learner_state, state_at(2))
    assert store.load(tmp_path / "step_00000001").state == state_at(1, position=1)


def test_the_same_step_is_replaced(tmp_path, learner_state):
    store = save_steps(tmp_path, [1])
    store.save(1, make_controller(seed=4), learner_state, state_at(1, again=True))
    loaded = store.load_latest()
    assert loaded is not None
    assert loaded.state == state_at(1, again=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "archive",
        "latest",
        "step_00000001",
    ]


def test_failed_replacement_keeps_the_old(tmp_path, monkeypatch, learner_state):
    store = save_steps(tmp_path, [1])
    rename = os.rename

    def failing_rename(source, target):
        if ".writing" in str(source):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing_rename)
    with pytest.raises(CheckpointError, match="Input/output error"):
        store.save(1, make_controller(seed=4), learner_state, state_at(1, again=True))
    loaded = store.load_latest()
    assert loaded is not None
    assert loaded.state == state_at(1, position=1)


@pytest.mark.parametrize(
    ("extra_learner_state", "state", "message"),
    [
        ({}, state_at(1, a={1, 2}), "plain JSON values"),
        ({}, state_at(1, a=float("nan")), "plain JSON values"),
        ({}, state_at(1, a=np.float32(1)), "plain JSON values"),
        ({}, state_at(1, a={1: 2}), "strings as keys"),
        ({"a": lambda: 0}, state_at(1), "readable with weights_only"),
        ({"a": np.zeros(2)}, state_at(1), "readable with weights_only"),
        ({}, {}, "lacks next_step"),
        ({}, state_at(2), "its next_step is 2, not the checkpoint's step 1"),
    ],
)
def test_unserialisable_state_is_refused_before_writing(
    tmp_path, learner_state, extra_learner_state, state, message
):
    store = CheckpointStore(tmp_path / "run")
    with pytest.raises(TypeError, match=message):
        store.save(1, make_controller(), {**learner_state, **extra_learner_state}, state)
    assert list(store.root.iterdir()) == []


def test_a_learners_state_without_an_optimizer_is_refused(tmp_path, learner_state):
    del learner_state["optimizer"]
    with pytest.raises(TypeError, match="lacks optimizer"):
        CheckpointStore(tmp_path).save(1, make_controller(), learner_state, state_at(1))


def rewrite(folder, name, content):
    """Replaces a file and redoes its hash in the manifest."""
    (folder / name).write_bytes(content)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = hashlib.sha256(content).hexdigest()
    path.write_text(json.dumps(manifest))


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("state.json", b"[]", "it is a list, not an object"),
        ("state.json", b"{}", "it lacks next_step, seed"),
        ("state.json", b'{"seed": 1, "next_step": 2}', "its next_step is 2, not"),
        ("state.json", b'{"seed": 1, "next_step": "3"}', "its next_step is '3', not"),
        ("state.json", b'{"seed": 1, "next_step": true}', "its next_step is True, not"),
        ("state.json", b'{"next_step": 3}', "it lacks seed"),
        ("state.json", b"[" * 100_000, "recursion"),
        ("state.json", b"\xff", "can't decode"),
        ("learner.pt", b"", "it is damaged"),
        ("learner.pt", b"\x80", "it is damaged"),
        ("learner.pt", b"junk" * 999, "it is damaged"),
        ("learner.pt", pickle.dumps(print), "it is damaged"),
        ("learner.pt", saved({}), "lacks optimizer, version"),
        ("learner.pt", saved([1]), "is a list, not a dict"),
    ],
)
def test_rehashed_junk_is_skipped_for_an_older_checkpoint(tmp_path, caplog, name, content, message):
    store = save_steps(tmp_path, [2, 3], required_state=["seed"], extra={"seed": 1})
    rewrite(tmp_path / "step_00000003", name, content)
    loaded = store.load_latest()
    assert loaded is not None
    assert loaded.step == 2
    assert message in caplog.text
    assert "weights_only" not in caplog.text, "no advice to load unsafely"


def test_a_controller_is_found_from_any_folder_of_its_run(tmp_path):
    run = tmp_path / "run"
    save_steps(run / "checkpoints", [1, 2])
    (run / "tensorboard").mkdir()
    newest = run / "checkpoints" / "step_00000002"
    for path in (run, run / "checkpoints", run / "tensorboard", newest):
        assert find_controller(path) == newest
    assert find_controller(newest.with_name("step_00000001")).name == "step_00000001"
    truncate(newest / "state.json")
    assert find_controller(run).name == "step_00000001"
    make_controller().save(tmp_path / "alone")
    assert find_controller(tmp_path / "alone") == tmp_path / "alone"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no controller"):
        find_controller(tmp_path / "empty")
    with pytest.raises(ValueError, match="is not a folder"):
        find_controller(tmp_path / "absent")


def test_manifest_is_plain_json(tmp_path):
    save_steps(tmp_path, [4])
    manifest = json.loads((tmp_path / "step_00000004" / "manifest.json").read_text())
    assert manifest["step"] == 4
    assert sorted(manifest["files"]) == [
        "controller.json",
        "controller.safetensors",
        "learner.pt",
        "state.json",
    ]


def save_replaying(root, num_steps, *, capacity, keep_last=1):
    """A learner that remembers three groups at each step; the archive's files after each."""
    store, seen = CheckpointStore(root, keep_last), []
    learner = Learner(make_controller(), LearnerConfig(replay=ReplayConfig(capacity=capacity)))
    for step in range(num_steps):
        groups = measured_groups(learner.controller, step, count=3)
        score = np.array([group.scores for group in groups], np.float64)
        measured = learner.learn_from_groups(groups, score, np.zeros_like(score))
        learner.learn_from_memory(groups)
        learner.update(measured, BLOCKS.vjp(learner.controller, measured))
        store.save(step, learner.controller, learner.state_dict(), state_at(step))
        seen.append({path.name: path.stat().st_ino for path in store.archive.path.iterdir()})
    return store, learner, seen


def test_what_is_remembered_is_written_once_and_kept_as_long_as_it_is_needed(tmp_path):
    store, learner, seen = save_replaying(tmp_path, 6, capacity=9)
    assert [len(files) for files in seen] == [2, 3, 4, 4, 4, 4], "initial weights, three batches"
    for before, after in itertools.pairwise(seen):
        assert len(after.keys() - before.keys()) == 1
        assert all(after[name] == inode for name, inode in before.items() if name in after)
    loaded = store.load_latest(to_resume=True)
    resumed = Learner(loaded.controller, learner.config)
    resumed.load_state_dict(loaded.learner_state)
    theirs = resumed.replay.buffer.episodes.tensors()
    for name, tensor in learner.replay.buffer.episodes.tensors().items():
        assert torch.equal(tensor, theirs[name]), name
    assert list(resumed.archive()) == list(learner.archive())


@pytest.mark.parametrize("damage", ["torn", "absent"])
def test_a_damaged_archive_spoils_only_the_checkpoints_that_need_it(tmp_path, caplog, damage):
    store, _, seen = save_replaying(tmp_path, 2, capacity=9, keep_last=2)
    newest = tmp_path / "archive" / (seen[1].keys() - seen[0].keys()).pop()
    if damage == "torn":
        newest.write_bytes(newest.read_bytes()[:-1])
    else:
        newest.unlink()
    assert store.load_latest().step == 1
    assert store.load_latest(to_resume=True).step == 0
    assert newest.name in caplog.text
    assert find_controller(tmp_path).name == "step_00000001", "a controller needs no archive"
    store, _, seen = save_replaying(tmp_path / "other", 1, capacity=9)
    next(store.archive.path.iterdir()).unlink()
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        store.load_latest(to_resume=True)


def test_a_checkpoint_from_before_the_archive_says_so(tmp_path, learner_state):
    learner_state = {**learner_state, "initial_controller": learner_state["controller"]}
    store = CheckpointStore(tmp_path)
    path = store.save(1, make_controller(), learner_state, state_at(1))
    with pytest.raises(CheckpointError, match="earlier version of this program"):
        store.load(path)


def test_learner_state_is_read_with_weights_only(tmp_path):
    store = save_steps(tmp_path, [1])
    loaded = store.load_latest()
    assert loaded is not None
    assert isinstance(loaded.learner_state["controller"]["stage1.heads.bias"], torch.Tensor)
