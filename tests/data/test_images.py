from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data.images import Decoder, UnreadableImageError, decode, encode_png, jpeg_size, shortened


@given(st.integers(1, 40), st.integers(1, 40), st.booleans(), st.integers(0, 2**32 - 1))
def test_png_round_trip_by_us_and_by_pillow(height: int, width: int, grey: bool, seed: int) -> None:
    shape = (height, width) if grey else (height, width, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    data = encode_png(pixels)
    rgb = np.repeat(pixels[..., None], 3, 2) if grey else pixels
    np.testing.assert_array_equal(decode(data), rgb)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_a_png_of_more_than_one_stored_block() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode(encode_png(pixels)), pixels)


def test_png_bytes_are_fixed() -> None:
    # The fingerprint of a built-in data set is part of run ids: these bytes may never change.
    data = encode_png(np.arange(12, dtype=np.uint8).reshape(3, 4))
    assert hashlib.sha256(data).hexdigest() == PNG_SHA256


PNG_SHA256 = "cca2584e9c7532e9e12c51caf4320d70de6df06f82f6a9df30492257a467103e"


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "I;16"])
@pytest.mark.parametrize("compress", [0, 6])
def test_other_pngs_are_pillows(mode: str, compress: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (17, 23, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert("L").convert(mode) if mode != "RGB" else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=compress)
    with Image.open(io.BytesIO(buffer.getvalue())) as again:
        expected = np.asarray(again.convert("RGB"))
    np.testing.assert_array_equal(decode(buffer.getvalue()), expected)


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("WEBP", "RGB")])
def test_jpeg_and_webp_are_pillows(kind: str, mode: str) -> None:
    coarse = np.random.default_rng(1).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((61, 47), Image.Resampling.BICUBIC).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=92)
    with Image.open(io.BytesIO(buffer.getvalue())) as again:
        expected = np.asarray(again.convert("RGB")).astype(int)
    off = np.abs(decode(buffer.getvalue()).astype(int) - expected)
    assert np.mean(off <= 1) >= 0.99
    if kind == "JPEG":
        assert jpeg_size(buffer.getvalue()) == (47, 61)


def test_a_smaller_decoding_is_never_below_what_is_asked() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (400, 300)).save(buffer, "JPEG")
    for least in [(300, 400), (150, 200), (151, 10), (10, 10)]:
        height, width = Decoder()(buffer.getvalue(), least).shape[:2]
        assert height >= least[0]
        assert width >= least[1]
    assert Decoder()(buffer.getvalue(), (150, 200)).shape == (150, 200, 3)


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 40),
    rows=st.integers(1, 90),
    subsampling=st.integers(0, 2),
    mode=st.sampled_from(["RGB", "L"]),
    progressive=st.booleans(),
    restart=st.booleans(),
)
def test_the_first_rows_alone_are_the_same(
    height: int, width: int, rows: int, subsampling: int, mode: str, progressive: bool, restart: bool
) -> None:
    noise = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    options = {"restart_marker_rows": 1} if restart else {}
    Image.fromarray(noise).convert(mode).save(
        buffer, "JPEG", subsampling=subsampling, progressive=progressive, **options
    )
    rows = min(rows, height)
    found = Decoder()(buffer.getvalue(), rows=rows)
    np.testing.assert_array_equal(found[:rows], decode(buffer.getvalue())[:rows])
    assert not progressive or len(found) == height


def test_rows_below_are_left_unread() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    data = buffer.getvalue()
    assert [len(Decoder()(data, rows=rows)) for rows in (1, 14, 15, 200, 375)] == [16, 16, 32, 208, 375]
    assert [shortened(data[:end], 20) for end in (0, 2, 30)] == [None, None, None]


@pytest.mark.parametrize(
    "data", [b"", b"text", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n" + bytes(60)]
)
def test_what_is_no_image_says_so(data: bytes) -> None:
    with pytest.raises(UnreadableImageError, match=r"\w"):
        decode(data)


def test_truncated_images_are_unreadable() -> None:
    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for kind in ("JPEG", "PNG"):
        buffer = io.BytesIO()
        image.save(buffer, kind)
        with pytest.raises(UnreadableImageError, match=r"[a-z]{4}"):
            decode(buffer.getvalue()[:-2000])
        with pytest.raises(UnreadableImageError, match=r"[a-z]{4}"):
            decode(buffer.getvalue()[:300])
    with pytest.raises(UnreadableImageError):
        decode(encode_png(np.asarray(image))[:-2000])
