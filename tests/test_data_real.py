"""The data module on real files and on the built-in world."""

from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch

from mmldm.data import DataModule, FileSource, LatentCache, write_cache
from mmldm.data.world import World
from mmldm.interfaces import Posterior
from mmldm.media import AudioMedia, ImageMedia, VideoMedia, save_audio, save_image, save_video

IMAGE, VIDEO, AUDIO = ImageMedia(16, 16), VideoMedia(4, 8, 16, 16), AudioMedia(8000, 1, 0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures, sounds and videos with and without sound, by three conventions, and broken files."""
    root, draw = tmp_path_factory.mktemp("real"), torch.Generator().manual_seed(0)
    tone = 0.5 * torch.sin(torch.arange(24000) / 24000 * 1.5 * 2 * torch.pi * 440).repeat(1, 1)
    for i, name in enumerate(["a.png", "b.jpg", "c.webp"]):
        path = root / "red_square" / name
        path.parent.mkdir(exist_ok=True)
        save_image(torch.rand(3, 20 + i, 24, generator=draw) * 2 - 1, path)
    (root / "table").mkdir()
    for name, rate in (("d.wav", 8000), ("e.flac", 16000), ("f.mp3", 44100)):
        save_audio(tone[:, : rate // 2] if rate == 8000 else tone, root / "table" / name, rate)
    (root / "table/metadata.csv").write_text(
        "file_name,text,bpm\nd.wav,a short tone,90\ne.flac,a tone,100\nf.mp3,another tone,110\n"
    )
    x = torch.rand(3, 12, 24, 32, generator=draw) * 2 - 1
    save_video(x, root / "g.mp4", 8, tone[:, :24000], 16000)
    save_video(x[:, :6], root / "h.webm", 8)
    (root / "g.txt").write_text("noise with a tone")
    (root / "broken.mp4").write_bytes((root / "g.mp4").read_bytes()[:300])
    (root / "broken.png").write_bytes(b"\x89PNG")
    return root


def module(source, medias, **options):
    return DataModule(source, medias, None, 2, 1, progress=False, max_bad_fraction=0.5, **options)


@pytest.mark.parametrize(("stream", "media", "files"), [("image", IMAGE, 3), ("audio", AUDIO, 4), ("video", VIDEO, 2)])
def test_each_modality_finds_its_files_in_a_mixed_folder(folder, stream, media, files):
    data = module(partial(FileSource.read, folder), {stream: media})
    batches = list(islice(iter(data.train_dataloader()), 3))
    assert len(data.items) == files and not any(b.faults for b in batches)
    assert len(data.reports[""].dropped) == (stream != "audio")
    for batch in batches:
        x = batch.media[stream]
        assert x.shape == (2, *media.shape) and x.std() > 0.05 and x.abs().max() <= 1 and (batch.valid[stream] > 0).all()
    if stream == "audio":
        assert str(folder / "h.webm") in dict(data.reports[""].ignored)
        assert data.items.rows[-1]["bpm"] == 110


def test_one_video_file_gives_picture_and_sound_of_one_window(folder, tmp_path):
    medias = {"video": VIDEO, "audio": AUDIO}
    source = FileSource.read(folder, medias)
    data = module(source, medias, crop="windows")
    data.setup()
    rows = {row["file"].rsplit("/")[-1]: i for i, row in enumerate(data.items.rows)}
    assert {"g.mp4", "h.webm", "d.wav"} <= set(rows) and "broken.mp4" not in rows
    assert data.items.seconds(rows["g.mp4"]) == pytest.approx(1.5, abs=0.1)

    def encode(stream, x):
        return Posterior(x.flatten(2).mean(-1), None)

    write_cache(tmp_path, data.items, medias, encode, {}, batch_size=3, progress=False)
    cached = module(None, medias, cache=tmp_path)
    for a, b in zip(islice(iter(data.train_dataloader()), 6), islice(iter(cached.train_dataloader()), 6), strict=True):
        assert a.index.equal(b.index) and a.start.equal(b.start)
        for stream, x in a.media.items():
            assert torch.allclose(encode(stream, x).mean, b.latents[stream].mean, atol=1e-6) and a.valid[stream].equal(
                b.valid[stream]
            )
    silent = LatentCache(tmp_path).batch(np.flatnonzero(cached.items.clips.index == rows["h.webm"]))[1]
    assert (silent["audio"] == 0).all() and (silent["video"] > 0).all()


def test_pictures_are_kept_in_memory_as_bytes(folder):
    data = module(partial(FileSource.read, folder), {"image": IMAGE}, memory=True)
    list(islice(iter(data.train_dataloader()), 2))
    assert {kept["image"][0].dtype for kept in data.train.parts[0].dataset._memory.values()} == {torch.uint8}


@pytest.mark.parametrize("kind", ["image", "av"])
def test_the_world_is_loaded_split_and_cached_like_files(tmp_path, kind):
    medias = {"image": IMAGE} if kind == "image" else {"video": VIDEO, "audio": AUDIO}
    world = World(kind, 8)
    data = module(world, medias, crop="windows")
    batches = list(islice(iter(data.train_dataloader()), 4))
    assert {*torch.cat([b.index for b in batches]).tolist()} < set(range(8)) and data.validation_rows(1)[0]["text"]
    write_cache(tmp_path, world, medias, lambda stream, x: Posterior(x), {"world": repr(world)}, progress=False)
    cached = module(None, medias, cache=tmp_path)
    for a, b in zip(batches, cached.train_dataloader(), strict=False):
        assert a.index.equal(b.index) and all(a.media[s].equal(b.latents[s].mean) for s in medias)
    assert cached.validation_rows(1) == data.validation_rows(1)
