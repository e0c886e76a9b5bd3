"""Transformer blocks: SwiGLU, a plain encoder block, and a block modulated by the noise level (adaLN-zero)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmldm.nn.attention import CrossAttention, SelfAttention, normalise

__all__ = ["EncoderBlock", "ModulatedBlock", "SwiGLU", "init_linear", "select"]

Tables = tuple[Tensor, Tensor]


def init_linear(module: nn.Module) -> None:
    """Xavier weights and zero biases for every linear layer inside `module`."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class SwiGLU(nn.Module):
    """Gated feed-forward layer (arXiv 2002.05202, eq. 6) of about `ratio`·width units' cost; two inputs of 2/3 of that each."""

    def __init__(self, width: int, ratio: float = 4.0):
        super().__init__()
        hidden = max(32, round(width * ratio * 2 / 3 / 32) * 32)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.value = nn.Linear(width, hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x)
        if torch.is_grad_enabled():
            return self.out(F.silu(gate) * self.value(x))
        return self.out(F.silu(gate, inplace=True).mul_(self.value(x)))


class EncoderBlock(nn.Module):
    """Pre-norm transformer block: x (B, N, W) -> (B, N, W)."""

    def __init__(self, width: int, heads: int, ratio: float = 4.0):
        super().__init__()
        self.attention, self.mlp = SelfAttention(width, heads), SwiGLU(width, ratio)

    def forward(self, x: Tensor, tables: Tables | None = None, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(normalise(x), tables, mask)
        return x + self.mlp(normalise(x))


def select(table: Tensor, chosen: Tensor | None) -> Tensor:
    """Rows of table (B, K, W) chosen per token by a one-hot (1 or B, N, K) -> (B, N, W); the table itself where None."""
    return table if chosen is None else chosen @ table


class ModulatedBlock(nn.Module):
    """Transformer block whose shift, scale and gate are a shared base plus learned offsets of its own (PixArt-alpha, arXiv
    2310.00426, section 2.3: adaLN-single); the identity at first."""

    def __init__(self, width: int, heads: int, ratio: float = 4.0, cross: bool = False):
        super().__init__()
        self.attention, self.mlp = SelfAttention(width, heads), SwiGLU(width, ratio)
        self.cross = CrossAttention(width, heads) if cross else None
        self.offset = nn.Parameter(torch.zeros(6 * width))
        init_linear(self)
        if self.cross is not None:
            nn.init.zeros_(self.cross.out.weight)

    def forward(
        self,
        x: Tensor,
        base: Tensor,
        chosen: Tensor | None = None,
        tables: Tables | None = None,
        mask: Tensor | None = None,
        context: Tables | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """x (B, N, W); base (B, K, 6·W) for K levels, `chosen` (1 or B, N, K) one-hot: each token's level, None: K is 1."""
        modulation = select(base + self.offset.to(base.dtype), chosen).chunk(6, -1)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = modulation
        x = torch.addcmul(x, gate, self.attention(torch.addcmul(shift, normalise(x), 1 + scale), tables, mask))
        if self.cross is not None:
            x = x + self.cross(normalise(x), context, context_mask)
        return torch.addcmul(x, gate_mlp, self.mlp(torch.addcmul(shift_mlp, normalise(x), 1 + scale_mlp)))
