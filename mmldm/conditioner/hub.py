"""HubTextConditioner: a frozen text encoder of the Hugging Face hub, or of a local folder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmldm.interfaces import Cond, Conditioner, CondWidths, Reader
from mmldm.nn.attention import normalise
from mmldm.nn.transformer import init_linear

__all__ = ["HubTextConditioner", "HubTokens"]

TOWERS = {
    "t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel", "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel", "clap": "ClapTextModel", "clap_text_model": "ClapTextModel",
}  # fmt: skip


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError("a text encoder of the hub wants the package transformers: pip install mmldm[text]") from error
    return transformers


def _tower(transformers: Any, model_type: str) -> Any:
    """The class of the text tower; names the root of the trouble where an installed package does not fit the others."""
    name = TOWERS.get(model_type, "AutoModel")
    try:
        return getattr(transformers, name)
    except ImportError as error:
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        raise ImportError(f"transformers cannot load {name}: {root}") from error


class HubTokens(Reader):
    """A text -> its token ids, at most `max_tokens`; the tokenizer is loaded where it is first used."""

    def __init__(self, name_or_path: str, max_tokens: int):
        self.name_or_path, self.max_tokens = str(name_or_path), max_tokens
        self._tokenizer: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tokenizer": None}

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, loaded once per process."""
        if self._tokenizer is None:
            self._tokenizer = _transformers().AutoTokenizer.from_pretrained(self.name_or_path)
        return self._tokenizer

    def __call__(self, value: str) -> Tensor:
        ids = self.tokenizer(str(value), truncation=True, max_length=self.max_tokens)["input_ids"]
        return torch.tensor(ids or [self._padding], dtype=torch.int64)

    def collate(self, items: list[Tensor | None]) -> dict[str, Tensor]:
        """Ids and mask (B, N); a missing text is read as the empty one."""
        items = [self("") if item is None else item for item in items]
        longest = max(map(len, items))
        ids = torch.full((len(items), longest), self._padding, dtype=torch.int64)
        mask = torch.zeros(len(items), longest, dtype=torch.bool)
        for i, item in enumerate(items):
            ids[i, : len(item)], mask[i, : len(item)] = item, True
        return {"ids": ids, "mask": mask}

    @property
    def _padding(self) -> int:
        given = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(token for token in given if token is not None)


class HubTextConditioner(Conditioner):
    """Tokens and a pooled vector of a frozen encoder (T5, CLIP text, CLAP text, any BERT-like), projected to `width`.

    `name_or_path` is a hub name or a folder. Its null is the encoding of the empty text. The encoder's weights are neither
    trained nor part of the trained state; raises ImportError without the extra `text`.
    """

    frozen = ("encoder",)

    def __init__(self, key: str, name_or_path: str, max_tokens: int = 64, width: int = 512):
        super().__init__()
        transformers = _transformers()
        config = transformers.AutoConfig.from_pretrained(name_or_path)
        self.encoder = (
            _tower(transformers, config.model_type)
            .from_pretrained(name_or_path, dtype=torch.float32)
            .eval()
            .requires_grad_(False)
        )
        text = getattr(self.encoder.config, "text_config", None) or self.encoder.config
        limit = getattr(text, "max_position_embeddings", None)
        if limit is not None:  # RoBERTa counts positions from behind its padding token
            max_tokens = min(
                max_tokens, limit - (text.pad_token_id + 1 if text.model_type in ("roberta", "clap_text_model") else 0)
            )
        self.key, self.reader, self.widths = key, HubTokens(name_or_path, max_tokens), CondWidths(tokens=width, vector=width)
        self.project, self.pool = nn.Linear(text.hidden_size, width), nn.Linear(text.hidden_size, width)
        init_linear(self.project), init_linear(self.pool)
        empty = self.encode(self.reader.collate([self.reader("")]))
        for name, value in empty.items():
            self.register_buffer(f"empty_{name}", value, persistent=False)

        self.register_state_dict_post_hook(_without_encoder)
        self.register_load_state_dict_post_hook(_encoder_is_not_missing)

    def train(self, mode: bool = True) -> HubTextConditioner:
        super().train(mode)
        self.encoder.eval()
        return self

    @torch.no_grad()
    def encode(self, read: dict[str, Tensor]) -> dict[str, Tensor]:
        """Ids and mask (B, N) -> tokens (B, N, hidden), mask, pooled (B, hidden): the encoder's own pooling, else the mean."""
        mask = read["mask"]
        output = self.encoder(input_ids=read["ids"], attention_mask=mask.long())
        tokens, weight = output.last_hidden_state, mask[..., None].to(output.last_hidden_state.dtype)
        pooled = getattr(output, "pooler_output", None)
        mean = (tokens * weight).sum(1) / weight.sum(1)
        return {"tokens": tokens * weight, "mask": mask, "pooled": mean if pooled is None else pooled}

    def forward(self, encoded: dict[str, Tensor]) -> Cond:
        tokens, vector = self.project(normalise(encoded["tokens"])), self.pool(normalise(encoded["pooled"]))
        return Cond(tokens=tokens, mask=encoded["mask"], vector=vector)

    def null(self, batch_size: int) -> Cond:
        """The projected encoding of the empty text."""
        return self({name: getattr(self, f"empty_{name}").expand(batch_size, *[-1] * dim) for name, dim in
                     (("tokens", 2), ("mask", 1), ("pooled", 1))})  # fmt: skip


def _without_encoder(module: HubTextConditioner, state: dict[str, Tensor], prefix: str, _metadata: dict) -> None:
    """The encoder is named by the configuration, not stored with the model."""
    for name in [name for name in state if name.startswith(f"{prefix}encoder.")]:
        del state[name]


def _encoder_is_not_missing(module: HubTextConditioner, keys: Any) -> None:
    own = {name for name, _ in module.encoder.named_parameters()} | {name for name, _ in module.encoder.named_buffers()}
    keys.missing_keys[:] = [key for key in keys.missing_keys if key.rpartition("encoder.")[2] not in own]
