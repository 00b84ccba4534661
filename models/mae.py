"""Masked autoencoding (He et al. 2022) on the same encoders (sheet 6, construction a, and 7).

The encoder reads the visible patches alone, in raster order with the gaps closed; a Mamba encoder scans them in one or
in four directions (`scan_directions`), columns being those of the visible patches. Positions are added before dropping.
Both encoders share MAE's transformer decoder. No class token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.config import EncoderConfig, MAEConfig
from models.encoder import Encoder
from models.noise import Noise
from models.orders import column_order_of, scan_order
from models.pixels import Prediction, targets_of
from models.tables import WithTables, sincos_positions
from models.vit import ViTBlock
from scaling.errors import UserError


class MAEDecoder(WithTables):
    """Mask tokens fill the gaps; a ViT of its own width predicts the pixels of all patches."""

    kept = ("pos_embed",)

    def __init__(self, encoder: EncoderConfig, config: MAEConfig) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        width = config.decoder_width
        self.norm_encoded = nn.LayerNorm(encoder.width)
        self.from_encoder = nn.Linear(encoder.width, width)
        self.token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.ModuleList(ViTBlock(width, config.decoder_heads) for _ in range(config.decoder_depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, encoder.patch_values)
        self.register_tables()

    def tables(self) -> dict[str, Tensor]:
        return {"pos_embed": sincos_positions(self.config.decoder_width, self.encoder.side)}

    def forward(self, encoded: Tensor, visible: Tensor) -> Tensor:
        """encoded (batch, visible, width) and their raster indices to (batch, patches, patch values)."""
        known = self.from_encoder(self.norm_encoded(encoded))
        index = visible[:, :, None].expand(-1, -1, known.shape[2])
        filled = self.token.to(known.dtype).expand(len(known), self.encoder.patches, -1).scatter(1, index, known)
        tokens = filled + self.get_buffer("pos_embed")
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens))


class MAE(nn.Module):
    """Encoder of the visible patches, decoder of all; the loss counts the masked ones."""

    def __init__(self, encoder: EncoderConfig, config: MAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(encoder)
        self.decoder = MAEDecoder(encoder, config)

    def visible(self, noise: Noise | None, batch: int) -> Tensor:
        """Raster indices (batch, visible), ascending, of the patches that noise.mask ranks lowest."""
        encoder = self.encoder.config
        ranks = noise.mask if noise else None
        if ranks is None or tuple(ranks.shape) != (batch, encoder.patches):
            given = None if ranks is None else tuple(ranks.shape)
            raise UserError("noise.mask", given, f"uniforms of shape {(batch, encoder.patches)}")
        lowest = torch.argsort(ranks, dim=1, stable=True)[:, : self.config.visible(encoder.patches)]
        return lowest.sort(dim=1).values

    def features(self, images: Tensor) -> Tensor:
        """images (batch, channels, size, size), normalised, to (batch, width): what probes read.

        No patch is masked; the last block's output, normed as for the decoder, averaged over the patches.
        """
        (tokens,) = self.encoder(self.encoder.embedding(images))
        return self.decoder.norm_encoded(tokens).mean(dim=1)

    def forward(self, images: Tensor, noise: Noise | None = None) -> Prediction:
        """images (batch, channels, size, size), normalised; positions are in raster order, and a position's loss is its
        mean over the samples that mask it (0 where none does)."""
        encoder = self.encoder.config
        visible = self.visible(noise, len(images))
        tokens = self.encoder.embedding(images)
        tokens = tokens.gather(1, visible[:, :, None].expand(-1, -1, tokens.shape[2]))
        context = scan_order(column_order_of(visible, encoder.side)) if encoder.scan_directions > 1 else None
        (encoded,) = self.encoder(tokens, context, noise)
        prediction = self.decoder(encoded, visible)
        masked = torch.ones(prediction.shape[:2], device=images.device).scatter(1, visible, 0.0)
        target = targets_of(images, encoder.patch_size, self.config.target)
        errors = (prediction.float() - target).square().mean(dim=2) * masked
        per_position = errors.sum(dim=0) / masked.sum(dim=0).clamp(min=1)
        return Prediction(errors.sum() / masked.sum(), per_position, prediction)
