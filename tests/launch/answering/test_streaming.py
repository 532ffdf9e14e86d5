"""Text while it is decoded."""

import threading

import pytest

from launch.answering.answerer import Answer, Answerer
from launch.answering.streaming import TextPieces, in_thread
from tests.rollout import rig

WORDS = {1: "It", 2: " is", 3: "\N{REPLACEMENT CHARACTER}", 4: " late", 9: "<end>"}


def decode(token_ids):
    text = "".join(WORDS[token] for token in token_ids)
    return text.replace("\N{REPLACEMENT CHARACTER} late", " \N{EURO SIGN}").strip()


def test_pieces_join_to_the_text():
    pieces = TextPieces(decode, eos_token_id=9)
    assert [pieces.add(token) for token in (1, 2, 3, 4, 9)] == [
        "It",
        " is",
        "",
        " \N{EURO SIGN}",
        "",
    ]
    assert pieces.rest("It is \N{EURO SIGN}") == ""


def test_an_incomplete_character_at_the_end_is_sent_as_it_is():
    pieces = TextPieces(decode, eos_token_id=9)
    sent = [pieces.add(token) for token in (1, 3)]
    assert sent == ["It", ""]
    assert pieces.rest(decode([1, 3])) == "\N{REPLACEMENT CHARACTER}"


def test_a_closed_iterator_waits_for_the_end():
    ended = threading.Event()

    def work(tell):
        tell(1)
        ended.set()
        return "all"

    reports = in_thread(work)
    assert next(reports) == 1
    reports.close()
    assert ended.is_set()


def test_an_error_reaches_the_reader():
    def broken(_tell):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        list(in_thread(broken))


@pytest.fixture(scope="module")
def answerer(model_folder):
    return Answerer.load(worker_settings={"model": str(model_folder), "device": "cpu"})


def test_a_stream_is_the_answer_in_pieces(answerer):
    image = rig.NoiseTask().sample("train", 3).image
    whole = answerer.answer("what is it", budget_ms=1e6, image=image)
    *pieces, answer = answerer.stream("what is it", budget_ms=1e6, image=image)
    assert isinstance(answer, Answer)
    assert "".join(pieces) == answer.text == whole.text
    assert answer.num_output_tokens == whole.num_output_tokens
    assert answer.latency_ms == pytest.approx(sum(answer.stages_ms.values()))


def test_a_piece_is_yielded_before_the_next_token_is_decoded(answerer, monkeypatch):
    received, waits = threading.Semaphore(0), []
    original = Answerer.run

    def patient(self, *arguments, on_token):
        def tell(token_id):
            on_token(token_id)
            waits.append(received.acquire(timeout=5))

        return original(self, *arguments, on_token=tell)

    monkeypatch.setattr(Answerer, "run", patient)
    monkeypatch.setattr(TextPieces, "add", lambda _self, token_id: f"{token_id} ")
    for piece in answerer.stream("what is it", budget_ms=1e6):
        if isinstance(piece, str):
            received.release()
    assert len(waits) > 1
    assert all(waits)


def test_tokens_are_told_as_they_come_and_an_answer_may_be_shorter(answerer):
    from launch.answering.answerer import as_sample

    told, terms = [], answerer.terms(1e6)
    answer = answerer.run(
        as_sample("what is it", None), terms, max_new_tokens=2, on_token=told.append
    )
    assert len(told) == answer.num_output_tokens <= 2
    assert answerer.max_new_tokens > 2, "only for this answer"
    answerer.run(as_sample("what is it", None), terms)
    assert len(told) <= 2, "nobody listens any more"


def test_a_bad_question_is_refused_before_the_first_piece(answerer):
    with pytest.raises(ValueError, match="positive, finite"):
        next(iter(answerer.stream("what", budget_ms=-1)))
