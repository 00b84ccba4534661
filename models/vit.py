"""The ViT block (Dosovitskiy et al. 2021) as the control, and the attention and MLP that the decoders share with it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from models.config import MLP_RATIO, EncoderConfig
from models.noise import drop_branch


def attend(queries: Tensor, keys: Tensor, values: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """Attention of (batch, length, width) tensors; `mask` (queries, keys) is True where a key may be seen."""
    query, key, value = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (queries, keys, values))
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return attended.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Attention of a sequence to itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        queries, keys, values = self.qkv(x).chunk(3, dim=-1)
        return self.proj(attend(queries, keys, values, self.heads, mask))


class CrossAttention(nn.Module):
    """Attention of queries to a memory; `kv` holds the keys' rows first, then the values'."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, queries: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        keys, values = self.kv(memory).chunk(2, dim=-1)
        return self.proj(attend(self.q(queries), keys, values, self.heads, mask))


class MLP(nn.Module):
    """fc2(gelu(fc1 x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.fc2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class ViTBlock(nn.Module):
    """x + DropPath(Attention(LN x)), then x + DropPath(MLP(LN x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width)

    @classmethod
    def of_encoder(cls, config: EncoderConfig) -> ViTBlock:
        """A block of an encoder."""
        return cls(config.width, config.heads)

    def forward(self, x: Tensor, mask: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """x (batch, length, width); `mask` (length, length); `keep` (batch, 2) for both branches, as in drop_branch."""
        keep_attention, keep_mlp = (None, None) if keep is None else keep.unbind(1)
        x = x + drop_branch(self.attention(self.norm1(x), mask), keep_attention)
        return x + drop_branch(self.mlp(self.norm2(x)), keep_mlp)
