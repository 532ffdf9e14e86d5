"""A broken picture is one DataError that names its sample; an odd one is decoded."""

import io
import random
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from envs.spec import DataError
from envs.tasks.vqa.picture import Picture
from tests.envs.vqa.fixtures.odd_pictures import (
    DECODABLE,
    exif_turned_jpeg,
    not_an_image,
    one_pixel_high,
    one_pixel_wide,
    truncated_jpeg,
    zero_bytes,
)
from tests.envs.vqa.fixtures.pictures import jpeg, picture, png

NAME = "text_vqa/train/3 (question 7)"


def encoded(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture("broken").save(buffer, kind, **options)
    return buffer.getvalue()


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def chunk(kind: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def png_claiming(width: int, height: int, content: bytes = b"") -> bytes:
    """A 1-bit PNG whose header claims a size."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(content)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def wrong_checksum() -> bytes:
    content = bytearray(png(picture("broken")))
    place = content.index(b"IDAT") + 20
    content[place] ^= 0xFF
    return bytes(content)


BROKEN = {
    "a web page": (not_an_image("x"), "its image is broken"),
    "half a JPEG": (truncated_jpeg("x"), "its image is broken .*download it again"),
    "a JPEG's first bytes": (jpeg(picture("x"))[:24], "its image is broken"),
    "half a PNG": (half(png(picture("x"))), "its image is broken"),
    "a wrong checksum": (wrong_checksum(), "its image is broken"),
    "half a GIF": (half(encoded("GIF")), "its image is broken"),
    "half a TIFF": (half(encoded("TIFF", compression="tiff_lzw")), "its image is broken"),
    "half a BMP": (half(encoded("BMP")), "its image is broken"),
    "half a WebP": (half(encoded("WEBP")), "its image is broken"),
    "zeros": (bytes(4096), "its image is broken"),
    "an archive": (b"PK\x03\x04" + bytes(60), "its image is broken"),
    "a drawing": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "its image is broken"),
    "no pixels": (png_claiming(0, 8), "its image is (broken|only)"),
    "fewer pixels than claimed": (png_claiming(64, 64, b"\0"), "its image is broken"),
    "a bomb": (png_claiming(40_000, 40_000), "its image is too large"),
    "one pixel wide": (one_pixel_wide("x"), "its image is only 1 x 72 pixels"),
    "one pixel high": (one_pixel_high("x"), "its image is only 96 x 1 pixels"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_bytes(content: bytes, message: str):
    with pytest.raises(DataError, match=rf"sample text_vqa/train/3 .question 7.: {message}"):
        Picture(content=content).open(NAME)


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_files_are_named(content: bytes, message: str, tmp_path: Path):
    path = tmp_path / "one.jpg"
    path.write_bytes(content)
    expected = message.replace("its image", f"image {path}")
    with pytest.raises(DataError, match=rf"sample text_vqa/train/3 .question 7.: {expected}"):
        Picture(paths=(tmp_path / "none.jpg", path)).open(NAME)


def test_files_that_are_not_there(tmp_path: Path):
    (tmp_path / "folder.jpg").mkdir()
    for path in (tmp_path / "none.jpg", tmp_path / "folder.jpg", tmp_path / ("x" * 300)):
        with pytest.raises(DataError, match=r"its image is missing .looked for .*both"):
            Picture(paths=(path, tmp_path / "both")).open(NAME)
    (tmp_path / "empty.jpg").write_bytes(zero_bytes("x"))
    with pytest.raises(DataError, match=r"image .*empty\.jpg is broken"):
        Picture(paths=(tmp_path / "empty.jpg",)).open(NAME)


@pytest.mark.parametrize("make", DECODABLE)
def test_odd_pictures_are_decoded_in_their_own_mode(make, recwarn: pytest.WarningsRecorder):
    image = Picture(content=make("odd")).open(NAME)
    assert min(image.size) >= 2
    image.convert("RGB")
    assert not [w for w in recwarn if "Bomb" in w.category.__name__]


def test_a_scan_beyond_pillows_warning_is_decoded(recwarn: pytest.WarningsRecorder):
    rows = bytes(1 + 12_500 // 8 + 1) * 8_000
    image = Picture(content=png_claiming(12_500, 8_000, rows)).open(NAME)
    assert image.size == (12_500, 8_000)
    assert image.size[0] * image.size[1] > (Image.MAX_IMAGE_PIXELS or 0)
    assert not recwarn


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("http://x", "an image column of str: give bytes and path"),
        ([1, 2], "an image column of list"),
        (b"raw", "an image column of bytes"),
        (7, "an image column of int"),
    ],
)
def test_cells_of_another_type(cell: object, message: str):
    with pytest.raises(DataError, match=message):
        Picture.of_cell(cell, None)


@pytest.mark.parametrize(
    "cell", [None, {}, {"bytes": None, "path": None}, {"bytes": b"", "path": ""}, {"bytes": b""}]
)
def test_empty_cells_hold_no_picture(cell: object):
    assert Picture.of_cell(cell, None) is None


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Tag data", "ignore:Truncated File")
@pytest.mark.parametrize("make", [jpeg, png, None])
def test_damage_anywhere_is_a_data_error_or_a_picture(make):
    """Single bytes changed or the end cut off, the EXIF tags included."""
    whole = exif_turned_jpeg("x") if make is None else make(picture("x"))
    rng = random.Random(0)
    messages, num_decoded = [], 0
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 3, 30))):
            content[rng.randrange(min(len(content), rng.choice((40, 200, 10**6))))] = rng.randrange(
                256
            )
        cut = content[: rng.randrange(len(content))] if rng.random() < 0.2 else content
        try:
            Picture(content=bytes(cut)).open(NAME)
            num_decoded += 1
        except DataError as error:
            messages.append(str(error))
    assert all(message.startswith(f"sample {NAME}: ") for message in messages)
    assert num_decoded > 10
    assert len(messages) > 10
