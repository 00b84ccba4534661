"""How many images a second the model answers for, without data loading."""

from __future__ import annotations

import statistics
import time

import torch

from models.classifier import Classifier
from scaling.config import EvaluatorConfig
from scaling.environment import device_name
from scaling.evaluate.subject import Subject
from scaling.files import write_json
from scaling.rundir import INFERENCE

WARM_UP, REPEATS = 3, 10


@torch.inference_mode()
def throughput(subject: Subject, _options: EvaluatorConfig) -> None:
    """Writes inference.json: the median over REPEATS passes of one batch of test images that is on the device.

    A classifier gives logits, a pretrained module its features. The rate is that of one device.
    """
    if subject.folder is None:
        return
    images = subject.first(subject.batch).images
    forward = subject.module if isinstance(subject.module, Classifier) else subject.module.features
    seconds = []
    for number in range(WARM_UP + REPEATS):
        _synchronise(subject.device)
        started = time.perf_counter()
        with subject.autocast():
            forward(images)  # type: ignore[operator]
        _synchronise(subject.device)
        if number >= WARM_UP:
            seconds.append(time.perf_counter() - started)
    write_json(
        subject.folder / INFERENCE,
        {
            "images_per_second": len(images) / statistics.median(seconds),
            "batch": len(images),
            "resolution": subject.augmentation.image_size,
            "precision": subject.precision,
            "device": device_name(subject.device),
            "output": "logits" if isinstance(subject.module, Classifier) else "features",
        },
    )


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
