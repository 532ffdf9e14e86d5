"""What the model sees of pictures of sixty kinds, next to the published order of steps."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from envs import pixels
from envs.pixels import MAX_PIXELS, to_rgb
from tests.envs.vqa.fixtures.pictures import picture

ORIENTATION = 0x0112
SIZE = (53, 31)

Make = Callable[[], bytes]


def published(content: bytes) -> np.ndarray:
    """The published order: `convert("RGB")`, then the EXIF turn, whose errors are ignored."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    with contextlib.suppress(Exception):
        image = ImageOps.exif_transpose(image)
    return np.array(image)


def saved(mode: str, kind: str, **options: Any) -> Make:
    def make() -> bytes:
        buffer = io.BytesIO()
        image = picture(f"{mode} {kind}", SIZE)
        if mode == "PA":
            image = image.convert("P").convert("PA")
        elif mode == "P":
            image = image.quantize(17)
        elif mode in ("RGBA", "LA"):
            image = image.convert(mode)
            image.putalpha(Image.linear_gradient("L").resize(SIZE))
        else:
            image = image.convert(mode)
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    return make


def turned(orientation: int, mode: str = "RGB", kind: str = "JPEG") -> Make:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return saved(mode, kind, exif=exif.tobytes())


def exif(content: bytes, kind: str = "JPEG") -> Make:
    return saved("RGB", kind, exif=content)


def png_text(key: str, text: str) -> Make:
    info = PngImagePlugin.PngInfo()
    info.add_itxt(key, text)
    return saved("RGB", "PNG", pnginfo=info)


def animated(kind: str) -> Make:
    def make() -> bytes:
        frames = [picture(f"frame {number}", SIZE) for number in range(3)]
        buffer = io.BytesIO()
        frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
        return buffer.getvalue()

    return make


