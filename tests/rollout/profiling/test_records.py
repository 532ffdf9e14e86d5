import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from envs.spec import Execution, Knobs, Sample, Tier
from rollout.estimator.latency_table import LatencyTable
from rollout.latency.clock import DeviceFacts
from rollout.profiling.records import (
    DecodeReading,
    LatencyRecord,
    ProfileReader,
    ProfileRecord,
    parse_record,
    write_items,
)
from tests.rollout.estimator.synthetic import write_profiles

# The design document's example.
EXAMPLE = {
    "actual_vision_tokens": 384,
    "actual_text_tokens": 53,
    "output_tokens": 11,
    "tier": "low",
    "top_k": 4,
    "num_active_blocks": 12,
    "T_vision_total": 11.93,
    "T_LLM_prefill": 99.25,
    "T_LLM_decode": 38.85,
    "T_decode_per_token": 19.43,
}


def write(folder, *records, dataset="okvqa", name="a.json"):
    path = folder / dataset / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"per_sample_results": list(records)}))
    return path


def read(folder, **options):
    reader = ProfileReader(folder, **options)
    return list(reader), reader.report


def test_the_example_is_read_in_both_readings():
    record = parse_record(EXAMPLE, "okvqa", 4)
    assert (record.vision_tokens, record.text_tokens, record.output_tokens) == (384, 53, 11)
    assert (record.tier, record.top_k, record.num_active_blocks) == (Tier.LOW, 4, 12)
    assert record.prefill_ms == pytest.approx(111.18)
    assert record.decode_per_token_ms(DecodeReading.RECORDED) == 19.43
    assert record.decode_per_token_ms(DecodeReading.COMPUTED) == pytest.approx(3.5318, abs=1e-4)
    assert record.sample_key == "okvqa index 4"
    assert record.score is None
    assert record.insertion_position is None


def test_a_sample_is_known_by_image_then_id_then_index():
    key = lambda **fields: parse_record(EXAMPLE | fields, "mmmu", 2).sample_key  # noqa: E731
    assert key(sample_id="x", image_id=0) == "image 0"
    assert key(sample_id=0) == "mmmu sample 0"
    assert key() == "mmmu index 2"


def test_readings_are_compared_and_never_mixed_silently(tmp_path):
    absent = {name: x for name, x in EXAMPLE.items() if name != "T_decode_per_token"}
    agreeing = EXAMPLE | {"T_decode_per_token": 3.53}
    write(tmp_path, EXAMPLE, absent, agreeing, EXAMPLE)
    records, report = read(tmp_path)
    assert (report.num_decode_compared, report.num_decode_disagree) == (3, 2)
    assert report.num_decode_absent == 1
    assert "2 of 3 differ" in str(report)
    assert "1 records state none" in str(report)
    recorded = LatencyTable.of(records, DecodeReading.RECORDED).targets_ms_N2[:, 1]
    computed = LatencyTable.of(records, DecodeReading.COMPUTED).targets_ms_N2[:, 1]
    np.testing.assert_allclose(recorded, [19.43, 38.85 / 11, 3.53, 19.43])
    np.testing.assert_allclose(computed, [38.85 / 11] * 4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"output_tokens": 0}, "output_tokens is zero"),
        ({"output_tokens": 1.5}, "output_tokens is not a whole number"),
        ({"T_LLM_prefill": 0}, "T_LLM_prefill is zero"),
        ({"T_LLM_decode": -1.0}, "T_LLM_decode is negative"),
        ({"T_vision_total": float("nan")}, "T_vision_total is not finite"),
        ({"T_vision_total": float("inf")}, "T_vision_total is not finite"),
        ({"T_vision_total": None}, "T_vision_total is missing"),
        ({"T_vision_total": "11"}, "T_vision_total is not a number"),
        ({"T_vision_total": True}, "T_vision_total is not a number"),
        ({"T_vision_total": 10**400}, "T_vision_total is not finite"),
        ({"T_decode_per_token": 0.0}, "T_decode_per_token is zero"),
        ({"T_decode_per_token": float("nan")}, "T_decode_per_token is not finite"),
        ({"actual_vision_tokens": -1}, "actual_vision_tokens is negative"),
        ({"actual_text_tokens": -3}, "actual_text_tokens is negative"),
        ({"tier": "huge"}, "unknown tier 'huge'"),
        ({"tier": 3}, "unknown tier 3"),
        ({"tier": None}, "tier is missing"),
        ({"tier": ["low"]}, "tier is neither a name nor an index"),
        ({"top_k": None}, "top_k is missing"),
        ({"score": "good"}, "score is not a number"),
    ],
)
def test_a_bad_record_is_left_out_and_counted(tmp_path, change, reason):
    write(tmp_path, EXAMPLE, EXAMPLE | change, EXAMPLE | change)
    records, report = read(tmp_path)
    assert len(records) == report.num_records == 1
    assert dict(report.omitted_records) == {reason: 2}
    assert f"2 records: {reason}" in str(report)


