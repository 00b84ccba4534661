"""Reconstructions that a person would look at, always of the same test images: pictures/reconstruction.png."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from models.arm import ARM
from models.mae import MAE
from models.pixels import patchify, pixels_of, unpatchify
from scaling.config import EvaluatorConfig
from scaling.evaluate.pretraining import MASK_SEED
from scaling.evaluate.subject import Images, Subject
from scaling.files import atomic_write
from scaling.randomness import step_noise
from scaling.rundir import PICTURES

FILE = "reconstruction.png"
SHOWN = 8
TILE, GAP, MARGIN = 112, 6, 104  # pixels

Row = tuple[str, Tensor]
"""What a row shows, and its images (shown, channels, size, size), normalised."""


@torch.inference_mode()
def reconstruction(subject: Subject, _options: EvaluatorConfig) -> None:
    """Writes a sheet of the first test images and what the module makes of them.

    AR predicts every cluster from the true ones before it, the first cluster being given; MAE fills in what is masked,
    by the masks of the evaluation. Of patches predicted up to mean and deviation these two are the true ones.
    """
    if subject.folder is None:
        return
    batch = subject.first(SHOWN)
    rows = _next_clusters(subject.module, batch) if isinstance(subject.module, ARM) else _filled_in(subject, batch)
    mean, std = (torch.tensor(v, device=subject.device).view(3, 1, 1) for v in (subject.index.mean, subject.index.std))
    sheet = _sheet([(title, images * std + mean) for title, images in [("image", batch.images), *rows]])
    with atomic_write(subject.folder / PICTURES / FILE) as file:
        sheet.save(file, "PNG")


def _next_clusters(module: ARM, batch: Images) -> list[Row]:
    """What came before is true in every place; the first cluster, which is given, is left out."""
    encoder, config = module.encoder.config, module.config
    places = module.get_buffer("sequence")[config.cluster_side**2 :]
    predicted = torch.zeros_like(patchify(batch.images, encoder.patch_size))
    predicted[:, places] = module(batch.images).prediction.float()
    pixels = pixels_of(predicted, batch.images, encoder.patch_size, config.target)
    given = torch.ones(encoder.patches, dtype=torch.bool, device=places.device)
    given[places] = False
    pixels[:, given] = 0.0
    return [("next cluster,\npredicted", unpatchify(pixels, encoder.patch_size))]


def _filled_in(subject: Subject, batch: Images) -> list[Row]:
    """What the encoder saw, and the same with the decoder's patches in the gaps."""
    module = subject.module
    assert isinstance(module, MAE)
    encoder = module.encoder.config
    noise = step_noise(MASK_SEED, "pretrain_loss", batch.samples, tokens=encoder.patches, depth=0).to(subject.device)
    visible = module.visible(noise, len(batch.images))
    masked = torch.ones(len(visible), encoder.patches, 1, device=visible.device).scatter(1, visible[:, :, None], 0.0)
    patches = patchify(batch.images, encoder.patch_size)
    predicted = module(batch.images, noise).prediction.float()
    filled = pixels_of(predicted, batch.images, encoder.patch_size, module.config.target)
    return [
        ("visible", unpatchify(patches * (1 - masked), encoder.patch_size)),
        ("filled in", unpatchify(patches * (1 - masked) + filled * masked, encoder.patch_size)),
    ]


def _sheet(rows: list[Row]) -> Image.Image:
    """Rows of images (shown, 3, size, size) from 0 to 1, their titles to the left."""
    count = len(rows[0][1])
    step = TILE + GAP
    sheet = Image.new("RGB", (MARGIN + count * step, len(rows) * step + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for row, (title, images) in enumerate(rows):
        top = GAP + row * step
        pen.multiline_text((8, top + TILE // 2 - 8), title, fill="#1F2933", font=font)
        for column, image in enumerate(images):
            pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
            tile = Image.fromarray(pixels).resize((TILE, TILE), Image.Resampling.NEAREST)
            sheet.paste(tile, (MARGIN + column * step, top))
    return sheet
