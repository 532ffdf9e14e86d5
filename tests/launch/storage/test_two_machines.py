"""Two machines that continue one run in an object store, one after the other."""

import json
import logging
import multiprocessing
import os
import random
import shutil
import time
from pathlib import Path

import pytest

from launch.storage.object_store import SEEN_NAME, RunStore, TakenOverError
from launch.storage.retries import StoreError
from launch.storage.run_folder import staging_folder
from launch.storage.uploads import Uploader
from learner.archive import name_of
from learner.checkpoint import CheckpointStore
from tests.launch.storage.s3 import client, keys, uri_of, write_step
from tests.learner.synthetic import make_controller

MACHINES = ("a", "b")


def newest(run_dir: Path) -> int:
    found = CheckpointStore(run_dir / "checkpoints").load_latest(to_resume=True)
    return found.step if found else 0


def stored(uri: str, folder: Path) -> int:
    """The step at which a third machine would begin."""
    shutil.rmtree(folder, ignore_errors=True)
    RunStore(uri, folder).fetch()
    return newest(folder)


@pytest.mark.parametrize("best", [80, 90])
def test_a_machine_that_returns_takes_over_what_was_done_meanwhile(
    tmp_path, endpoint, uri, caplog, best
):
    a, b = tmp_path / "a", tmp_path / "b"
    store = RunStore(uri, a)
    store.fetch()
    store.mirror(write_step(a, 60, 0.1))
    write_step(a, 100, 0.2)
    other = RunStore(uri, b)
    other.fetch()
    for step in (70, 80, 90):
        other.mirror(write_step(b, step, 0.9 if step == best else 0.4))
    before = keys(endpoint)
    with caplog.at_level(logging.WARNING):
        RunStore(uri, a).fetch()
    assert keys(endpoint) == before
    assert newest(a) == 90
    assert CheckpointStore(a / "checkpoints").best().name == f"step_{best:08d}"
    assert newest(tmp_path / "a-aside-1") == 100
    assert f"now in {tmp_path / 'a-aside-1'}" in caplog.text
    again = RunStore(uri, a)
    again.fetch()
    assert again.mirror(write_step(a, 95, 0.5)) is not None
    assert stored(uri, tmp_path / "seen") == 95


def test_a_machine_that_had_stored_everything_sets_nothing_aside(tmp_path, uri, caplog):
    a, b = tmp_path / "a", tmp_path / "b"
    RunStore(uri, a).mirror(write_step(a, 4, 0.5))
    other = RunStore(uri, b)
    other.fetch()
    other.mirror(write_step(b, 7, 0.1))
    with caplog.at_level(logging.WARNING, "launch"):
        RunStore(uri, a).fetch()
    assert [newest(a), CheckpointStore(a / "checkpoints").best().name] == [7, "step_00000004"]
    assert not list(tmp_path.glob("a-aside-*"))
    assert not [r for r in caplog.records if r.name.startswith("launch")]


@pytest.mark.parametrize("is_stored", [True, False])
def test_a_damaged_store_takes_nothing_away_here(tmp_path, endpoint, uri, is_stored):
    a, b = tmp_path / "a", tmp_path / "b"
    RunStore(uri, a).mirror(write_step(a, 4, 0.5))
    if not is_stored:
        write_step(a, 5)
    other = RunStore(uri, b)
    other.fetch()
    other.mirror(write_step(b, 7, 0.1))
    for key in keys(endpoint):
        if key.endswith("learner.pt"):
            client(endpoint).put_object(Bucket="bucket", Key=f"run/{key}", Body=b"half")
    with pytest.raises(StoreError, match="is whole"):
        RunStore(uri, a).fetch()
    assert newest(a) == (4 if is_stored else 5)


def test_a_machine_that_still_runs_stops_before_it_changes_anything(tmp_path, endpoint, uri):
    a, b = tmp_path / "a", tmp_path / "b"
    store = RunStore(uri, a)
    store.mirror(write_step(a, 60, 0.1))
    other = RunStore(uri, b)
    other.fetch()
    other.mirror(write_step(b, 70, 0.3))
    before = keys(endpoint)
    uploader = Uploader(store)
    uploader.submit(write_step(a, 80, 0.2))
    with pytest.raises(TakenOverError, match=r"at step 70 .*nothing of this machine's run"):
        uploader.close()
    with pytest.raises(TakenOverError):
        uploader.submit(a / "checkpoints" / "step_00000080")
    assert keys(endpoint) == before
    assert newest(a) == 80


