"""Words without a vocabulary: any text as hashed words and hashed pieces of words."""

from __future__ import annotations

import unicodedata
import zlib
from collections.abc import Iterator

import torch
from torch import Tensor

from mmldm.interfaces import Reader

__all__ = ["HashedWords", "split_words"]

# scripts that write words without spaces between them: each character is a word of its own
UNSPACED = (
    (0x0E00, 0x0EFF), (0x0F00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip


def split_words(text: str) -> Iterator[list[str]]:
    """Runs of a text: [word], [symbol], or the characters of an unspaced run; lower-case, compatibility forms folded."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    run: list[str] = []
    kind = ""
    for char in folded:
        found = _kind(char, kind)
        if run and (found != kind or found == "symbol"):
            yield run if kind == "unspaced" else ["".join(run)]
            run = []
        if found == "unspaced" and unicodedata.category(char)[0] == "M" and run:
            run[-1] += char
        elif found:
            run.append(char)
        kind = found
    if run:
        yield run if kind == "unspaced" else ["".join(run)]


def _kind(char: str, before: str) -> str:
    category = unicodedata.category(char)[0]
    if any(first <= ord(char) <= last for first, last in UNSPACED) and category in "LNM":
        return "unspaced"
    if category == "M":
        return before if before in ("word", "unspaced") else ""
    return "word" if category in "LN" else "symbol" if category == "S" else ""


class HashedWords(Reader):
    """A text -> ids (n, K) int64 of its words in order, at most `max_words`; column 0 the word's, then its pieces', 0 nothing.

    Pieces are the character 3- to 5-grams of `<word>` (fastText, arXiv 1607.04606, section 3.2), or the two bigrams around
    a character in scripts without spaces. Ids 1 … `words` are words, the next `pieces` are pieces; hashed by CRC-32, so
    they are the same on every machine.
    """

    def __init__(self, words: int = 4096, pieces: int = 8192, max_words: int = 64, max_pieces: int = 32):
        if min(words, pieces, max_words, max_pieces) < 1:
            raise ValueError(f"wanted sizes of 1 or more, got {words}, {pieces}, {max_words}, {max_pieces}")
        self.words, self.pieces, self.max_words, self.max_pieces = words, pieces, max_words, max_pieces

    def __call__(self, value: str) -> Tensor:
        rows: list[list[int]] = []
        for run in split_words(str(value)):
            for i, word in enumerate(run):
                rows.append([self._word(word), *map(self._piece, self._parts(run, i))])
            if len(rows) >= self.max_words:
                break
        rows = rows[: self.max_words]
        longest = max(map(len, rows), default=1)
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows], dtype=torch.int64).reshape(len(rows), longest)

    def collate(self, items: list[Tensor | None]) -> dict[str, Tensor]:
        """Ids (B, N, K), zero where there is nothing, and mask (B, N)."""
        given = [item for item in items if item is not None]
        count, longest = (max((item.shape[axis] for item in given), default=1) for axis in (0, 1))
        ids = torch.zeros(len(items), count, longest, dtype=torch.int64)
        for row, item in zip(ids, items, strict=True):
            if item is not None:
                row[: item.shape[0], : item.shape[1]] = item
        return {"ids": ids, "mask": ids[..., 0] > 0}

    def _parts(self, run: list[str], i: int) -> list[str]:
        if len(run) > 1:
            neighbours = [run[i - 1] + run[i]] if i else []
            return neighbours + ([run[i] + run[i + 1]] if i + 1 < len(run) else [])
        marked = f"<{run[i]}>"
        return [marked[k : k + n] for n in (3, 4, 5) for k in range(len(marked) - n + 1)][: self.max_pieces]

    def _word(self, word: str) -> int:
        return 1 + zlib.crc32(f"word {word}".encode("utf-8", "replace")) % self.words

    def _piece(self, piece: str) -> int:
        return 1 + self.words + zlib.crc32(f"piece {piece}".encode("utf-8", "replace")) % self.pieces
