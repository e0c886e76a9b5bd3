"""Arrays of any rank: cropped in time, padded at the end, refused where they do not fit."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from mmldm.interfaces import MediaError
from mmldm.media import ArrayMedia, read_metadata


def test_round_trip_crop_and_pad(tmp_path):
    media = ArrayMedia(4, 100, rate=50.0)
    x = torch.randn(4, 250, generator=torch.Generator().manual_seed(0)) * 40
    path = media.save(x, tmp_path / "a.npy", {"prompt": "none"})
    info = media.probe(path)
    assert (info.seconds, info.shape, info.channels) == (5.0, (250,), 4) and media.windows(info) == [0.0, 2.0, 4.0]
    assert torch.equal(media.load(path, 1.0).x, x[:, 50:150])
    last = media.load(path, 4.0)
    assert last.valid == (50,) and torch.equal(last.x[:, :50], x[:, 200:]) and not last.x[:, 50:].any()
    assert media.plan(info) == ["axis 0 cropped 250 -> 100"] and read_metadata(path) == {}
    with pytest.raises(MediaError, match="ends at 5.00 s"):
        media.load(path, 5.0)


def test_any_rank_and_a_missing_channel_axis(tmp_path):
    values = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)
    np.save(tmp_path / "a.npy", values)
    clip = ArrayMedia(1, (4, 8, 7)).load(tmp_path / "a.npy")
    assert clip.valid == (4, 6, 7) and torch.equal(clip.x[0, :, :6], torch.from_numpy(values[:4].astype(np.float32)))
    media = ArrayMedia(5, (6, 7))
    assert torch.equal(media.load(tmp_path / "a.npy").x, torch.from_numpy(values.astype(np.float32)))
    assert media.resized(size=(2, 3)).shape == (5, 2, 3) and media.time_axis is None and media.seconds is None
    with pytest.raises(ValueError, match="no rate"):
        media.resized(seconds=1.0)


def test_refusals_name_the_file_and_the_reason(tmp_path):
    media = ArrayMedia(2, 10)
    cases = {
        "channels": (np.zeros((3, 10)), "wanted 2 channels and 1 axes"),
        "nan": (np.full((2, 10), np.nan), "NaN"),
        "words": (np.array(["a", "b"]), "real numbers"),
        "complex": (np.zeros((2, 10), complex), "real numbers"),
        "empty": (np.zeros((2, 0)), "is empty"),
    }
    for name, (values, reason) in cases.items():
        np.save(tmp_path / f"{name}.npy", values)
        with pytest.raises(MediaError, match=reason) as caught:
            media.load(tmp_path / f"{name}.npy")
        assert f"{name}.npy" in str(caught.value)
    np.save(tmp_path / "object.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    with pytest.raises(MediaError):
        media.load(tmp_path / "object.npy")


def test_preview_and_pickle(tmp_path):
    for media in (ArrayMedia(2, 30, 10.0), ArrayMedia(20, 30), ArrayMedia(1, (4, 5)), ArrayMedia(2, (3, 4, 5))):
        assert [p.kind for p in media.preview(torch.randn(media.shape), tmp_path, "x")] == ["picture"]
        assert pickle.loads(pickle.dumps(media)) == media