def test_an_emptied_store_is_no_silent_resume(tmp_path, endpoint, uri):
    store = RunStore(uri, tmp_path / "a")
    store.mirror(write_step(tmp_path / "a", 5))
    for key in keys(endpoint):
        client(endpoint).delete_object(Bucket="bucket", Key=f"run/{key}")
    with pytest.raises(ValueError, match=r"is empty, but .* to begin a new run, remove"):
        RunStore(uri, tmp_path / "a").fetch()
    (tmp_path / "a" / SEEN_NAME).unlink()
    again = RunStore(uri, tmp_path / "a")
    again.fetch()
    assert again.mirror_results()
    assert stored(uri, tmp_path / "seen") == 5


def test_a_kill_after_latest_was_written_is_no_other_machine(tmp_path, uri, monkeypatch):
    store = RunStore(uri, tmp_path / "a")
    store.mirror(write_step(tmp_path / "a", 1))

    def killed(name, content):
        put(name, content)
        if name == "LATEST":
            raise KeyboardInterrupt

    put = store.remote.put
    monkeypatch.setattr(store.remote, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        store.mirror(write_step(tmp_path / "a", 2))
    write_step(tmp_path / "a", 3)
    write_step(tmp_path / "a", 4)  # step 2 is dropped here, and LATEST names it
    RunStore(uri, tmp_path / "a").fetch()
    assert newest(tmp_path / "a") == 4


def test_the_local_copy_is_private(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    private = staging_folder("s3://bucket/run").parent
    assert private.stat().st_mode & 0o777 == 0o700
    os.chmod(private, 0o755)
    with pytest.raises(ValueError, match="is not a folder that only you can use: remove it"):
        staging_folder("s3://bucket/run")
    private.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    private.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is not a folder that only you can use"):
        staging_folder("s3://bucket/run")


# -- random interleavings --------------------------------------------------------------------------


def machine(name: str, uri: str, run_dir: Path, journal: Path, seed: int) -> None:
    """Continues the run until it is killed; `journal` lists what the store has acknowledged."""
    rng = random.Random(seed)
    store = RunStore(uri, run_dir)
    store.fetch()
    checkpoints = CheckpointStore(run_dir / "checkpoints", keep_last=2)
    checkpoints.recover()
    found = checkpoints.load_latest(to_resume=True)
    step, line = (found.step, found.state["line"]) if found else (0, [])
    controller = make_controller()
    while True:
        step, line = step + 1, [*line, f"{step + 1}{name}{seed}"]
        parts = [b"of every step", str(step - 1).encode(), str(step).encode()]
        archive = {name_of(part): part for part in parts}
        learner_state = {"optimizer": {}, "version": step, "archive": archive}
        state = {"next_step": step, "line": line}
        path = checkpoints.save(step, controller, learner_state, state, metric=rng.random())
        if rng.random() < 0.6 and store.mirror(path) is not None:
            with journal.open("a") as file:
                file.write(json.dumps(line) + "\n")


def wait_for(more: int, journal: Path, child) -> None:
    """Until the store has acknowledged so many more checkpoints, however busy this machine is."""
    then, deadline = len(journal.read_text().splitlines()), time.monotonic() + 120
    while len(journal.read_text().splitlines()) < then + more:
        assert child.is_alive(), "no machine stops by itself"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def interleaving(seed: int, uri: str, folder: Path) -> tuple[int, int]:
    """Runs, kills and brings back two machines at random; returns steps stored and turns."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["launch.storage.object_store", "tests.launch.storage.s3"])
    rng, journal = random.Random(seed), folder / "journal"
    journal.touch()
    turns = 6
    for turn in range(turns):
        name = rng.choice(MACHINES)
        child = context.Process(
            target=machine, args=(name, uri, folder / name, journal, 100 * seed + turn)
        )
        child.start()
        wait_for(rng.choice((0, 1, 2)), journal, child)
        time.sleep(rng.uniform(0.0, 0.4))
        assert child.is_alive(), "no machine stops by itself"
        child.kill()
        child.join(60)
        if lines := journal.read_text().splitlines():
            acknowledged = json.loads(lines[-1])
            seen = folder / "seen"
            shutil.rmtree(seen, ignore_errors=True)
            RunStore(uri, seen).fetch()
            found = CheckpointStore(seen / "checkpoints").load_latest(to_resume=True)
            assert found.state["line"][: len(acknowledged)] == acknowledged
    return len(journal.read_text().splitlines()), turns


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "seeds",
    [
        pytest.param(range(8), marks=pytest.mark.slow),
        pytest.param(range(8, 20), marks=[pytest.mark.slow, pytest.mark.soak]),
    ],
    ids=["eight", "others"],
)
def test_no_stored_checkpoint_is_lost_or_an_older_one_preferred(tmp_path, endpoint, uri, seeds):
    """In whatever order two machines run, are killed and return."""
    total = 0
    for seed in seeds:
        folder = tmp_path / str(seed)
        folder.mkdir()
        of_seed = uri_of(endpoint, f"bucket/run/{seed}")
        total += interleaving(seed, of_seed, folder)[0]
    assert total > len(seeds)
