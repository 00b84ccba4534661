"""The encoder as a classifier (sheet 1.5): finetuning, supervised training from scratch, and what probes read."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.config import EncoderConfig, SupervisedConfig
from models.encoder import Encoder
from models.noise import Noise


class Classifier(nn.Module):
    """Encoder, norm, pooling (patch tokens' mean, or the class token in the middle), linear head."""

    def __init__(self, encoder: EncoderConfig, config: SupervisedConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(encoder)
        self.norm = nn.LayerNorm(encoder.width)
        self.head = nn.Linear(encoder.width, config.classes)

    def features(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """images (batch, channels, size, size), normalised, to (batch, width)."""
        encoder = self.encoder.config
        (tokens,) = self.encoder(self.encoder.embedding(images), noise=noise)
        tokens = self.norm(tokens)
        if self.config.pooling == "class_token":
            return tokens[:, encoder.middle]
        if not encoder.class_token:
            return tokens.mean(dim=1)
        patches = torch.cat([tokens[:, : encoder.middle], tokens[:, encoder.middle + 1 :]], dim=1)
        return patches.mean(dim=1)

    def forward(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """images (batch, channels, size, size), normalised, to logits (batch, classes)."""
        return self.head(self.features(images, noise))
