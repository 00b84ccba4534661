"""The encoder around its blocks: patches in, token sequences out. Mamba and ViT differ in the block alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import EncoderConfig
from models.mamba import MambaBlock
from models.noise import Noise, drop_path_rates
from models.orders import column_order, scan_order
from models.pixels import patchify
from models.tables import WithTables, sincos_positions, with_middle_row
from models.vit import ViTBlock
from scaling.errors import UserError

BLOCKS = {"mamba": MambaBlock, "vit": ViTBlock.of_encoder}


class PatchProjection(nn.Conv2d):
    """One linear map of every patch, with the weights of the convolution that it is: (width, channels, size, size).

    A matrix product over the patches laid out in rows: cuDNN's strided convolution spends several times as long.
    """

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, size, size) to (batch, patches, width), in raster order."""
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(patchify(images, self.weight.shape[2]), weight, self.bias)


class Embedding(WithTables):
    """Patches in raster order with their positions, and the class token in the middle if there is one."""

    kept = ("pos_embed",)

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.patch = PatchProjection(config.channels, config.width, config.patch_size, stride=config.patch_size)
        if config.class_token:
            self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        if config.positions == "learned":
            self.pos_embed = nn.Parameter(torch.empty(1, config.patches + config.class_token, config.width))
        self.register_tables()

    def tables(self) -> dict[str, Tensor]:
        if self.config.positions == "learned":
            return {}
        table = sincos_positions(self.config.width, self.config.side)
        return {"pos_embed": with_middle_row(table, self.config.middle) if self.config.class_token else table}

    def forward(self, images: Tensor, order: Tensor | None = None) -> Tensor:
        """images (batch, channels, size, size) to tokens (batch, length, width): all, or those that `order` names."""
        expected = (self.config.channels, self.config.image_size, self.config.image_size)
        if images.dim() != 4 or tuple(images.shape[1:]) != expected:
            raise UserError("images", tuple(images.shape), f"the shape (batch, {', '.join(map(str, expected))})")
        tokens = self.patch(images)
        if self.config.class_token:
            token = self.cls_token.to(tokens.dtype).expand(len(tokens), -1, -1)
            tokens = torch.cat([tokens[:, : self.config.middle], token, tokens[:, self.config.middle :]], dim=1)
        tokens = tokens + self.pos_embed
        return tokens if order is None else tokens.index_select(1, order)


class Encoder(WithTables):
    """`embedding`, then `forward` through the blocks; the objective may drop or reorder tokens in between."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config)
        self.blocks = nn.ModuleList(BLOCKS[config.encoder](config) for _ in range(config.depth))
        self.register_tables()

    def tables(self) -> dict[str, Tensor]:
        tables = {"drop_rates": torch.tensor(drop_path_rates(self.config.drop_path, self.config.depth))}
        if self.config.scan_directions > 1:
            tables["order"] = scan_order(column_order(self.config.side, self.config.class_token))
        return tables

    def forward(
        self, tokens: Tensor, context: Tensor | None = None, noise: Noise | None = None, taps: Sequence[int] = ()
    ) -> list[Tensor]:
        """Outputs (batch, length, width) after each number of blocks in `taps`; of the last block alone by default.

        `context` is what a block needs to know about the sequence: the scan order for Mamba (`order` unless given), the
        attention mask for ViT. Raises UserError where drop path is on in training and `noise` has none.
        """
        if context is None and self.config.scan_directions > 1:
            context = self.get_buffer("order")
        keep = self._keep(noise, len(tokens))
        taps = taps or (self.config.depth,)
        outputs: list[Tensor] = []
        for number, (block, kept) in enumerate(zip(self.blocks, keep, strict=True), start=1):
            tokens = block(tokens, context, kept)
            outputs += [tokens] * list(taps).count(number)
        return outputs

    def _keep(self, noise: Noise | None, batch: int) -> Sequence[Tensor | None]:
        """What each block multiplies its branches by, (batch, 2).

        Made here for all blocks, so that compiled blocks share their code whatever their rates.
        """
        if not self.training or self.config.drop_path == 0:
            return [None] * self.config.depth
        uniforms = noise.drop_path if noise else None
        expected = (batch, self.config.depth, 2)
        if uniforms is None or tuple(uniforms.shape) != expected:
            given = None if uniforms is None else tuple(uniforms.shape)
            raise UserError("noise.drop_path", given, f"uniforms of shape {expected}", why="drop path is on")
        rates = self.get_buffer("drop_rates")[None, :, None]
        return ((uniforms >= rates) / (1 - rates)).unbind(1)
