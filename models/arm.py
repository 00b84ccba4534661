"""Autoregressive pretraining, ARM (arXiv 2406.07537, section 3; sheet 1.7): predict every next cluster of patches.

The encoder reads all clusters but the last, in order. Queries that know only their position read, by cross-attention,
the clusters before their own at several depths of the encoder, one depth a decoder block.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.config import ARConfig, EncoderConfig, attention_heads
from models.encoder import Encoder
from models.noise import Noise
from models.orders import cluster_order, clusters_so_far
from models.pixels import Prediction, targets_of
from models.tables import WithTables, sincos_positions
from models.vit import MLP, CrossAttention


class CrossBlock(nn.Module):
    """q + CrossAttention(LN q, LN memory), then q + MLP(LN q). Queries never see each other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_query = nn.LayerNorm(width)
        self.norm_memory = nn.LayerNorm(width)
        self.attention = CrossAttention(width, attention_heads(width))
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, queries: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """queries, memory (batch, length, width); mask (length, length)."""
        queries = queries + self.attention(self.norm_query(queries), self.norm_memory(memory), mask)
        return queries + self.mlp(self.norm_mlp(queries))


class ARDecoder(WithTables):
    """From the tapped outputs of the encoder to the pixels of the next cluster's patches."""

    kept = ("pos_embed",)

    def __init__(self, encoder: EncoderConfig, config: ARConfig) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        width, levels = config.decoder_width, config.decoder_depth
        self.norms = nn.ModuleList(nn.LayerNorm(encoder.width) for _ in range(levels))
        self.from_encoder = nn.Linear(levels * encoder.width, levels * width)
        self.token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.ModuleList(CrossBlock(width) for _ in range(levels))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, encoder.patch_values)
        self.register_tables()

    def tables(self) -> dict[str, Tensor]:
        return {"pos_embed": sincos_positions(self.config.decoder_width, self.encoder.side)}

    def memories(self, levels: list[Tensor]) -> tuple[Tensor, ...]:
        """One memory (batch, length, decoder width) a level. Their channels are interleaved in the projection."""
        normed = [norm(level) for norm, level in zip(self.norms, levels, strict=True)]
        return self.from_encoder(torch.cat(normed, dim=2)).unflatten(2, (-1, len(levels))).unbind(3)

    def pixels(self, queries: Tensor) -> Tensor:
        """(batch, length, width) to (batch, length, patch values)."""
        return self.head(self.norm(queries))

    def forward(self, levels: list[Tensor], targets: Tensor, mask: Tensor) -> Tensor:
        """levels of (batch, length, width) to (batch, length, patch values).

        `targets` (length,) are raster indices of the patches to predict; `mask` (length, length) what each may see.
        """
        batch = len(levels[0])
        queries = self.token + self.get_buffer("pos_embed").index_select(1, targets)
        queries = queries.expand(batch, -1, -1)
        for block, memory in zip(self.blocks, self.memories(levels), strict=True):
            queries = block(queries, memory, mask)
        return self.pixels(queries)


class ARM(WithTables):
    """Encoder and decoder; both encoders are causal by cluster: a Mamba by its scan, a ViT by its mask."""

    def __init__(self, encoder: EncoderConfig, config: ARConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(encoder)
        self.decoder = ARDecoder(encoder, config)
        self.register_tables()

    def tables(self) -> dict[str, Tensor]:
        encoder, cluster = self.encoder.config, self.config.cluster_side**2
        return {
            "sequence": cluster_order(
                encoder.side, self.config.cluster_side, self.config.order, self.config.order_seed
            ),
            "mask": clusters_so_far(encoder.patches - cluster, cluster),
        }

    def features(self, images: Tensor) -> Tensor:
        """images (batch, channels, size, size), normalised, to (batch, width): what probes read.

        All clusters in the order of pretraining, the last one too; the last block's output, normed as for the decoder,
        averaged over the patches.
        """
        encoder = self.encoder.config
        tokens = self.encoder.embedding(images, self.get_buffer("sequence"))
        seen = clusters_so_far(encoder.patches, self.config.cluster_side**2).to(images.device)
        (tokens,) = self.encoder(tokens, seen if encoder.encoder == "vit" else None)
        return self.decoder.norms[-1](tokens).mean(dim=1)

    def forward(self, images: Tensor, noise: Noise | None = None) -> Prediction:
        """images (batch, channels, size, size), normalised; positions in sequence order, from the second cluster on."""
        encoder, cluster = self.encoder.config, self.config.cluster_side**2
        sequence, mask = self.get_buffer("sequence"), self.get_buffer("mask")
        tokens = self.encoder.embedding(images, sequence[:-cluster])
        context = mask if encoder.encoder == "vit" else None
        levels = self.encoder(tokens, context, noise, taps=self.config.taps(encoder.depth))
        prediction = self.decoder(levels, sequence[cluster:], mask)
        per_position = self.errors(prediction, images).mean(dim=0)
        return Prediction(per_position.mean(), per_position, prediction)

    def errors(self, prediction: Tensor, images: Tensor) -> Tensor:
        """Squared errors (batch, length), a position's mean over the values of its patch."""
        cluster = self.config.cluster_side**2
        target = targets_of(images, self.encoder.config.patch_size, self.config.target)
        target = target.index_select(1, self.get_buffer("sequence")[cluster:])
        return (prediction.float() - target).square().mean(dim=2)
