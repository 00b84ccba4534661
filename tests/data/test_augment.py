"""Augmentation against its definitions, and against Pillow and distributions."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage, stats

from data import draws
from data.augment import (
    EvaluationTransform,
    TrainTransform,
    erased_box,
    padded_crop,
    random_resized_box,
    resized,
    scaled_box,
)
from data.batch import normalize
from data.config import Augmentation
from data.images import encode_png
from data.randaugment import DRAWS, OPERATIONS, rand_augment
from scaling.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILL = (124, 116, 104)


def picture(height: int = 90, width: int = 120, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@given(
    st.integers(1, 500),
    st.integers(1, 500),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=22, max_size=22),
)
def test_random_resized_box_lies_inside(height: int, width: int, numbers: list[float]) -> None:
    top, left, h, w = random_resized_box(height, width, (0.08, 1.0), numbers)
    assert 0 <= top <= top + h <= height
    assert 0 <= left <= left + w <= width
    assert h >= 1
    assert w >= 1


def test_random_resized_box_has_the_stated_distributions() -> None:
    height, width = 1000, 1000
    rows = draws.uniforms(1, np.arange(4000), 22).tolist()
    boxes = np.array([random_resized_box(height, width, (0.2, 0.7), row) for row in rows])
    areas = boxes[:, 2] * boxes[:, 3] / (height * width)
    # Up to 0.7 of the area and aspects to 4/3, every first attempt fits a square image: both are as drawn.
    assert stats.kstest(areas, stats.uniform(0.2, 0.5).cdf).pvalue > 1e-3
    aspects = np.log(boxes[:, 3] / boxes[:, 2])
    assert stats.kstest(aspects, stats.uniform(math.log(3 / 4), 2 * math.log(4 / 3)).cdf).pvalue > 1e-3
    places = boxes[:, 0] / (height - boxes[:, 2])
    assert stats.kstest(places, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(("size", "expected"), [((10, 1000), (0, 493, 10, 13)), ((1000, 10), (493, 0, 13, 10))])
def test_an_extreme_image_falls_back_to_a_centred_box(size: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert random_resized_box(*size, (1.0, 1.0), [0.5] * 22) == expected


def test_erased_box() -> None:
    rows = draws.uniforms(2, np.arange(3000), 22).tolist()
    boxes = [box for row in rows if (box := erased_box(224, 224, row)) is not None]
    assert len(boxes) > 2990
    areas = np.array([h * w for _, _, h, w in boxes]) / 224**2
    assert areas.min() > 0.018
    assert areas.max() < 0.345
    assert all(0 <= top <= 224 - h and 0 <= left <= 224 - w for top, left, h, w in boxes)


def test_resize_is_pillows_bicubic() -> None:
    pixels = np.asarray(picture(300, 400))
    for box, size in [((10, 20, 250, 333), 192), ((0, 0, 40, 40), 64), ((5, 5, 32, 32), 32), ((0, 0, 300, 400), 7)]:
        top, left, h, w = box
        cut = Image.fromarray(pixels[top : top + h, left : left + w])
        expected = np.asarray(cut.resize((size, size), Image.Resampling.BICUBIC)).astype(int)
        off = np.abs(resized(pixels, box, size).astype(int) - expected)
        assert np.mean(off <= 1) >= 0.99
        assert off.max() <= 3


def test_a_smaller_decoding_keeps_the_crop() -> None:
    image = picture(800, 1200)
    transform = TrainTransform(Augmentation(image_size=64, scale=(0.9, 1.0), flip=False), 0, MEAN, STD)
    numbers = transform.draws(0, np.array([5]))[0]
    found = transform(jpeg(image), numbers, 0, 5).astype(int)
    top, left, h, w = random_resized_box(800, 1200, (0.9, 1.0), numbers[1:23].tolist())
    cut = image.crop((left, top, left + w, top + h)).resize((64, 64), Image.Resampling.BICUBIC)
    assert np.abs(found - np.asarray(cut).astype(int)).mean() < 2.5
    assert scaled_box((top, left, h, w), (800, 1200), (800, 1200)) == (top, left, h, w)
    assert scaled_box((80, 160, 400, 640), (800, 1200), (400, 600)) == (40, 80, 200, 320)


def test_padded_crop() -> None:
    pixels = np.arange(32 * 32 * 3, dtype=np.uint32).reshape(32, 32, 3).astype(np.uint8)
    np.testing.assert_array_equal(padded_crop(pixels, 32, 0.5, 0.5), pixels)
    corner = padded_crop(pixels, 32, 0.0, 0.999)
    assert not corner[:4].any()
    assert not corner[:, 28:].any()
    np.testing.assert_array_equal(corner[4:, :28], pixels[:28, 4:])


def test_half_of_the_images_are_flipped_unless_off() -> None:
    numbers = TrainTransform(Augmentation(), 0, MEAN, STD).draws(0, np.arange(2000))
    assert 900 < TrainTransform(Augmentation(), 0, MEAN, STD).flipped(numbers).sum() < 1100
    assert not TrainTransform(Augmentation(flip=False), 0, MEAN, STD).flipped(numbers).any()


def test_erasing_is_noise_of_the_data_sets_moments() -> None:
    augmentation = Augmentation(image_size=64, crop="none", eval_resize="none", erasing=1.0, flip=False)
    transform = TrainTransform(augmentation, 0, MEAN, STD)
    image = np.full((64, 64, 3), 255, np.uint8)
    data = encode_png(image)
    values = []
    for sample in range(60):
        pixels = transform(data, transform.draws(0, np.array([sample]))[0], 0, sample)
        erased = (pixels != 255).any(-1)
        assert 0.01 < erased.mean() < 0.36
        rows, columns = np.flatnonzero(erased.any(1)), np.flatnonzero(erased.any(0))
        assert erased[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean() > 0.98  # one box
        values.append(pixels[erased])
    noise = np.concatenate(values) / 255
    np.testing.assert_allclose(noise.mean(0), MEAN, atol=0.02)  # rounding and clipping to 8 bits
    np.testing.assert_allclose(noise.std(0), STD, atol=0.02)


def test_draws_depend_on_epoch_and_sample_alone() -> None:
    transform = TrainTransform(Augmentation(image_size=48, erasing=0.5), 0, MEAN, STD)
    data = jpeg(picture())
    row = transform.draws(3, np.array([9, 4, 7]))[1]
    alone = TrainTransform(Augmentation(image_size=48, erasing=0.5), 0, MEAN, STD).draws(3, np.array([4]))[0]
    np.testing.assert_array_equal(transform(data, row, 3, 4), transform(data, alone, 3, 4))
    other = transform.draws(4, np.array([4]))[0]
    assert np.any(transform(data, other, 4, 4) != transform(data, row, 3, 4))


def numbers_for(name: str, negative: bool = False) -> list[float]:
    """Uniforms that make the first operation `name` at magnitude 9 exactly, and skip the second."""
    which = (list(OPERATIONS).index(name) + 0.5) / len(OPERATIONS)
    return [which, 0.0, 0.0, 0.0, 0.0 if negative else 0.9, 0.0, 0.9, 0.0, 0.0, 0.0]


def augmented(name: str, image: Image.Image, negative: bool = False) -> np.ndarray:
    return rand_augment(np.asarray(image), "rand-m9-mstd0.5-inc1", numbers_for(name, negative), FILL)


def test_randaugment_by_definition() -> None:
    image = picture()
    pixels = np.asarray(image).astype(int)
    np.testing.assert_array_equal(augmented("invert", image), 255 - pixels)
    np.testing.assert_array_equal(augmented("posterize", image), pixels & 0x80)  # 4 - int(3.6) = 1 bit
    np.testing.assert_array_equal(augmented("solarize", image), np.where(pixels < 26, pixels, 255 - pixels))
    added = np.where(pixels < 128, np.minimum(pixels + 99, 255), pixels)
    np.testing.assert_array_equal(augmented("solarize_add", image), added)
    np.testing.assert_array_equal(augmented("equalize", image), np.asarray(ImageOps.equalize(image)))
    low, high = pixels.min((0, 1)), pixels.max((0, 1))
    stretched = (pixels - low) * 255 / (high - low)
    assert np.abs(augmented("autocontrast", image) - stretched).max() <= 1
    brightness = np.clip(pixels * 1.81, 0, 255)
    assert np.abs(augmented("brightness", image) - brightness).max() <= 1
    darker = pixels * 0.19
    assert np.abs(augmented("brightness", image, negative=True) - darker).max() <= 1
    for name, kind in (("color", ImageEnhance.Color), ("contrast", ImageEnhance.Contrast)):
        np.testing.assert_array_equal(augmented(name, image), np.asarray(kind(image).enhance(1 + 0.9 * 0.9)))
    sharper = np.asarray(ImageEnhance.Sharpness(image).enhance(0.19))
    np.testing.assert_array_equal(augmented("sharpness", image, negative=True), sharper)


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("name", ["shear_x", "shear_y", "translate_x", "translate_y", "rotate"])
def test_geometric_operations_move_pixels_by_their_matrix(name: str, negative: bool) -> None:
    image = picture(80, 80)
    sign = -1 if negative else 1
    shear, shift = sign * 0.27, sign * 0.45 * 0.9 * 80
    angle = math.radians(sign * 27)
    # Output (row, column) reads input matrix @ (row, column) + offset; Pillow's pixels have centres at one half.
    matrix, offset = {
        "shear_x": ([[1, 0], [shear, 1]], [0, 0.5 * shear]),
        "shear_y": ([[1, shear], [0, 1]], [0.5 * shear, 0]),
        "translate_x": ([[1, 0], [0, 1]], [0, shift]),
        "translate_y": ([[1, 0], [0, 1]], [shift, 0]),
        "rotate": ([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]], None),
    }[name]
    turn = np.array(matrix)
    centre = np.array([39.5, 39.5])
    shifted = centre - turn @ centre if offset is None else np.array(offset)
    planes = np.asarray(image).astype(float)
    expected = np.stack(
        [ndimage.affine_transform(planes[..., c], turn, shifted, order=3, cval=np.nan) for c in range(3)], -1
    )
    found = augmented(name, image, negative).astype(float)
    inside = ~np.isnan(expected)
    assert inside.mean() > 0.4
    assert np.abs(found - np.clip(expected, 0, 255))[inside].mean() < 2
    outside = ndimage.binary_erosion(~inside[..., 0], iterations=4)
    assert outside.any()
    assert (found[outside] == FILL).all()


def flipped_on_the_device(image: Image.Image, name: str, negative: bool, flip: bool) -> np.ndarray:
    """The pixels of a batch after one operation of RandAugment, in the direction in which the model sees them."""
    augmentation = Augmentation(
        image_size=image.width, crop="none", eval_resize="none", randaugment="rand-m9-mstd0.5-inc1"
    )
    transform = TrainTransform(augmentation, 0, MEAN, STD)
    numbers = np.full((1, transform.count), 0.9)
    numbers[0, 0] = 0.1 if flip else 0.9
    numbers[0, -DRAWS:] = numbers_for(name, negative)
    pixels = torch.from_numpy(transform(encode_png(np.asarray(image)), numbers[0], 0, 0).copy())
    flips = torch.from_numpy(transform.flipped(numbers))
    seen = normalize(pixels.permute(2, 0, 1)[None], (0, 0, 0), (1, 1, 1), flips=flips)[0]
    return (255 * seen).round().permute(1, 2, 0).numpy().astype(np.uint8)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_flip_comes_before_randaugment_as_in_the_recipe(name: str) -> None:
    image = picture(48, 48)
    mirrored = ImageOps.mirror(image)
    for negative in (False, True):
        np.testing.assert_array_equal(
            flipped_on_the_device(image, name, negative, flip=True), augmented(name, mirrored, negative)
        )
        np.testing.assert_array_equal(
            flipped_on_the_device(image, name, negative, flip=False), augmented(name, image, negative)
        )


@pytest.mark.parametrize(
    ("name", "matrix"),
    [
        ("shear_x", (1, 0.27, 0, 0, 1, 0)),
        ("shear_y", (1, 0, 0, 0.27, 1, 0)),
        ("translate_x", (1, 0, 0.405 * 48, 0, 1, 0)),
        ("translate_y", (1, 0, 0, 0, 1, 0.405 * 48)),
    ],
)
def test_flipped_images_are_moved_by_pillow_as_unflipped_ones(name: str, matrix: tuple[float, ...]) -> None:
    image = picture(48, 48)
    for flip, source in ((False, image), (True, ImageOps.mirror(image))):
        expected = {
            source.transform(
                source.size,
                Image.Transform.AFFINE,
                [value if value in (0, 1) else sign * value for value in matrix],
                resample=Image.Resampling.BICUBIC,
                fillcolor=FILL,
            ).tobytes()
            for sign in (-1, 1)
        }
        found = {flipped_on_the_device(image, name, negative, flip).tobytes() for negative in (False, True)}
        assert found == expected
        assert len(found) == 2


def test_randaugment_draws_every_operation_equally_and_half_of_the_time() -> None:
    image = np.asarray(picture(16, 16))
    rows = draws.uniforms(8, np.arange(600), DRAWS)
    unchanged = np.mean(
        [np.array_equal(rand_augment(image, "rand-m9-mstd0.5-inc1", row.tolist(), FILL), image) for row in rows]
    )
    assert 0.2 < unchanged < 0.34  # 1/4, and autocontrast of an image that already has full contrast
    which = (rows[:, 0] * len(OPERATIONS)).astype(int)
    assert stats.chisquare(np.bincount(which, minlength=15)).pvalue > 1e-3
    assert len(OPERATIONS) == 15


@pytest.mark.parametrize(("size", "side"), [(224, 256), (192, 219), (32, 36), (384, 384)])
def test_evaluation_resizes_as_the_paper(size: int, side: int) -> None:
    augmentation = Augmentation(image_size=size)
    assert augmentation.eval_side == side
    image = picture(150, 200)
    squared = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)).astype(int)
    margin = (side - size) // 2
    expected = squared[margin : margin + size, margin : margin + size]
    found = EvaluationTransform(augmentation)(encode_png(np.asarray(image))).astype(int)
    assert found.shape == (size, size, 3)
    assert np.mean(np.abs(found - expected) <= 1) >= 0.99


def test_evaluation_can_keep_the_aspect() -> None:
    image = picture(150, 200)
    found = EvaluationTransform(Augmentation(image_size=56, eval_resize="aspect"))(encode_png(np.asarray(image)))
    scaled = np.asarray(image.resize((85, 64), Image.Resampling.BICUBIC)).astype(int)
    assert np.mean(np.abs(found.astype(int) - scaled[4:60, 14:70]) <= 1) >= 0.99


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop": "centre"},
        {"randaugment": "rand-m5"},
        {"eval_resize": "crop"},
        {"erasing": 1.5},
        {"mixup": -1.0},
        {"cutmix": math.inf},
        {"scale": (0.5, 0.2)},
        {"image_size": 0},
        {"label_smoothing": 2.0},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"augmentation.{next(iter(wrong))}"):
        Augmentation(**wrong)  # type: ignore[arg-type]
