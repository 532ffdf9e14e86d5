"""Records of JSON files, read in pieces of any size, as `json` reads the whole."""

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from envs.spec import DataError
from envs.tasks.vqa import json_stream
from envs.tasks.vqa.json_stream import json_records


def random_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(8 if depth < 3 else 6)
    return {
        0: None,
        1: rng.random() < 0.5,
        2: rng.randrange(-(10**9), 10**9),
        3: rng.uniform(-1e6, 1e6),
        4: "".join(rng.choices('ab"\\ {}[],:\n\té€😀', k=rng.randrange(12))),
        5: "",
        6: [random_value(rng, depth + 1) for _ in range(rng.randrange(4))] if kind == 6 else None,
        7: {f"k{i}": random_value(rng, depth + 1) for i in range(rng.randrange(4))}
        if kind == 7
        else None,
    }[kind]


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 2**20])
@pytest.mark.parametrize("seed", range(6))
def test_any_records_in_pieces_of_any_size(
    chunk: int, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    rng = random.Random(seed)
    rows = [{f"c{i}": random_value(rng) for i in range(3)} for _ in range(20)]
    path = tmp_path / "one.json"
    options = {"indent": rng.choice([None, 1]), "ensure_ascii": rng.random() < 0.5}
    path.write_text(json.dumps(rows, **options), encoding="utf-8")
    assert list(json_records(path, "")) == rows
    content = {"info": random_value(rng), "number": 12345, "data": rows, "more": [1, {"a": []}]}
    path.write_text(json.dumps(content, **options), encoding="utf-8")
    assert list(json_records(path, "data")) == rows


BROKEN = [
    ("", "", "is not valid JSON"),
    (" \n", "", "is not valid JSON"),
    ("[{}", "", r"is not valid JSON \(, or \] expected, found its end"),
    ("[{} {}]", "", "is not valid JSON .*expected, found {"),
    ("[{},]", "", "is not valid JSON"),
    ('[{"a": }]', "", "is not valid JSON"),
    ("[{}] x", "", "is not valid JSON .it continues after its end"),
    ('{"data": [{}]', "data", "is not valid JSON"),
    ('{"data": [{}],}', "data", "is not valid JSON"),
    ('{"data" [{}]}', "data", "is not valid JSON"),
    ("{data: []}", "data", "is not valid JSON"),
    ("version https://example.org", "data", "is not valid JSON"),
    ("[1, 2]", "", "has no list of records: is it"),
    ('{"data": [1]}', "data", "has no list of records 'data'"),
    ('{"data": {"a": 1}}', "data", "has no list of records 'data'"),
    ('{"rows": [{}]}', "data", "has no list of records 'data'"),
    ("[{}]", "data", "has no list of records 'data'"),
    ('{"a": 1}', "", "has no list of records: is it"),
    ("7", "data", "has no list of records 'data'"),
]


@pytest.mark.parametrize("chunk", [1, 2**20])
@pytest.mark.parametrize(("text", "key", "message"), BROKEN)
def test_broken_files(
    text: str, key: str, message: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    path = tmp_path / "one.json"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"one\.json {message}"):
        list(json_records(path, key))


def test_a_large_file_takes_little_memory(tmp_path: Path):
    path = tmp_path / "large.json"
    row = json.dumps({"answer": "x" * 2000})
    path.write_text(f'{{"data": [{",".join([row] * 10_000)}]}}')
    assert path.stat().st_size > 20_000_000
    tracemalloc.start()
    assert sum(1 for _ in json_records(path, "data")) == 10_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000, "as one text it takes 20 MB, as objects more"
