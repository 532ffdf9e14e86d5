"""Images of requests: what is decoded and what is refused."""

import io

import pytest
from PIL import Image

from launch.serving.errors import ApiError
from launch.serving.images import FORMATS, image_bytes, open_within
from tests.launch.serving.malformed import bomb, encoded_image, url_of


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_decoded(kind):
    encoded = encoded_image((30, 20), kind)
    assert image_bytes(url_of(encoded, f"image/{kind.lower()}"), "messages") == encoded
    assert open_within(encoded, 1.0).size == (30, 20)


def test_data_urls_may_have_parameters_or_no_type():
    encoded = encoded_image()
    plain = url_of(encoded)
    for kind in ("data:image/png;charset=utf-8;base64,", "data:;base64,", "DATA:image/png;BASE64,"):
        assert image_bytes(plain.replace("data:image/png;base64,", kind), "messages") == encoded
    assert image_bytes("data:image/png,%89PNG", "messages") == b"\x89PNG"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/a.png", "file:///etc/passwd", "", "data:text/html,a"]
)
def test_addresses_are_not_fetched(url):
    with pytest.raises(ApiError, match="does not fetch addresses"):
        image_bytes(url, "messages")


def test_pixels_are_counted_before_they_are_decoded():
    with pytest.raises(ApiError, match="2000 x 1001 pixels: send at most 2 million"):
        open_within(bomb(2000, 1001), 2.0)
    with pytest.raises(ApiError, match="pixels"):
        open_within(bomb(60_000, 60_000), 2.0)


def test_half_an_image_is_refused():
    encoded = encoded_image((200, 200))
    with pytest.raises(ApiError, match="cannot be decoded"):
        open_within(encoded[: len(encoded) // 2], 1.0)


def test_other_formats_are_refused_even_if_pillow_knows_them():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "TIFF")
    with pytest.raises(ApiError, match="in none of the formats"):
        open_within(file.getvalue(), 1.0)