def test_a_record_that_is_no_object_is_counted(tmp_path):
    write(tmp_path, EXAMPLE, [], "x")
    assert dict(read(tmp_path)[1].omitted_records) == {"not an object": 2}


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"per_sample_results": 3}', "\x00"])
def test_a_file_of_another_kind_is_left_out_and_named(tmp_path, content):
    write(tmp_path, EXAMPLE).with_name("b.json").write_text(content)
    records, report = read(tmp_path)
    assert len(records) == report.num_files == 1
    assert list(report.omitted_files) == ["okvqa/b.json"]
    assert "okvqa/b.json: no" in str(report)


def test_a_file_cut_in_the_middle_is_left_out_and_named(tmp_path):
    path = write(tmp_path, EXAMPLE, EXAMPLE, name="b.json")
    path.write_bytes(path.read_bytes()[:-60])
    write(tmp_path, EXAMPLE)
    records, report = read(tmp_path)
    assert len(records) == 1
    assert "not whole JSON" in report.omitted_files["okvqa/b.json"]


def test_reading_goes_file_by_file(tmp_path):
    write(tmp_path, EXAMPLE, name="a.json")
    late = write(tmp_path, EXAMPLE, name="b.json")
    records = iter(ProfileReader(tmp_path))
    assert isinstance(next(records), LatencyRecord)
    late.write_text("broken")  # not read yet
    assert list(records) == []


def test_data_sets_are_found_or_chosen(tmp_path):
    write_profiles(tmp_path, datasets=("okvqa", "mmmu"), count=2)
    (tmp_path / "empty").mkdir()
    assert ProfileReader(tmp_path).dataset_names == ["mmmu", "okvqa"]
    records, report = read(tmp_path, dataset_names=["okvqa", "okvqa"])
    assert {record.dataset for record in records} == {"okvqa"}
    assert (report.num_files, report.num_records) == (27, 54)
    with pytest.raises(ValueError, match=r"no doc_qa, empty; data sets there: \['mmmu', 'okvqa'\]"):
        ProfileReader(tmp_path, ["doc_qa", "mmmu", "empty"])


def test_an_empty_or_absent_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no <dataset>/"):
        ProfileReader(tmp_path)
    with pytest.raises(ValueError, match="not a folder"):
        ProfileReader(tmp_path / "absent")


SAMPLE = Sample(id="s1", task="shapes", image=None, prompt="?", answers=("yes",))
FACTS = DeviceFacts.of(torch.device("cpu"), torch.float32, "wall", "eager")
EXECUTION = Execution(
    knobs=Knobs(tier=Tier.MEDIUM, position=2, top_k=5, num_blocks=14),
    answer="yes",
    num_output_tokens=3,
    finished=True,
    latency_ms=17.0,
    wall_ms=18.0,
    stages_ms={
        "vision_global": 1.0,
        "vision_crops": 2.0,
        "projector": 1.0,
        "embed": 0.5,
        "block_00": 4.0,
        "block_01": 4.0,
        "head": 0.5,
        "decode_00": 0.0,
        "decode_01": 2.0,
        "decode_02": 2.0,
    },
    host_ms=1.0,
    num_vision_tokens=144,
    num_text_tokens=20,
    tiling=(0, 0),
)


