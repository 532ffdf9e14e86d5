import io

import numpy as np
from PIL import Image

from tests.envs.vqa.fixtures import odd_pictures
from tests.envs.vqa.fixtures.pictures import picture


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_odd_pictures():
    for draw in odd_pictures.DECODABLE:
        assert opened(draw("key")).convert("RGB").mode == "RGB"
        assert draw("key") == draw("key") != draw("another key")
    assert "transparency" in opened(odd_pictures.transparent_palette_png("key")).info
    assert opened(odd_pictures.one_pixel_high("key")).size == (96, 1)
    width, height = opened(odd_pictures.large_page("key")).size
    assert width * height > 20_000_000


def test_one_key_one_set_of_pixels():
    pictures = [np.asarray(picture(key)) for key in ("coco:42", "coco:42", "coco:73")]
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])
