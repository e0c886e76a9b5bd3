"""Frozen text encoders in the hub's format, tiny ones that the test writes to disk."""

import json
import sys

import pytest
import torch
import transformers

from mmldm.conditioner import ConditionSet, HubTextConditioner
from mmldm.testing import check_conditioner

VALUES = ["a red dot", "blue", ""]


def save_t5(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    names = ["<pad>", "</s>", "<unk>", "a", "red", "blue", "dot"]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    config = transformers.T5Config(vocab_size=7, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    transformers.T5EncoderModel(config).save_pretrained(folder)


def save_clip(folder):
    names = [
        *"abcdefghijklmnopqrstuvwxyz",
        *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz"),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocabulary = {name: i for i, name in enumerate(names)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    end = len(names) - 1
    config = transformers.CLIPTextConfig(
        vocab_size=len(names), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=12, eos_token_id=end, bos_token_id=end - 1, pad_token_id=end,
    )  # fmt: skip
    transformers.CLIPTextModel(config).save_pretrained(folder)


@pytest.fixture(params=["t5", "clip"], scope="module")
def folder(request, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    (save_t5 if request.param == "t5" else save_clip)(folder)
    return folder


@pytest.fixture
def conditioner(folder):
    return HubTextConditioner("text", str(folder), max_tokens=10, width=8)


def test_contract(conditioner):
    check_conditioner(conditioner, VALUES)


def test_its_null_is_the_empty_text(conditioner):
    conditions = ConditionSet({"text": conditioner})
    read, _ = conditions.read({"text": ["", ""]})
    cond, null = conditions(conditions.encode(read))["text"], conditions.null(2)["text"]
    for field in ("tokens", "vector", "mask"):
        torch.testing.assert_close(getattr(cond, field), getattr(null, field), rtol=1e-5, atol=1e-6)


def test_texts_differ_and_are_cut(conditioner):
    read = conditioner.reader.collate([conditioner.reader(text) for text in ("a red dot", "a blue dot", "a red dot " * 20)])
    assert read["ids"].shape == (3, 10)
    cond = conditioner(conditioner.encode(read))
    assert (cond.vector[0] - cond.vector[1]).abs().max() > 1e-4


def test_only_the_projection_trains_and_the_encoder_stays_as_it_is(conditioner):
    conditioner.train()
    trained = {name.split(".")[0] for name, p in conditioner.named_parameters() if p.requires_grad}
    assert trained == {"project", "pool"} and not any(m.training for m in conditioner.encoder.modules())
    kept = {name for name in conditioner.state_dict() if not name.startswith("encoder.")}
    assert kept == {"project.weight", "project.bias", "pool.weight", "pool.bias"}


def test_the_reader_travels_without_its_tokenizer(conditioner):
    ids = conditioner.reader("a red dot")
    state = conditioner.reader.__getstate__()
    assert state["_tokenizer"] is None and torch.equal(conditioner.reader(" a red dot".strip()), ids)


def test_without_transformers_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install mmldm\[text\]"):
        HubTextConditioner("text", str(tmp_path))
