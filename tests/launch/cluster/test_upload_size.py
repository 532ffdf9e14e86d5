"""What a job uploads."""

from pathlib import Path

from launch.cluster.doctor import _check_upload
from launch.cluster.upload_size import largest, uploaded_files


class Paper:
    def print(self, *_arguments, **_options):
        pass


def write(folder, name, size):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)


def test_ignored_files_do_not_count(tmp_path):
    (tmp_path / ".gitignore").write_text("runs/\n*.bin\n")
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / ".rayignore").write_text("data\n")
    for name in ("runs/a", "b.bin", "part/c.bin", "part/data/d", ".git/e", "part/__pycache__/f"):
        write(tmp_path, name, 7)
    write(tmp_path, "part/code.py", 5)
    found = uploaded_files(tmp_path)
    assert {str(p): s for p, s in found.items() if p.name[0] != "."} == {"part/code.py": 5}


def test_a_large_upload_names_its_largest_files(tmp_path, monkeypatch):
    write(tmp_path, "weights/model.safetensors", 120_000_000)
    write(tmp_path, "small.py", 10)
    monkeypatch.chdir(tmp_path)
    problems = []
    _check_upload(Paper(), problems)
    assert problems[0].endswith("the largest files: weights/model.safetensors (120 MB)")
    assert ".rayignore" in problems[0]
    assert largest({Path(str(i)): i * 10**6 for i in range(9)}).startswith("8 (8 MB), 7 (7 MB)")
