"""The tour: answers by budget and price, their words, the table and the page."""

import io
import re
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from envs.calibration import SteadyTime
from envs.spec import CHEAPEST_KNOBS, FULL_KNOBS, Knobs, Tier
from launch import tour as program
from launch.answering.policies import ControllerPolicy
from launch.answering.tour import BAR_LENGTH, as_page, as_table, as_text, given_up, parts_ms, take
from tests.rollout import rig

SAMPLE = rig.NoiseTask().sample("test", 3)
BUDGETS_MS, PRICES = (1e-3, 40.0, 1e6), (0.0, 0.5)


@pytest.fixture(scope="module")
def taken():
    policy = ControllerPolicy(
        rig.executor(max_new_tokens=2), rig.controller(), SteadyTime(), "a test", lambda _: None
    )
    return take(policy, SAMPLE, lambda _text: 1.0, budgets_ms=BUDGETS_MS, prices=PRICES)


def test_every_budget_meets_every_price_once(taken):
    asked = [[(answer.budget_ms, answer.price) for answer in row] for row in taken.answers]
    assert asked == [[(budget_ms, price) for price in PRICES] for budget_ms in BUDGETS_MS]
    assert (taken.full.knobs, taken.full.budget_ms) == (FULL_KNOBS, 1e6)


def test_parts_add_up_to_the_latency(taken):
    for answer in (taken.full, *(answer for row in taken.answers for answer in row)):
        assert sum(ms for _, ms in parts_ms(answer)) == pytest.approx(answer.latency_ms, rel=1e-6)


def test_words_for_what_was_given_up_and_what_it_cost(taken):
    assert given_up(CHEAPEST_KNOBS, True) == "without 9/12 crops, 4/8 experts, 4/16 blocks"
    assert given_up(CHEAPEST_KNOBS, False) == "without 4/8 experts, 4/16 blocks"
    deep = Knobs(tier=Tier.HIGH, position=5, top_k=8, num_blocks=16)
    assert given_up(deep, True) == "nothing given up"
    half = replace(taken.full, latency_ms=taken.full.latency_ms / 2, price=0.5)
    assert taken.details(half)[2].endswith("50% of full, worth 0.250 answers")
    assert [taken.verdict(row[0]) for row in taken.answers[::2]] == ["right, late", "right"]
    partly = replace(taken, score=lambda _text: 0.75)
    assert [partly.verdict(row[0]) for row in partly.answers[::2]] == [
        "75% right, late",
        "75% right",
    ]
    unknown = replace(taken, score=None)
    assert [unknown.verdict(row[0]) for row in unknown.answers[::2]] == ["late", ""]


def test_bars_are_as_long_as_the_latency_and_mark_the_budget(taken):
    stages = {"blocks": 30.0, "decode": 10.0}
    answer = replace(taken.full, latency_ms=40.0, budget_ms=80.0, stages_ms=stages)
    bar = as_text(replace(taken, full=answer, answers=[[answer]]), answer).plain.split("\n")[1]
    assert bar == f"{'p' * 9}{'d' * 3}{' ' * (BAR_LENGTH - 12)}|"
    late = replace(answer, budget_ms=20.0)
    bar = as_text(replace(taken, full=late, answers=[[late]]), late).plain.split("\n")[1]
    assert bar == f"{'p' * 12}|{'p' * 6}{'d' * 6}"


def test_the_table_and_the_page_show_all_of_it(taken):
    text = io.StringIO()
    Console(file=text, width=150).print(as_table(taken))
    assert text.getvalue().count("% of full") == 6
    page = as_page(replace(taken, full=replace(taken.full, text="<b>")), "run <one>")
    assert page.count('<div class="stack">') == 7
    assert page.count("<img") == 1
    assert "&lt;b&gt;" in page
    assert "run &lt;one&gt;" in page
    assert "The mark on the bar is the largest budget, 1e+06 ms." in page
    assert page.count('<td data-head="price 0.5">') == 3, "a phone shows the price in each cell"
    assert ".tour td::before { content: attr(data-head);" in page
    assert ".tour { min-width: 0; } .tour thead { display: none; }" in page
    assert '<li><u class="mark"></u>the budget</li></ul>' in page
    assert not re.search(r'(src|href)="(?!data:)', page), "the page needs no other file"


def test_partial_scores_are_explained_where_there_are_some(taken):
    for score, times in ((1.0, 0), (0.75, 1)):
        tour = replace(taken, score=lambda _text, score=score: score, partial="a share")
        assert as_page(tour, "").count("Partly right: a share.") == times
        assert str(as_table(tour).caption).count("partly right: a share") == times


@pytest.mark.slow
def test_the_shipped_controller_gives_a_tour(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.html"
    monkeypatch.setattr(sys, "argv", ["tour.py", "--num-budgets", "2", "--out", str(page)])
    assert program.main() == 0
    output = capsys.readouterr().out
    assert "expected: 9384" in output
    assert output.count("% of full") == 6
    assert "price 0.5" in page.read_text()


def test_an_image_needs_a_prompt(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tour.py", "--image", "a.png"])
    with pytest.raises(SystemExit):
        program.main()
    assert "--image needs a --prompt" in capsys.readouterr().err
