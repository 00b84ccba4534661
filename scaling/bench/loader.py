"""`armscale bench loader`: images a second of one core by stage, against Pillow over an image folder and against cat.

All in one run on the same photographs-like JPEGs: the baseline is the chain that torchvision users have (open the file,
decode with Pillow, RandomResizedCrop, flip, to float, normalise, stack), with the same crops.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.augment import TrainTransform, random_resized_box, resized
from data.batch import normalize
from data.config import Augmentation
from data.images import Decoder, Pixels, decode
from data.pack import pack
from data.store import Store
from data.stream import open_stream
from scaling.bench.timing import Timing, interleave, ratio, summarize
from scaling.errors import UserError

DISTINCT = 32  # different pictures; more files hold them again


@dataclass(frozen=True)
class LoaderCase:
    """Pictures of (height, width), cropped to image_size."""

    images: int = 256
    height: int = 375
    width: int = 500
    image_size: int = 192
    micro_batch: int = 64


def loader_bench(case: LoaderCase, device: torch.device, rounds: int = 7) -> dict[str, Any]:
    """Seconds an image of each stage, and ratios to the baselines, on images made in a temporary folder.

    Stages: read, decode, augment, collate; `loader` does all four as the trainer's stream does; `to device` moves,
    flips and normalises. The baseline `pillow folder` ends in normalised float tensors on the device.
    """
    if case.images < case.micro_batch or case.images % case.micro_batch:
        raise UserError("--images", case.images, f"a multiple of the micro-batch ({case.micro_batch})")
    with tempfile.TemporaryDirectory(prefix="armscale-loader-") as name:
        work = Path(name)
        write_pictures(work / "images", case)
        pack(f"imagefolder:{work / 'images'}", work / "shards", shard_samples=max(1, case.images // 4))
        contenders = _contenders(case, work, device)
        wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        times = interleave(contenders, rounds, wait)
    pillow = times["pillow folder"]
    return {
        "case": vars(case),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "results": [
            {
                "name": name,
                "images_per_second": case.images / timing.median,
                "seconds_an_image": timing.median / case.images,
                **timing.row(),
            }
            for name, timing in times.items()
        ],
        "ratios": {
            "loader to pillow folder": ratio(pillow, times["loader"]).row(),
            "loader and device to pillow folder": ratio(pillow, _sum(times["loader"], times["to device"])).row(),
            "cat to read": ratio(times["cat"], times["read"]).row(),
        },
    }


def _sum(one: Timing, other: Timing) -> Timing:
    return summarize([a + b for a, b in zip(one.rounds, other.rounds, strict=True)])


def write_pictures(folder: Path, case: LoaderCase) -> None:
    """JPEGs with detail on all scales, as photographs have: about 75 KB at 500 x 375."""
    generator = np.random.default_rng(0)
    size = (case.width, case.height)
    (folder / "class").mkdir(parents=True)
    for number in range(case.images):
        path = folder / "class" / f"{number:05d}.jpg"
        if number >= DISTINCT:
            shutil.copyfile(folder / "class" / f"{number % DISTINCT:05d}.jpg", path)
            continue
        picture = np.full((case.height, case.width, 3), 128.0)
        for octave in range(8):
            coarse = generator.normal(0, 48 / 1.3**octave, (3 << octave, 4 << octave, 3))
            planes = [Image.fromarray(coarse[..., c].astype(np.float32)).resize(size) for c in range(3)]
            picture += np.stack([np.asarray(plane) for plane in planes], -1)
        Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(path, quality=90)


def _contenders(case: LoaderCase, work: Path, device: torch.device) -> dict[str, Callable[[], object]]:
    augmentation = Augmentation(image_size=case.image_size, scale=(0.08, 1.0))
    store = Store(work / "shards" / "train")
    index = store.index
    transform = TrainTransform(augmentation, 0, index.mean, index.std)
    everything = np.arange(case.images)
    numbers = transform.draws(0, everything)
    order = np.random.default_rng(1).permutation(case.images).tolist()
    files = [store.read(sample)[0] for sample in everything.tolist()]
    decoded = [decode(data) for data in files[:DISTINCT]]
    boxes = [random_resized_box(case.height, case.width, augmentation.scale, row[1:23].tolist()) for row in numbers]
    crops = [transform(files[n], numbers[n], 0, n) for n in range(case.micro_batch)]
    paths = sorted((work / "images").rglob("*.jpg"))
    tars = [str(work / "shards" / "train" / shard.name) for shard in index.shards]
    batches = case.images // case.micro_batch

    def loader() -> None:
        size = case.micro_batch
        stream = open_stream(work / "shards", augmentation, global_batch=size, micro_batch=size, seed=0)
        for _ in islice(stream, batches):
            pass

    def pillow() -> None:
        for start in range(0, case.images, case.micro_batch):
            chosen = range(start, start + case.micro_batch)
            torch.stack([_pillow(paths[n], boxes[n], case, index.mean, index.std) for n in chosen]).to(device)

    collated = _collate(crops)
    flips = torch.arange(case.micro_batch) % 2 == 0
    decoder = Decoder()
    return {
        "read": lambda: [store.read(sample) for sample in order],
        "decode": lambda: [decoder(data) is None for data in files],
        "augment": lambda: [resized(decoded[n % DISTINCT], boxes[n], case.image_size) for n in range(case.images)],
        "collate": lambda: [_collate(crops) for _ in range(batches)],
        "to device": lambda: [
            normalize(collated, index.mean, index.std, flips=flips, device=device) for _ in range(batches)
        ],
        "loader": loader,
        "pillow folder": pillow,
        "cat": lambda: subprocess.run(["cat", *tars], stdout=subprocess.DEVNULL, check=True),
    }


def _collate(crops: list[Pixels]) -> Tensor:
    batch = np.empty((len(crops), 3, *crops[0].shape[:2]), np.uint8)
    for row, pixels in enumerate(crops):
        batch[row] = pixels.transpose(2, 0, 1)
    return torch.from_numpy(batch)


def _pillow(
    path: Path, box: tuple[int, int, int, int], case: LoaderCase, mean: tuple[float, ...], std: tuple[float, ...]
) -> Tensor:
    """(3, image_size, image_size) float32, as a torchvision-style chain makes it."""
    top, left, h, w = box
    with Image.open(io.BytesIO(path.read_bytes())) as opened:
        image = opened.convert("RGB").crop((left, top, left + w, top + h))
    image = image.resize((case.image_size, case.image_size), Image.Resampling.BICUBIC)
    if path.stem[-1] in "02468":
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    return tensor.sub_(torch.tensor(mean).view(3, 1, 1)).div_(torch.tensor(std).view(3, 1, 1))
