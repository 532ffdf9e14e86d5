"""What `doctor` finds of data sets on one node."""

from envs.tasks.vqa.config import DataConfig
from launch.cluster.data_check import check_data
from tests.envs.vqa.fixtures import write_original


def config(folder, **sources):
    found = {name: str(folder / place) for name, place in sources.items()}
    return DataConfig(sources=found, validation_share=0.4)


def test_sizes_and_a_decoded_sample(tmp_path):
    write_original("okvqa", tmp_path / "okvqa")
    found, rendered = check_data(("okvqa", "digits"), config(tmp_path, okvqa="okvqa"))
    assert found.problem == ""
    assert found.sizes.endswith(" 6 test")
    assert found.sample.startswith("96 x 72, 'okvqa: ")
    assert (rendered.sizes, rendered.problem) == ("rendered", "")


def test_what_would_stop_a_run_is_named(tmp_path):
    write_original("okvqa", tmp_path / "okvqa")
    for picture in (tmp_path / "okvqa").rglob("COCO_val2014*.jpg"):
        picture.write_bytes(b"no picture")
    (tmp_path / "empty").mkdir()
    places = config(tmp_path, okvqa="okvqa", text_vqa="empty", doc_qa="nowhere")
    broken, empty, nowhere = check_data(("okvqa", "text_vqa", "doc_qa"), places)
    assert "20 samples in a row are unusable" in broken.problem
    assert "COCO_val2014" in broken.problem
    assert "text_vqa" in empty.problem
    assert "TextVQA_0.5.1_train.json" in empty.problem
    assert "nowhere does not exist" in nowhere.problem
