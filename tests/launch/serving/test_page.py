"""The page as a file: complete in itself, with examples of every task that ships."""

import json
import re

from envs.tasks.registry import WEIGHTS
from launch.serving.app import SECURITY_HEADERS
from launch.serving.page import BEGIN, Example, render, shipped_examples
from launch.serving.responses import ResponseHead, Served
from tests.launch.serving.asgi import result


def settings_of(page):
    line = next(line for line in page.splitlines() if BEGIN in line)
    return json.loads(line.partition(BEGIN)[2].rstrip(";"))


def test_there_is_an_example_of_each_task():
    examples = shipped_examples()
    assert [example.title.replace(" ", "_") for example in examples[:-1]] == list(WEIGHTS)
    assert examples[-1].image is None
    for example in examples:
        assert ":" in example.prompt, "the model tells its tasks apart by the first word"
        assert example.image is None or example.image.startswith("data:image/png;base64,")
    page = render(examples, 123.0)
    found = settings_of(page)
    assert [example["prompt"] for example in found["examples"]] == [e.prompt for e in examples]
    assert found["budget_ms"] == 123.0
    assert len(page) < 1_000_000


def test_an_example_cannot_end_the_script():
    nasty = "</script><script>alert(1)</script><!--"
    page = render([Example(title=nasty, prompt=nasty, image=None)], 100)
    assert page.count("</script>") == 1
    assert settings_of(page)["examples"][0]["prompt"] == nasty


def test_the_page_takes_nothing_from_elsewhere():
    page = render([], 100.0)
    addresses = re.findall(
        r"""(?:src|href)\s*=\s*["']([^"']*)|url\(([^)]*)\)|@import|https?://\S+""", page
    )
    outside = [
        a for a in re.findall(r"https?://[^\"'\s)]+", page) if "www.w3.org/2000/svg" not in a
    ]
    assert outside == []
    assert all(one.startswith("data:") or not one for one, _ in addresses)
    assert "default-src 'none'" in SECURITY_HEADERS["Content-Security-Policy"]


def test_everything_that_can_be_used_has_a_label():
    page = render([], 100.0)
    ids = re.findall(r"<(?:input|textarea|select)[^>]*\bid=\"([^\"]+)\"", page)
    assert set(ids) == {"file", "question", "budget", "budget-number", "price", "model", "token"}
    for name in ids:
        tag = re.search(rf"<(?:input|textarea|select)[^>]*\bid=\"{name}\"[^>]*>", page)[0]
        assert f'for="{name}"' in page or "aria-label=" in tag
    assert "prefers-color-scheme: dark" in page
    assert "max-width: 46rem" in page
    assert 'name="viewport"' in page


def test_the_page_knows_every_stage_of_an_answer():
    from launch.answering.answerer import grouped

    page = render([], 100.0)
    for stage in grouped({}):
        assert f'"{stage}"' in page, stage


def test_what_the_page_reads_is_what_the_server_sends():
    page = render([], 100.0)
    served = Served(result=result(), budget_ms=50.0, waited_ms=1.0, total_ms=12.0, is_late=False)
    sent = served.to_json()
    for field in set(
        re.findall(r"\b(?:served|s)\.([a-z_]+_ms|within_budget|in_words|price)\b", page)
    ):
        assert field in sent, field
    head = ResponseHead(id="a", created_s=1, model="full")
    event = json.loads(head.last_event(served).removeprefix("data: "))
    assert event["latency_budget"] == sent
