"""Bytes of an image file to pixels, and pixels to a PNG whose bytes do not depend on any library's version."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

Pixels = NDArray[np.uint8]

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8\xff"
LARGEST_BUFFER = 8 << 20  # bytes that a decoder keeps


class UnreadableImageError(Exception):
    """The bytes are no image that can be decoded; says why."""


class Decoder:
    """Decodes images one after the other; its JPEGs share one buffer, so each is valid until the next call.

    Fresh memory for each large image would cost a sixth of the time, in page faults.
    """

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.uint8)

    def __call__(self, data: bytes, least: tuple[int, int] = (0, 0), rows: int = 0) -> Pixels:
        """(height, width, 3) RGB of a JPEG, PNG, WebP or other image that Pillow reads.

        With `least` = (height, width), a JPEG may come out at 1/2, 1/4 or 1/8 of its size, never below that many
        pixels: its decoder then does the smaller part of the work. With `rows`, one of full size may end anywhere below
        its first `rows` rows, which are as ever. UnreadableImageError when the bytes are no image.
        """
        try:
            if data.startswith(JPEG_MAGIC):
                return self._jpeg(data, least, rows)
            if data.startswith(PNG_MAGIC):
                pixels = _decode_stored_png(data)
                if pixels is not None:
                    return pixels
            return _decode_pillow(data)
        except (OSError, ValueError, SyntaxError, zlib.error, struct.error, Image.DecompressionBombError) as error:
            raise UnreadableImageError(_reason(error)) from None

    def _jpeg(self, data: bytes, least: tuple[int, int], rows: int) -> Pixels:
        size = jpeg_size(data)
        # Only halves are quick; the decoder would also take 7/8 or 5/8 if it were asked for `least` itself.
        height, width = _halved(size, least) if least != (0, 0) else size
        shorter = shortened(data, rows) if rows and (height, width) == size else None
        if shorter is not None:
            height = jpeg_size(shorter)[0]
        needed = height * width * 3
        if len(self._buffer) < needed <= LARGEST_BUFFER:
            self._buffer = np.empty(needed, np.uint8)
        buffer = self._buffer[:needed] if needed <= LARGEST_BUFFER else None
        try:
            pixels: Pixels = simplejpeg.decode_jpeg(
                data if shorter is None else shorter,
                "RGB",
                min_height=height,
                min_width=width,
                buffer=buffer,
                strict=shorter is None,  # the rows that are left unread would be reported
            )
            return pixels
        except (ValueError, KeyError):
            # CMYK, and flaws that libjpeg reports and Pillow forgives (ImageNet holds both).
            return _decode_pillow(data)


def _reason(error: Exception) -> str:
    """What a decoder says; of a JPEG that ends in its header it says a bare number."""
    text = str(error)
    return text if any(letter.isalpha() for letter in text) else f"broken or cut short ({type(error).__name__} {text})"


def decode(data: bytes) -> Pixels:
    """(height, width, 3) RGB of one image, in memory of its own; UnreadableImageError when the bytes are no image."""
    return Decoder()(data)


def jpeg_size(data: bytes) -> tuple[int, int]:
    """(height, width) from the header of a JPEG."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError) as error:  # KeyError: a colour space that it has no name for
        raise UnreadableImageError(_reason(error)) from None
    return height, width


def shortened(data: bytes, rows: int) -> bytes | None:
    """A JPEG whose header says that it ends below its first `rows` rows, so that a decoder stops there.

    None where that saves nothing, or where the image is not one scan of all its components from top to bottom.
    """
    at, frame = 2, None
    while at + 10 < len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if marker == 0xC0:  # SOF0: precision, height, width, components; of each its number, sampling factors, table
            frame, components = at, data[at + 9]
            tallest = max(data[at + 11 + 3 * component] & 15 for component in range(components))
        elif marker == 0xDA:  # SOS: components of the scan
            if frame is None or components not in (1, 3) or data[at + 4] != components:
                return None
            block = 8 * tallest
            # The colour of a row is interpolated from the rows of colour around it, each of them `tallest` high.
            height = -(-(rows + tallest) // block) * block
            if height >= int.from_bytes(data[frame + 5 : frame + 7]):
                return None
            return data[: frame + 5] + height.to_bytes(2) + data[frame + 7 :]
        at += 2 + length
    return None


def _halved(size: tuple[int, int], least: tuple[int, int]) -> tuple[int, int]:
    """The size after as many halvings, up to three, as keep it at `least` or above."""
    for shift in (3, 2, 1):
        height, width = (-(-side // (1 << shift)) for side in size)
        if height >= least[0] and width >= least[1]:
            return height, width
    return size


def _decode_pillow(data: bytes) -> Pixels:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # corrupt EXIF and palette remarks, for images that decode well
            with Image.open(io.BytesIO(data)) as image:
                return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:
        raise UnreadableImageError("no known image format") from None


def encode_png(pixels: Pixels) -> bytes:
    """A PNG of (height, width) grey or (height, width, 3) RGB pixels, not compressed.

    A tar rounds up to 512 bytes, so that compressing thumbnails gains little; and stored bytes are the same under
    every zlib, which keeps the data set's fingerprint the same on every machine.
    """
    height, width = pixels.shape[:2]
    kind = 2 if pixels.ndim == 3 else 0
    rows = np.zeros((height, 1 + pixels[0].size), np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    return PNG_MAGIC + _chunk(b"IHDR", header) + _chunk(b"IDAT", _stored_zlib(rows.tobytes())) + _chunk(b"IEND", b"")


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _stored_zlib(raw: bytes, most: int = 65535) -> bytes:
    """A zlib stream of stored blocks (RFC 1950, RFC 1951 section 3.2.4)."""
    parts = [b"\x78\x01"]
    for start in range(0, len(raw), most):
        block = raw[start : start + most]
        parts += [struct.pack("<BHH", start + most >= len(raw), len(block), len(block) ^ 0xFFFF), block]
    return b"".join([*parts, struct.pack(">I", zlib.adler32(raw))])


def _decode_stored_png(data: bytes) -> Pixels | None:
    """The pixels of a PNG with 8-bit grey or RGB rows, none of them filtered, as encode_png writes; else None.

    Seven times faster than Pillow on thumbnails, where the general decoder's set-up is most of the time.
    """
    width, height, depth, kind, _, _, interlace = struct.unpack(">IIBBBBB", data[16:29])
    (length,) = struct.unpack(">I", data[33:37])
    if (depth, interlace) != (8, 0) or kind not in (0, 2) or data[37:41] != b"IDAT" or len(data) != length + 57:
        return None
    channels = 3 if kind == 2 else 1
    raw = zlib.decompress(data[41 : 41 + length])
    if len(raw) != height * (1 + width * channels):
        return None
    rows = np.frombuffer(raw, np.uint8).reshape(height, 1 + width * channels)
    if rows[:, 0].any():
        return None
    pixels = rows[:, 1:].reshape(height, width, channels)
    return pixels if channels == 3 else np.repeat(pixels, 3, axis=2)
