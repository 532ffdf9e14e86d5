"""Images of requests: data URLs, decoded within limits."""

from __future__ import annotations

import base64
import binascii
import io
import re
import warnings
from urllib.parse import unquote_to_bytes

from PIL import Image, UnidentifiedImageError

from launch.serving.errors import ApiError, invalid

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Formats that are decoded, by Pillow's names; each decoder is one more way in."""

DATA_URL = re.compile(r"data:(image/[\w.+-]{1,40})?(;[\w=.-]{1,60})*?(;base64)?,", re.IGNORECASE)


URL_SAFE = str.maketrans("-_", "+/")
"""From the alphabet of base64 for URLs to the usual one."""


def image_bytes(url: str, param: str) -> bytes:
    """The encoded image of a data URL.

    Raises:
        ApiError: it is another kind of URL, which is never fetched, or not valid.
    """
    match = DATA_URL.match(url[:300])
    if match is None:
        message = (
            "the image must be a data URL, such as data:image/png;base64,...: this server does "
            "not fetch addresses"
        )
        raise invalid(message, param, code="invalid_image_url")
    payload = url[match.end() :]
    if match[3] is None:
        return unquote_to_bytes(payload)
    # As programs print it: in lines, perhaps in the alphabet for URLs, perhaps without padding.
    payload = "".join(payload.split()).translate(URL_SAFE)
    try:
        return base64.b64decode(payload + "=" * (-len(payload) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise invalid("the image is not valid base64", param, code="invalid_image") from None


def size_within(encoded: bytes, megapixels: float) -> tuple[int, int]:
    """Width and height of an image in pixels, by its header; nothing is decoded.

    Raises:
        ApiError: it is too large, of another format, or its header is broken.
    """
    return _opened(encoded, megapixels, decode=False).size


def open_within(encoded: bytes, megapixels: float) -> Image.Image:
    """Decodes an image completely.

    Args:
        encoded: the file's content.
        megapixels: largest image, in millions of pixels; larger ones are refused by their header.

    Raises:
        ApiError: it is too large, of another format, truncated or broken.
    """
    return _opened(encoded, megapixels, decode=True)


def _opened(encoded: bytes, megapixels: float, *, decode: bool) -> Image.Image:
    param = "messages"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(encoded), formats=FORMATS)
            if image.width * image.height > megapixels * 1e6:
                raise too_many_pixels(f"{image.width} x {image.height}", megapixels)
            if decode:
                image.load()
            return image
    except Image.DecompressionBombError:
        raise too_many_pixels("hundreds of millions of", megapixels) from None
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        message = f"the image is in none of the formats {known}"
        raise invalid(message, param, code="invalid_image") from None
    except ApiError:
        raise
    except Exception as error:  # decoders raise whatever a broken file makes them raise
        message = f"the image cannot be decoded ({type(error).__name__}): send another one"
        raise invalid(message, param, code="invalid_image") from None


def too_many_pixels(size: str, megapixels: float) -> ApiError:
    """The refusal of an image for its size."""
    message = f"the image has {size} pixels: send at most {megapixels:g} million"
    return invalid(message, "messages", code="image_too_large")
