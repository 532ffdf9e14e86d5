"""Two hundred requests that no server should accept, for the app in process and over HTTP."""

import base64
import io
import json
import struct
import zlib

from PIL import Image

from tests.launch.serving.asgi import question

FIELDS = (
    *("messages", "model", "stream", "max_tokens", "max_completion_tokens", "temperature"),
    *("top_p", "n", "latency_budget_ms", "seed", "user", "logprobs", "metadata", "stream_options"),
)
WRONG = ("text", -1, [], {"a": 1}, True, 1.5, "", [[]])
ALLOWED = {
    *(("model", "text"), ("user", "text"), ("user", ""), ("stream", True), ("temperature", True)),
    *(("temperature", 1.5), ("latency_budget_ms", 1.5), ("seed", -1)),
}
"""Pairs of a field and a value that are right, or that Python takes for equal to right ones."""


def url_of(encoded, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(encoded).decode()}"


def encoded_image(size=(64, 48), kind="PNG"):
    file = io.BytesIO()
    Image.effect_noise(size, 50).convert("RGB").save(file, kind)
    return file.getvalue()


def bomb(width, height):
    """A PNG whose header promises more pixels than anybody should decode."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = zlib.compress(b"\0" * 100_000)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", content)
        + chunk(b"IEND", b"")
    )


def wrong_images():
    png, jpeg = encoded_image(), encoded_image(kind="JPEG")
    for length in (0, 1, 7, 8, 20, 33, 40, 100, len(png) // 2, len(png) - 30):
        yield url_of(png[:length])
    for length in (2, 10, 100, len(jpeg) // 3, len(jpeg) // 2):
        yield url_of(jpeg[:length], "image/jpeg")
    for place in (17, 24, 30, 45, 60):
        broken = bytearray(png)
        broken[place : place + 4] = b"\xff\xfe\xfd\xfc"
        yield url_of(bytes(broken))
    for size in ((20_000, 20_000), (65_535, 65_535), (2**31 - 1, 1), (6000, 6000)):
        yield url_of(bomb(*size))
    yield url_of(encoded_image(kind="TIFF"), "image/tiff")
    yield url_of(encoded_image(kind="ICO"), "image/png")
    yield url_of(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml")
    yield url_of(b"%PDF-1.4", "image/png")
    yield url_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99999 99999\n", "image/png")
    for wrong in ("%%%", "====", "a", "YWJj*", "é" * 10):
        yield f"data:image/png;base64,{wrong}"
    yield from (
        *("http://127.0.0.1:1/cat.png", "https://example.org/cat.png", "file:///etc/passwd"),
        *("ftp://example.org/a.png", "//example.org/a.png", "cat.png", "", " ", "data:", "data:,"),
        *("data:text/html;base64,PGI+", "javascript:alert(1)", "gopher://127.0.0.1/"),
        *("http://169.254.169.254/latest/meta-data/", "blob:abc", "data:image/png;base64"),
        *("http://[::1]:1/a.png", "HTTP://LOCALHOST/", "unix:///var/run/docker.sock"),
    )


def wrong_contents():
    yield from (None, 5, [], {}, True, "", "   ", "\n\t", ["a"], [None], [[]], [{}])
    yield [{"type": "text"}]
    yield [{"type": "text", "text": 5}]
    yield [{"type": "text", "text": ""}]
    yield [{"type": "audio", "text": "a"}]
    yield [{"type": "image_url"}]
    yield [{"type": "image_url", "image_url": "a"}]
    yield [{"type": "image_url", "image_url": {"url": 5}}]
    yield [{"type": "text", "text": "a", "more": 1}]
    image = {"type": "image_url", "image_url": {"url": url_of(encoded_image())}}
    yield [{"type": "text", "text": "a"}, image, image]
    yield [{"type": "image_url", "image_url": {"url": url_of(encoded_image()), "detail": "best"}}]
    yield "a" * 4001
    yield "x" * 1_000_000
    yield [{"type": "text", "text": "a" * 2001}] * 2


def wrong_bodies():
    good = {"model": "full", "messages": question()}
    text = json.dumps(good)
    yield from (
        b"",
        b" ",
        b"null",
        b"5",
        b"[]",
        b'"text"',
        b"{}",
        b"{",
        b"not json",
        b"\xff\xfe\x00",
    )
    yield from (text[:-1].encode(), text.replace('"', "'").encode(), f"{text}{text}".encode())
    yield from (b"[" * 100_000, b'{"a":' * 50_000, text.encode("utf-16"))
    yield text.replace("what is it", "\\ud800").encode()
    for budget in ("NaN", "Infinity", "-Infinity", "1e999", "-5", "0", "-0.0", "1e-400", "60000.5"):
        yield f'{text[:-1]}, "latency_budget_ms": {budget}}}'.encode()
    for wrong in (
        {**good, "tools": [{}]},
        {**good, "functions": [{}]},
        {**good, "response_format": {}},
    ):
        yield json.dumps(wrong).encode()
    for unknown in ("stop", "logit_bias", "audio", "modalities", "latency_budget", "__proto__"):
        yield json.dumps({**good, unknown: 1}).encode()


def malformed():
    """Bodies of requests to POST /v1/chat/completions, each wrong in one way."""
    good = {"model": "full", "messages": question()}
    found = [*wrong_bodies()]
    for field in FIELDS:
        for value in WRONG:
            if (field, value) not in [pair for pair in ALLOWED if pair[0] == field]:
                found.append(json.dumps({**good, field: value}).encode())
    for messages in (
        *([{"role": role, "content": "a"}] for role in ("system", "assistant", "tool", "", 5)),
        [*question(), {"role": "assistant", "content": "a"}],
        [{"content": "a"}],
        [{"role": "user"}],
        ["a"],
    ):
        found.append(json.dumps({**good, "messages": messages}).encode())
    for content in wrong_contents():
        message = {"role": "user", "content": content}
        found.append(json.dumps({**good, "messages": [message]}).encode())
    for url in wrong_images():
        found.append(json.dumps({**good, "messages": question("what", url)}).encode())
    for model in ("gpt-4o", "low-p9-k4-b12", "../full", "full\n", "a" * 10_000):
        found.append(json.dumps({**good, "model": model}).encode())
    return found
