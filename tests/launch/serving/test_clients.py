"""What ordinary clients send, through the official one, to the interface in process."""

import asyncio
import base64
import textwrap

import httpx2
import openai
import pytest

from launch.serving.admission import QueueConfig
from launch.serving.requests import CAPTION_PROMPT
from tests.launch.serving.asgi import Server, question
from tests.launch.serving.malformed import encoded_image, url_of

CAT, DOG = encoded_image((64, 48)), encoded_image((30, 20))


class Requests:
    """Counts the HTTP requests of a client."""

    def __init__(self, app):
        self.number, self._transport = 0, httpx2.ASGITransport(app)
        self.client = openai.AsyncOpenAI(
            base_url="http://127.0.0.1/v1",
            api_key="none",
            http_client=httpx2.AsyncClient(
                transport=self._transport, event_hooks={"request": [self._count]}
            ),
        )

    async def _count(self, _request):
        self.number += 1


def run(check, **settings):
    """Runs a check with the official client, on a server that is ready."""

    async def checked():
        server = await Server(**settings).ready()
        requests = Requests(server.app)
        async with requests.client:
            await asyncio.wait_for(check(server, requests), 60)

    asyncio.run(checked())


def ask(requests, messages=None, **fields):
    messages = question() if messages is None else messages
    return requests.client.chat.completions.create(model="full", messages=messages, **fields)


def said(role, *content):
    """A message of texts and encoded images; a single text as a string."""
    if content and all(isinstance(part, str) for part in content) and len(content) == 1:
        return {"role": role, "content": content[0]}
    parts = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": url_of(part)}}
        for part in content
    ]
    return {"role": role, "content": parts}


NEUTRAL = {
    **{"stop": None, "tool_choice": "none", "response_format": {"type": "text"}},
    **{"logit_bias": {}, "parallel_tool_calls": True, "service_tier": "auto"},
    **{"reasoning_effort": "low", "top_logprobs": None, "modalities": ["text"], "tools": []},
    **{"n": 1, "logprobs": False, "store": False, "seed": 1, "user": "a", "metadata": {}},
    **{"functions": [], "function_call": "none", "audio": None, "prediction": None},
    **{"verbosity": "low", "web_search_options": None, "prompt_cache_key": "a"},
    **{"safety_identifier": "a", "frequency_penalty": 0, "presence_penalty": 0, "top_p": 1},
    **{"temperature": 0.7, "max_tokens": None, "max_completion_tokens": 5, "stream": False},
    **{"stream_options": None},
}


@pytest.mark.parametrize("name", [*NEUTRAL, "all"])
def test_neutral_values_change_nothing(name):
    async def check(server, requests):
        fields = NEUTRAL if name == "all" else {name: NEUTRAL[name]}
        reply = await ask(requests, **fields)
        assert reply.choices[0].message.content == "seven"
        assert len(server.replicas.requests) == 1

    run(check)


CHANGING = {
    **{"stop": "\n", "n": 4, "logprobs": True, "top_logprobs": 3, "store": True},
    **{"tools": [{"type": "function", "function": {"name": "a"}}], "tool_choice": "required"},
    **{"response_format": {"type": "json_object"}, "logit_bias": {"5": 1}},
    **{"modalities": ["text", "audio"], "audio": {"voice": "a", "format": "mp3"}},
    **{"prediction": {"type": "content", "content": "a"}, "functions": [{"name": "a"}]},
    **{"function_call": {"name": "a"}, "web_search_options": {}},
}


@pytest.mark.parametrize("name", CHANGING)
def test_what_would_change_the_answer_is_refused_by_name(name):
    async def check(server, requests):
        with pytest.raises(openai.BadRequestError, match=f"{name} is supported only as") as error:
            await ask(requests, **{name: CHANGING[name]})
        assert (error.value.param, error.value.code) == (name, "unsupported_parameter")
        assert requests.number == 1
        assert server.replicas.requests == []

    run(check)


