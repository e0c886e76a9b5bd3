"""Stored encodings of conditions: each value once, as the encoder gives it, in place of running it in training."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from mmldm.commands.digests import conditioner_digest
from mmldm.conditioner import ConditionSet
from mmldm.data.batch import FieldReaders
from mmldm.data.cache_encodings import EncodingWriter, StoredEncodings
from mmldm.data.cache_shard import Shard
from mmldm.data.cache_writer import begin
from mmldm.interfaces import Cond, Conditioner, CondWidths, Encoded, Reader

ROWS = [{"text": text} for text in ("a red dot", "blue", None, "a much longer text than the others", "blue", "x")]


class Letters(Reader):
    """A text -> its letters as numbers; batch: padded, with a mask; a missing text is the empty one."""

    def __init__(self, limit=64):
        self.limit = limit

    def __call__(self, value):
        return torch.tensor([len(value) + 1, *map(ord, value)][: self.limit])

    def collate(self, items):
        items = [self("") if item is None else item for item in items]
        mask = nn.utils.rnn.pad_sequence([torch.ones(len(i), dtype=torch.bool) for i in items], batch_first=True)
        return {"ids": nn.utils.rnn.pad_sequence(items, batch_first=True), "mask": mask}


class Frozen(Conditioner):
    """A table as the language model: tokens, mask, pooled (as wide as most texts are long), and a count of its runs."""

    frozen = ("encoder",)

    def __init__(self, width=9):
        super().__init__()
        self.key, self.reader, self.widths = "text", Letters(), CondWidths(tokens=4)
        self.encoder, self.project, self.runs = nn.Embedding(256, width), nn.Linear(width, 4), 0

    def encode(self, read):
        self.runs += 1
        mask, tokens = read["mask"], self.encoder(read["ids"]) * read["mask"][..., None]
        return {"tokens": tokens, "mask": mask, "pooled": tokens.sum(1)}

    def forward(self, encoded):
        return Cond(tokens=self.project(encoded["tokens"]), mask=encoded["mask"])

    def null(self, batch_size):
        return Cond(tokens=torch.zeros(batch_size, 1, 4), mask=torch.ones(batch_size, 1, dtype=torch.bool))


@pytest.fixture
def conditioner():
    torch.manual_seed(0)
    return Frozen()


def store(folder, conditioner, rows=ROWS, **options):
    digest = conditioner_digest(conditioner)
    writer = EncodingWriter(conditioner, digest, begin(folder, {}, options.pop("dtype", "float32")), rows, 2, **options)
    for block in writer.blocks:
        writer.write(block)
    return writer, digest


@pytest.mark.parametrize("block", [1, 1000])
def test_what_is_stored_is_what_the_encoder_gives(tmp_path, conditioner, block):
    writer, digest = store(tmp_path, conditioner, block=block)
    assert len(writer) == 5  # each value once, and a missing one
    stored = pickle.loads(pickle.dumps(StoredEncodings(tmp_path, digest)))
    for chosen in ([0, 1, 2], [3], [2], [5, 1, 4, 0]):
        rows = [ROWS[i] for i in chosen]
        fields, present = FieldReaders({"text": ("text", stored)}).collate(
            [FieldReaders({"text": ("text", stored)}).read(row) for row in rows]
        )
        plain = FieldReaders({"text": ("text", conditioner.reader)})
        read, there = plain.collate([plain.read(row) for row in rows])
        wanted = conditioner.encode(read["text"])
        assert isinstance(fields["text"], Encoded) and torch.equal(present["text"], there["text"])
        assert fields["text"].value.keys() == wanted.keys()
        assert all(torch.equal(fields["text"].value[name], wanted[name]) for name in wanted)


def test_the_encoder_does_not_run_in_training(tmp_path, conditioner):
    _, digest = store(tmp_path, conditioner)
    conditions, stored = ConditionSet({"text": conditioner}), StoredEncodings(tmp_path, digest)
    conditioner.runs = 0
    encoded = conditions.encode({"text": stored.collate([stored("blue"), None])})
    assert conditioner.runs == 0 and conditions(encoded)["text"].tokens.shape == (2, 5, 4)


def test_a_second_run_encodes_what_is_new_alone(tmp_path, conditioner):
    store(tmp_path, conditioner)
    conditioner.runs = 0
    writer, digest = store(tmp_path, conditioner, [*ROWS, {"text": "new"}])
    assert len(writer) == 1 and conditioner.runs == 1
    stored = StoredEncodings(tmp_path, digest)
    assert stored("new") != stored("blue")
    with pytest.raises(ValueError, match="has no encoding of 'unknown'; run `mmldm encode` again with conditions="):
        stored("unknown")


def test_a_damaged_part_is_made_anew(tmp_path, conditioner):
    _, digest = store(tmp_path, conditioner)
    file = max(tmp_path.glob("encodings-*"))
    held = file.read_bytes()
    file.write_bytes(held[:200])
    with pytest.raises(ValueError, match="is damaged"):
        StoredEncodings(tmp_path, digest)
    writer, _ = store(tmp_path, conditioner)
    assert writer.damaged == [file.name] and file.read_bytes() == held


def test_another_encoder_or_reader_has_other_encodings_and_a_trained_projection_the_same(tmp_path, conditioner):
    _, digest = store(tmp_path, conditioner)
    nn.init.ones_(conditioner.project.weight)
    assert conditioner_digest(conditioner) == digest
    conditioner.reader.limit = 7
    limited = conditioner_digest(conditioner)
    conditioner.reader.limit = 64
    nn.init.ones_(conditioner.encoder.weight)
    assert len({digest, limited, conditioner_digest(conditioner)}) == 3
    assert StoredEncodings.there(tmp_path, digest) and not StoredEncodings.there(tmp_path, limited)
    with pytest.raises(ValueError, match="wanted encodings of this conditioner, got none"):
        StoredEncodings(tmp_path, limited)


def test_they_are_stored_as_narrow_as_asked_and_without_padding(tmp_path, conditioner):
    _, digest = store(tmp_path, conditioner, dtype="float16")
    stored = StoredEncodings(tmp_path, digest)
    value = stored.collate([stored("blue")]).value
    wanted = conditioner.encode(conditioner.reader.collate([conditioner.reader("blue")]))
    assert value["tokens"].dtype == torch.float32 and torch.equal(value["tokens"], wanted["tokens"].half().float())
    shards = [Shard(file) for file in tmp_path.glob("encodings-*")]
    lengths = [1, *(len(text) + 1 for text in {row["text"] for row in ROWS if row["text"]})]
    assert sum(shard.shape("tokens")[0] for shard in shards) == sum(lengths) > 5
    assert sum(shard.shape("pooled")[0] for shard in shards) == 5


def test_an_encoding_that_is_no_dict_of_tensors_is_refused(tmp_path, conditioner):
    conditioner.encode = lambda read: read["ids"]
    with pytest.raises(ValueError, match=r"wanted an encoding as a dict of tensors \(B, …\), got Tensor"):
        store(tmp_path, conditioner)
    assert np.all([not file.name.startswith("encodings") for file in tmp_path.iterdir()])
