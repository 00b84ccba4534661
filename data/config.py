"""What may be chosen about the data, as plain data: imports no torch, so that plans start at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from scaling.errors import UserError

CROPS: Final = ("random_resized", "pad", "none")
EVAL_RESIZES: Final = ("square", "aspect", "none")
RANDAUGMENTS: Final = ("", "rand-m9-mstd0.5-inc1")


@dataclass(frozen=True)
class Augmentation:
    """The defaults are those of autoregressive pretraining (ARM's released code, fact sheet section 2)."""

    image_size: int = 192
    crop: str = "random_resized"  # or pad (a random crop after a border of 4 pixels), or none
    scale: tuple[float, float] = (0.2, 1.0)  # part of the image's area that random_resized crops
    flip: bool = True  # horizontally, half of the images
    randaugment: str = ""  # or rand-m9-mstd0.5-inc1
    erasing: float = 0.0  # probability of random erasing, one box of noise
    mixup: float = 0.0  # alpha of its Beta distribution, 0 is off
    cutmix: float = 0.0  # likewise; with both on, each group takes either with equal chance
    mix_group: int = 16  # consecutive positions that mixup and cutmix act in; divides the micro-batch
    label_smoothing: float = 0.0
    eval_resize: str = "square"  # both sides to eval_side (as the paper), aspect: the short side, or none

    def __post_init__(self) -> None:
        for name, valid in (("crop", CROPS), ("randaugment", RANDAUGMENTS), ("eval_resize", EVAL_RESIZES)):
            if getattr(self, name) not in valid:
                raise UserError(f"augmentation.{name}", getattr(self, name), valid)
        for name in ("erasing", "label_smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augmentation.{name}", getattr(self, name), "a fraction from 0 to 1")
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"augmentation.{name}", getattr(self, name), "0 (off) or a positive alpha")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError("augmentation.scale", self.scale, "two areas with 0 < smallest <= largest <= 1")
        for name in ("image_size", "mix_group"):
            if getattr(self, name) < 1:
                raise UserError(f"augmentation.{name}", getattr(self, name), "a whole number of at least 1")

    @property
    def eval_side(self) -> int:
        """Pixels a side before the centre crop: 256 at 224 and in proportion, no margin above 224 (sheet section 3)."""
        return int(self.image_size * 256 / 224) if self.image_size <= 224 else self.image_size

    @property
    def mixes(self) -> bool:
        """Whether training labels become soft targets."""
        return self.mixup > 0 or self.cutmix > 0 or self.label_smoothing > 0
