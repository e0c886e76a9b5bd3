"""TextConditioner: a small text encoder that trains with the denoiser; no download, any language, any word."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmldm.conditioner.words import HashedWords
from mmldm.interfaces import Cond, Conditioner, CondWidths
from mmldm.nn.attention import normalise
from mmldm.nn.positions import AxialAngles, rotary_tables
from mmldm.nn.transformer import EncoderBlock, init_linear

__all__ = ["TextConditioner"]


class TextConditioner(Conditioner):
    """A text -> one token per word behind a summary token, and a pooled vector.

    A word enters as the sum of its own hashed embedding and those of its pieces (`words` and `pieces` buckets); a small
    transformer reads the words in order.
    """

    def __init__(
        self,
        key: str = "text",
        width: int = 128,
        depth: int = 2,
        heads: int = 2,
        words: int = 4096,
        pieces: int = 8192,
        max_words: int = 64,
    ):
        super().__init__()
        self.key, self.reader, self.heads = key, HashedWords(words, pieces, max_words), heads
        self.widths = CondWidths(tokens=width, vector=width)
        self.table = nn.Parameter(torch.empty(1 + words + pieces, width))
        self.summary = nn.Parameter(torch.zeros(width))
        self.angles = AxialAngles(width // heads, {"word": 1.0}, longest=float(max_words))
        self.blocks = nn.ModuleList(EncoderBlock(width, heads) for _ in range(depth))
        self.pool = nn.Linear(width, width)
        self.null_token, self.null_vector = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        init_linear(self)
        nn.init.normal_(self.table, std=0.02)  # small, so that a bucket never trained says almost nothing
        for vector in (self.summary, self.null_token, self.null_vector):
            nn.init.normal_(vector)

    def forward(self, encoded: dict[str, Tensor]) -> Cond:
        ids, mask = encoded["ids"], encoded["mask"]
        batch, count, pieces = ids.shape
        words = F.embedding_bag(ids.reshape(-1, pieces), self.table, mode="sum", padding_idx=0).unflatten(0, (batch, count))
        x = torch.cat([self.summary.expand(batch, 1, -1), normalise(words)], 1)
        mask = F.pad(mask, (1, 0), value=True)
        place = torch.arange(count + 1, device=x.device, dtype=x.dtype)[None, :, None]
        tables = rotary_tables(self.angles(place, ("word",)), self.heads)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        tables = tuple(table.to(x.dtype) for table in tables)
        for block in self.blocks:
            x = block(x, tables, mask[:, None, None])
        tokens = normalise(x)
        weight = mask[..., None].to(tokens.dtype)
        pooled = self.pool((tokens * weight).sum(1) / weight.sum(1))
        return Cond(tokens=tokens, mask=mask, vector=pooled)

    def null(self, batch_size: int) -> Cond:
        token, vector = self.null_token.expand(batch_size, 1, -1), self.null_vector.expand(batch_size, -1)
        mask = torch.ones(batch_size, 1, dtype=torch.bool, device=token.device)
        return Cond(tokens=token, mask=mask, vector=vector)