def grey_png(bits: int) -> Make:
    """A PNG with greys of 1, 2 or 4 bits, which Pillow itself does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + crc

    def make() -> bytes:
        rows = b"".join(b"\0" + bytes((37 * row + k) % 256 for k in range(4)) for row in range(9))
        header = struct.pack(">IIBBBBB", 32 // bits, 9, bits, 0, 0, 0, 0)
        parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + parts

    return make


XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
    'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)

EIGHT_BITS: dict[str, Make] = {
    **{f"PNG {mode}": saved(mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")},
    **{f"PNG grey of {bits} bits": grey_png(bits) for bits in (1, 2, 4)},
    "PNG, one transparent colour of a palette": saved("P", "PNG", transparency=3),
    "PNG, palette with transparencies": saved("P", "PNG", transparency=bytes(range(0, 170, 10))),
    "PNG, one transparent colour": saved("RGB", "PNG", transparency=(1, 2, 3)),
    "PNG, one transparent grey": saved("L", "PNG", transparency=7),
    "PNG, uncompressed": saved("RGB", "PNG", compress_level=0),
    "PNG, palette of 4 bits": saved("P", "PNG", bits=4),
    "PNG, turned by EXIF": turned(6, kind="PNG"),
    "PNG, palette turned by EXIF": turned(8, "P", "PNG"),
    "PNG, 1 bit turned by EXIF": turned(3, "1", "PNG"),
    "PNG, transparent and turned": turned(5, "RGBA", "PNG"),
    "PNG, turned by XMP": png_text("XML:com.adobe.xmp", XMP),
    "PNG, broken XMP": png_text("XML:com.adobe.xmp", "<x:xmpmeta"),
    **{f"JPEG {mode}": saved(mode, "JPEG") for mode in ("L", "RGB", "CMYK")},
    "JPEG, progressive": saved("RGB", "JPEG", progressive=True),
    "JPEG, colour not reduced": saved("RGB", "JPEG", subsampling=0, quality=97),
    "JPEG, poor": saved("RGB", "JPEG", quality=5),
    **{f"JPEG, orientation {n}": turned(n) for n in range(1, 9)},
    "JPEG, orientation 0": turned(0),
    "JPEG, orientation 9": turned(9),
    "JPEG grey, turned": turned(6, "L"),
    "JPEG CMYK, turned": turned(8, "CMYK"),
    "JPEG, EXIF of nothing": exif(b"Exif\0\0"),
    "JPEG, EXIF of noise": exif(b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(range(40))),
    "JPEG, EXIF cut off": exif(b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12\0\x03\0\0"),
    "JPEG, EXIF that is no TIFF": exif(b"Exif\0\0hello"),
    **{f"WebP {mode}": saved(mode, "WEBP", lossless=True) for mode in ("RGB", "RGBA")},
    "WebP, lossy": saved("RGB", "WEBP", quality=50),
    "WebP, turned": turned(6, kind="WEBP"),
    "WebP, moving": animated("WEBP"),
    "GIF": saved("P", "GIF"),
    "GIF, transparent": saved("P", "GIF", transparency=2),
    "GIF, moving": animated("GIF"),
    "PNG, moving": animated("PNG"),
    **{f"BMP {mode}": saved(mode, "BMP") for mode in ("1", "L", "P", "RGB", "RGBA")},
    **{
        f"TIFF {mode}": saved(mode, "TIFF")
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB")
    },
    "TIFF, compressed": saved("RGB", "TIFF", compression="tiff_lzw"),
    "TIFF, fax": saved("1", "TIFF", compression="group4"),
    "TIFF, turned": turned(6, kind="TIFF"),
    "PPM": saved("RGB", "PPM"),
    "PGM": saved("L", "PPM"),
    "PBM": saved("1", "PPM"),
    "TGA": saved("RGBA", "TGA"),
    "PCX": saved("P", "PCX"),
    "ICO": saved("RGBA", "ICO", sizes=[(32, 31)]),
    "JPEG 2000": saved("RGB", "JPEG2000", irreversible=False),
}


def test_there_are_sixty_kinds():
    assert len(EIGHT_BITS) >= 60


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Palette images with Transparency")
@pytest.mark.filterwarnings("ignore:Truncated", "ignore:Metadata Warning")
@pytest.mark.parametrize("make", EIGHT_BITS.values(), ids=EIGHT_BITS)
def test_eight_bits_are_as_published_to_the_bit(make: Make):
    content = make()
    expected = published(content)
    seen = to_rgb(Image.open(io.BytesIO(content)))
    assert seen.dtype == np.uint8
    assert seen.shape == expected.shape
    assert np.array_equal(seen, expected)
    assert expected.std() > 1, "a picture of one colour shows nothing"


def deep(kind: str, dtype: str = "<u2") -> Image.Image:
    values = np.linspace(0, 65_535, 64 * 48).reshape(48, 64).astype(dtype)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind)
    return Image.open(io.BytesIO(buffer.getvalue()))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_where_the_published_code_turns_them_white(kind: str):
    expected = np.linspace(0, 65_535, 64 * 48).reshape(48, 64).astype(np.uint16) // 257
    seen = to_rgb(deep(kind))
    assert np.array_equal(seen, np.repeat(expected[..., None].astype(np.uint8), 3, axis=2))
    assert (np.array(deep(kind).convert("RGB")) == 255).mean() > 0.9


def test_thirty_two_bits_that_hold_eight_stay_as_they_are():
    values = np.arange(256, dtype=np.int32).reshape(16, 16)
    assert np.array_equal(to_rgb(Image.fromarray(values))[..., 0], values)


def test_sixteen_bits_are_turned_by_exif():
    buffer, tags = io.BytesIO(), Image.Exif()
    tags[ORIENTATION] = 6
    values = np.linspace(0, 65_535, 64 * 48).reshape(48, 64).astype(np.uint16)
    Image.fromarray(values).save(buffer, "PNG", exif=tags.tobytes())
    seen = to_rgb(Image.open(io.BytesIO(buffer.getvalue())))
    assert np.array_equal(seen[..., 0], np.rot90(values // 257, -1))


@pytest.mark.parametrize("mode", ["I;16", "I", "1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "F"])
def test_large_pictures_of_every_mode_are_reduced(mode: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pixels, "MAX_PIXELS", 1000)
    values = np.linspace(0, 65_535, 90 * 70).reshape(70, 90)
    if mode.startswith("I"):
        image = Image.fromarray(values.astype("u2" if mode == "I;16" else "i4"))
    else:
        image = Image.fromarray((values // 257).astype(np.uint8)).convert(mode)
    assert image.mode == mode
    seen = to_rgb(image)
    assert seen.shape[0] * seen.shape[1] <= 1000
    assert seen.min() < 40
    assert seen.max() > 215


def test_a_sixteen_bit_scan_above_the_limit():
    image = Image.fromarray(np.full((4_100, 8_300), 30_000, np.uint16))
    assert image.size[0] * image.size[1] > MAX_PIXELS
    seen = to_rgb(image)
    assert seen.shape == (2_050, 4_150, 3)
    assert np.all(seen == 30_000 // 257)


def test_large_turned_pictures_stay_turned(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pixels, "MAX_PIXELS", 1000)
    assert to_rgb(Image.open(io.BytesIO(turned(6)()))).shape == (27, 16, 3)


def test_pictures_without_pixels_are_refused():
    with pytest.raises(ValueError, match=r"cannot be decoded .*no pixels, 0 x 4"):
        to_rgb(Image.new("RGB", (0, 4)))
