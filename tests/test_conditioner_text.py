"""Hashed words and the text encoder that trains with the denoiser."""

import pytest
import torch

from mmldm.conditioner.text import TextConditioner
from mmldm.conditioner.words import HashedWords, split_words

GOLDEN = [[3849, 9994, 5060, 12190, 8928, 4496, 7730], [2887, 8332, 0, 0, 0, 0, 0], [2352, 8332, 0, 0, 0, 0, 0]]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def words(text):
    return [word for run in split_words(text) for word in run]


def encoder(**sizes):
    return TextConditioner(**{"width": 16, "depth": 1, "heads": 2, "words": 64, "pieces": 128, **sizes}).double()


def read(conditioner, *texts):
    reader = conditioner.reader
    return conditioner.encode(reader.collate([reader(text) for text in texts]))


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("A red circle, moving LEFT!", ["a", "red", "circle", "moving", "left"]),
        ("  ", []),
        ("", []),
        ("...?!", []),
        ("Straße ﬁne Ⅳ 3.5", ["strasse", "fine", "iv", "3", "5"]),
        ("красный круг", ["красный", "круг"]),
        ("빨간 원", ["빨간", "원"]),
        ("हिन्दी लाल", ["हिन्दी", "लाल"]),
        ("红色circle圆", ["红", "色", "circle", "圆"]),
        ("赤いまる", ["赤", "い", "ま", "る"]),
        ("สีแดง", ["สี", "แ", "ด", "ง"]),
        ("red 🙂🔴 dot", ["red", "🙂", "🔴", "dot"]),
        ("cafe\u0301", ["caf\u00e9"]),
    ],
)
def test_words_of_any_language(text, wanted):
    assert words(text) == wanted


def test_ids_are_the_same_on_every_machine():
    ids = HashedWords(words=4096, pieces=8192)("Red 红色")
    assert ids.tolist() == GOLDEN


def test_unseen_words_share_pieces_and_not_the_word():
    reader = HashedWords(words=2**20, pieces=2**20)
    one, two, far = (set(row[row > 0].tolist()) for row in reader("circle circles xyz"))
    assert len(one & two) >= 6 and not one & far
    ids = reader("circle circles xyz")[:, 0]
    assert ids.unique().numel() == 3 and ids.max() <= 2**20


def test_characters_without_spaces_share_bigrams():
    one, two = HashedWords(2**20, 2**20)("红色圆")[:2]
    assert set(one[1:].tolist()) & set(two[1:].tolist()) - {0}


def test_order_and_length_are_kept():
    reader = HashedWords(max_words=4)
    assert torch.equal(reader("a bb ccc d e f"), reader("a bb ccc d"))
    assert torch.equal(reader("a bb")[:, 0].flip(0), reader("bb a")[:, 0])
    assert reader("红色圆圈圆圈").shape[0] == 4
    assert reader("x" * 500).shape == (1, 33)
    assert reader("").shape == (0, 1)


def test_missing_and_empty_texts_collate():
    reader = HashedWords()
    batch = reader.collate([reader("a red dot"), None, reader("")])
    assert batch["mask"].tolist() == [[True] * 3, [False] * 3, [False] * 3]
    assert batch["ids"].shape[:2] == (3, 3) and reader.collate([None])["ids"].shape[0] == 1


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="1 or more"):
        HashedWords(words=0)


def test_the_encoder_hears_words_and_their_order():
    conditioner = encoder()
    with torch.no_grad():
        cond = conditioner(read(conditioner, "red dot blue square", "blue dot red square", "red dot blue square"))
    assert cond.tokens.shape == (3, 5, 16) and cond.vector.shape == (3, 16)
    assert torch.equal(cond.vector[0], cond.vector[2]) and (cond.vector[0] - cond.vector[1]).abs().max() > 1e-4


def test_padding_changes_nothing():
    conditioner = encoder()
    alone = conditioner(read(conditioner, "red dot"))
    padded = conditioner(read(conditioner, "red dot", "a much longer text of words"))
    torch.testing.assert_close(padded.vector[0], alone.vector[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(padded.tokens[0, :3], alone.tokens[0], rtol=1e-9, atol=1e-9)
    assert padded.mask[0].tolist() == [True] * 3 + [False] * 4


def test_an_empty_text_says_something_and_is_not_the_null():
    conditioner = encoder()
    cond, null = conditioner(read(conditioner, "")), conditioner.null(1)
    assert cond.mask.any(1).all() and not torch.equal(cond.vector, null.vector)


def test_half_precision_runs():
    conditioner = encoder().float()
    with torch.autocast("cpu", torch.bfloat16):
        cond = conditioner(read(conditioner, "red dot", ""))
    cond.vector.float().square().sum().backward()
    assert conditioner.table.grad.isfinite().all() and conditioner.table.grad[0].abs().sum() == 0