def test_a_misspelt_name_is_refused():
    async def check(_server, requests):
        with pytest.raises(openai.BadRequestError, match="max_token is not supported") as error:
            await ask(requests, extra_body={"max_token": 5})
        assert error.value.param == "max_token"

    run(check)


CONVERSATIONS = {
    "a system message goes before the question": (
        [said("system", "Be brief."), said("user", "what is it", CAT)],
        ("Be brief.\nwhat is it", CAT),
    ),
    "a developer message too": (
        [said("developer", "Be brief."), said("system", "Be kind."), said("user", "what is it")],
        ("Be brief.\nBe kind.\nwhat is it", None),
    ),
    "the last question, with the image of an earlier one": (
        [
            *(said("user", "what is it", CAT), said("assistant", "a cat")),
            *(said("user", "what colour"),),
        ],
        ("what colour", CAT),
    ),
    "the last question, with the last image": (
        [
            *(said("user", "what is it", CAT), said("assistant", "a cat")),
            *(said("user", DOG, "and this"), said("assistant", "a dog"), said("user", "sure?")),
        ],
        ("sure?", DOG),
    ),
    "an answer as the official client returns it": (
        [
            said("user", "what is it"),
            {
                **said("assistant", "seven"),
                **{"refusal": None, "annotations": [], "audio": None, "function_call": None},
                **{"tool_calls": None},
            },
            said("user", "sure?"),
        ],
        ("sure?", None),
    ),
    "an image without text": ([said("user", CAT)], (CAPTION_PROMPT, CAT)),
    "an image with empty text": ([said("user", " ", CAT)], (CAPTION_PROMPT, CAT)),
    "an image with instructions alone": (
        [said("system", "Name the animal."), said("user", CAT)],
        ("Name the animal.", CAT),
    ),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations(name):
    messages, expected = CONVERSATIONS[name]

    async def check(server, requests):
        await ask(requests, messages)
        (request,) = server.replicas.requests
        assert (request.text, request.image) == expected

    run(check)


def test_an_answer_can_be_sent_back_as_it_came():
    async def check(server, requests):
        reply = await ask(requests)
        again = [*question(), reply.choices[0].message.model_dump(), *question("sure?")]
        await ask(requests, again)
        assert server.replicas.requests[-1].text == "sure?"

    run(check)


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([], "the last message is not the user's"),
        ([said("user", "a"), said("assistant", "b")], "the last message is not the user's"),
        ([said("system", "a")], "there is no message of the role user"),
        ([said("system", "a"), said("user", " ")], "the question is empty"),
        ([said("user", "a", CAT, DOG)], "2 images in one message"),
        ([said("tool", "a")], "one of the roles system, developer, user and assistant"),
        ([said("system", "a", CAT), said("user", "b")], r"messages\.0\.content has an image"),
    ],
)
def test_conversations_that_have_no_answer(messages, told):
    async def check(server, requests):
        with pytest.raises(openai.BadRequestError, match=told):
            await ask(requests, messages)
        assert server.replicas.requests == []

    run(check)


def test_a_misspelt_name_in_a_message_is_refused():
    async def check(_server, requests):
        part = {"type": "text", "text": "a", "txt": "b"}
        for message, path in (
            ({"role": "user", "content": [part]}, "messages.0.content.0.txt"),
            ({"role": "user", "content": "a", "contents": "b"}, "messages.0.contents"),
        ):
            with pytest.raises(openai.BadRequestError, match="leave it out") as error:
                await ask(requests, [message])
            assert error.value.param == path

    run(check)