def write_records(path, records, facts=FACTS):
    write_items(path, [record.to_json() for record in records], asdict(facts))


def record_of(execution: Execution, score: float = 1.0, sample: Sample = SAMPLE) -> ProfileRecord:
    return ProfileRecord.of(sample, execution, score, clock="wall", calibrated_ms=15.0)


def test_written_profiles_are_read_back(tmp_path):
    path = tmp_path / "shapes" / "medium_k5_b14.json"
    write_records(path, [record_of(EXECUTION)])
    ((record,), report) = read(tmp_path)
    assert record == LatencyRecord(
        dataset="shapes",
        sample_key="shapes sample s1",
        vision_tokens=144,
        text_tokens=20,
        tier=Tier.MEDIUM,
        top_k=5,
        num_active_blocks=14,
        output_tokens=3,
        prefill_ms=13.0,
        decode_ms=4.0,
        recorded_decode_per_token_ms=2.0,  # two steps made three tokens
        insertion_position=2,
        score=1.0,
    )
    assert record.prefill_ms + record.decode_ms == EXECUTION.latency_ms
    assert report.num_decode_disagree == 1
    content = json.loads(path.read_text())
    assert content["device"]["dtype"] == "float32"
    (item,) = content["per_sample_results"]
    assert (item["task"], item["answer"], item["num_decode_steps"]) == ("shapes", "yes", 2)
    assert item["stages_ms"] == EXECUTION.stages_ms
    assert (item["latency_ms"], item["wall_ms"], item["calibrated_ms"]) == (17.0, 18.0, 15.0)
    assert item["clock"] == content["device"]["clock"] == "wall"


def test_an_answer_of_one_token_has_no_decode_time(tmp_path):
    short = replace(EXECUTION, num_output_tokens=1)
    write_records(tmp_path / "t" / "a.json", [record_of(short, 0.0)])
    assert dict(read(tmp_path)[1].omitted_records) == {"T_LLM_decode is zero": 1}


def test_the_image_id_comes_from_the_metadata(tmp_path):
    sample = replace(SAMPLE, metadata={"image_id": 7})
    write_records(tmp_path / "t" / "a.json", [record_of(EXECUTION, 0.0, sample)])
    assert read(tmp_path)[0][0].sample_key == "image 7"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "t" / "a.json"
    write_records(path, [record_of(EXECUTION)])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_records(path, [record_of(EXECUTION, float("nan"))])
    with pytest.raises(ValueError, match="no records"):
        write_records(path, [])
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_profiles_of_two_runtimes_are_refused_and_older_files_are_eager(tmp_path):
    folder = tmp_path / "t"
    write_records(folder / "a.json", [record_of(EXECUTION)])
    older = json.loads((folder / "a.json").read_text())
    del older["device"]["runtime"]
    (folder / "b.json").write_text(json.dumps(older))
    assert len(list(ProfileReader(tmp_path))) == 2
    write_records(folder / "c.json", [record_of(EXECUTION)], replace(FACTS, runtime="graphs"))
    with pytest.raises(ValueError, match=r"t/a.json .* eager and t/c.json with graphs"):
        list(ProfileReader(tmp_path))


def test_records_of_text_alone_are_read():
    record = parse_record(EXAMPLE | {"actual_vision_tokens": 0, "T_vision_total": 0.0}, "chain", 0)
    assert record.vision_tokens == 0
    assert record.prefill_ms == EXAMPLE["T_LLM_prefill"]
    with pytest.raises(ValueError, match="T_vision_total is zero"):
        parse_record(EXAMPLE | {"T_vision_total": 0.0}, "chain", 0)
