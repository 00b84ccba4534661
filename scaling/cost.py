"""What a run costs before it starts, and what its steps achieve: FLOPs, model FLOPs utilisation."""

from __future__ import annotations

from dataclasses import dataclass

from models.flops import tokens_per_image, train_flops_per_image
from models.parameters import parameters
from scaling.config import RunConfig, stage_images
from scaling.devices import dense_peak
from scaling.errors import UserError


def utilisation(
    flops_per_image: float, images_per_second_per_device: float, device: str, precision: str
) -> float | None:
    """Model FLOPs utilisation: counted matmul operations per second over the dense peak; None without a known peak.

    Above 100 % the count or the clock is wrong, so it is refused rather than printed.
    """
    peak = dense_peak(device, precision)
    if peak is None:
        return None
    mfu = flops_per_image * images_per_second_per_device / peak
    if mfu > 1.0:
        raise UserError("mfu", f"{mfu:.2f}", "at most 1", why=f"the peak of {device} at {precision} is {peak:.3g}/s")
    return mfu


@dataclass(frozen=True)
class Cost:
    """Of one run. FLOPs are operations (two a multiply-accumulate); absent where the data set's size is unknown."""

    parameters: int
    encoder_parameters: int
    tokens_per_image: int
    images: int | None
    flops_per_image: float  # matmuls, forward and backward
    scan_flops_per_image: float

    @property
    def train_flops(self) -> float | None:
        """Matmul operations of the whole stage."""
        return None if self.images is None else self.flops_per_image * self.images

    @property
    def scan_flops(self) -> float | None:
        """Scan operations of the whole stage."""
        return None if self.images is None else self.scan_flops_per_image * self.images


def cost(config: RunConfig, samples: int | None, classes: int) -> Cost:
    """The cost of a run on a training split of `samples` images."""
    encoder, objective = config.encoder_config(), config.objective_config(classes)
    counts = parameters(encoder, objective)
    matmul, scan = train_flops_per_image(encoder, objective)
    images = stage_images(config.train, samples)
    return Cost(
        parameters=counts.encoder if config.stage == "probe" else counts.total,  # a head or decoder has no part there
        encoder_parameters=counts.encoder,
        tokens_per_image=tokens_per_image(encoder, objective),
        images=None if images is None else images - (config.train.branched_at or 0),  # the rest is its trunk's
        flops_per_image=matmul,
        scan_flops_per_image=scan,
    )