@pytest.mark.parametrize("role", ["user", "system"])
def test_content_that_is_null_is_told_what_to_send(role):
    async def check(_server, requests):
        messages = [{"role": role, "content": None}, said("user", "a")]
        with pytest.raises(openai.BadRequestError, match="is null: send a string") as error:
            await ask(requests, messages)
        assert error.value.param == "messages.0.content"

    run(check)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        *((5, ""), ({"a": 1}, ""), ([5], ".0"), ([{"type": "audio"}], ".0")),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": 5}], ".1"),
    ],
)
@pytest.mark.parametrize("role", ["user", "system"])
def test_content_of_another_kind_is_told_what_to_send(role, content, part):
    async def check(_server, requests):
        messages = [{"role": role, "content": content}, said("user", "a")]
        with pytest.raises(openai.BadRequestError, match="cannot be read: send a string") as error:
            await ask(requests, messages)
        assert error.value.param == f"messages.0.content{part}"

    run(check)


def test_an_image_url_that_is_a_string_is_told_what_to_send():
    async def check(_server, requests):
        parts = [{"type": "image_url", "image_url": url_of(CAT)}]
        with pytest.raises(openai.BadRequestError, match=r'is a string: send \{"url"') as error:
            await ask(requests, [{"role": "user", "content": parts}])
        assert "data:image/png;base64,..." in error.value.message

    run(check)


def lines(text):
    """As `base64` prints it."""
    return "\n".join(textwrap.wrap(text, 76)) + "\n"


@pytest.mark.parametrize(
    "written",
    [lines, lambda t: lines(t).replace("\n", "\r\n"), lambda t: t.rstrip("=")],
    ids=["lines", "lines of Windows", "no padding"],
)
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_base64_as_programs_print_it(written, encode):
    async def check(server, requests):
        for size in ((64, 48), (63, 48), (62, 47)):  # with and without padding
            image = encoded_image(size)
            url = f"data:image/png;base64,{written(encode(image).decode())}"
            await ask(requests, question("what is it", url))
            assert server.replicas.requests[-1].image == image

    run(check)


def test_a_budget_that_nothing_can_meet_is_asked_for_once():
    async def check(server, requests):
        with pytest.raises(openai.BadRequestError, match="Give a larger budget") as error:
            await ask(requests, extra_body={"latency_budget_ms": 4})
        assert error.value.code == "budget_too_short"
        assert error.value.response.headers["x-should-retry"] == "false"
        assert requests.number == 1
        server.gateway.admission.resize(0)
        server.gateway.admission.config = QueueConfig(late="refuse", max_waiting=0)
        with pytest.raises(openai.RateLimitError, match="the queue is full") as error:
            await ask(requests)
        assert "x-should-retry" not in error.value.response.headers
        assert requests.number == 4, "the official client tries three times"

    run(check, queue=QueueConfig(late="refuse"))


def test_a_late_request_has_an_answer_unless_late_ones_are_refused():
    async def check(server, requests):
        reply = await ask(requests, extra_body={"latency_budget_ms": 4})
        assert reply.latency_budget["is_late"]
        assert server.replicas.requests[-1].policy == "cheapest"

    run(check)


def test_health_has_two_names_and_needs_a_replica():
    async def check():
        server = Server()
        for path in ("/health", "/healthz"):
            assert (await server.call("GET", path)).status == 503
        await server.ready()
        for path in ("/health", "/healthz"):
            assert (await server.call("GET", path)).json() == {"status": "ok", "replicas": 1}
        server.gateway.admission.resize(0)
        for path in ("/health", "/healthz"):
            assert (await server.call("GET", path)).status == 503

    asyncio.run(check())


def test_names_of_unknown_models_make_no_metrics():
    async def check(server, requests):
        for number in range(20):
            with pytest.raises(openai.NotFoundError):
                await requests.client.chat.completions.create(
                    model=f"model-{number}", messages=question()
                )
        assert set(server.watcher.codes) == {("", "model_not_found")}

    run(check)


def test_other_sites_may_not_read_answers():
    async def check():
        server = await Server().ready()
        headers = {"host": "127.0.0.1", "origin": "https://example.org"}
        reply = await server.call("GET", "/v1/models", headers=headers)
        assert not [name for name in reply.headers if name.startswith("access-control")]

    asyncio.run(check())
