"""mmldm codec test: a class, a yaml or a trained model is tried law by law; what is missing is told in a line."""

import re
from pathlib import Path

import pytest

from mmldm.commands import cli, codec
from mmldm.commands.codec_test import arguments

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
BROKEN = """
from my_lab import EEGCodec


class Forgetful(EEGCodec):
    def decode_features(self, z):
        self.last = z
        return super().decode_features(z)
"""
MEDIA = "media={_target_: mmldm.media.array.ArrayMedia, channels: 3, length: 64, rate: 32.0}"


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A folder with the README's example of a codec of one's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    text = README.split("\n## Bring your own codec\n")[1].split("\n## ")[0]
    Path("my_lab.py").write_text(re.findall(r"```python\n(.*?)```", text, re.S)[0])
    Path("broken_lab.py").write_text(BROKEN)
    Path("lab/codec").mkdir(parents=True)
    Path("lab/codec/eeg.yaml").write_text(re.findall(r"```yaml\n(.*?)```", text, re.S)[0])


def test_the_example_of_the_readme_keeps_the_contract(lab, capsys):
    assert cli.main(["codec", "test", "codec=eeg", "+codec.eeg.latent_channels=5", "--config-dir", "lab"]) == 0
    out = capsys.readouterr().out
    assert "eeg: my_lab.EEGCodec, media (32, 24), latents (5, 3)" in out and "0 fail" in out
    assert "ok    a trained-model folder brings it back" in out and "per second of media" in out
    assert cli.main(["codec", "test", "lab/codec/eeg.yaml", "--seconds", "1"]) == 0
    assert "media (32, 128)" in capsys.readouterr().out
    assert cli.main(["codec", "test", "my_lab.EEGCodec", "--set", MEDIA, "--set", "latent_channels=2"]) == 0
    assert "my_lab.EEGCodec, media (3, 24), latents (2, 3)" in capsys.readouterr().out


def test_a_broken_codec_is_told_and_gives_status_1(lab, capsys):
    assert cli.main(["codec", "test", "broken_lab.Forgetful", "--set", MEDIA]) == 1
    out = capsys.readouterr().out
    assert re.search(r"FAIL  nothing is kept or changed +encoding and decoding change its last", out)
    assert "without it breaks: several streams at once" in out


def test_a_trained_model_is_tried(lab, capsys):
    from mmldm import config, trained
    from mmldm.model import Whitening

    spec = {"_target_": "my_lab.EEGCodec", "media": {"_target_": "mmldm.media.array.ArrayMedia", "channels": 3, "length": 64,
            "rate": 32.0}}  # fmt: skip
    trained.save_codec(Path("runs/eeg"), {"codecs": {"eeg": spec}}, config.build(spec), Whitening(16), {}, "")
    assert cli.main(["codec", "test", "runs/eeg"]) == 2
    assert "--trust my_lab.EEGCodec" in capsys.readouterr().err
    assert cli.main(["codec", "test", "runs/eeg", "--trust", "my_lab.EEGCodec"]) == 0
    assert "eeg: my_lab.EEGCodec" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["test", "my_lab.EEGCodec"], "EEGCodec needs a value for 'media'\n  give it by --set KEY=VALUE or in a yaml"),
        (["test", "my_lab.EEGCodec", "--set", "medium=1"], "medi"),
        (["test", "my_lab.EEGCodek"], "there is no my_lab.EEGCodek"),
        (["test", "torch.nn.ReLU"], "wanted a mmldm.interfaces.Codec, got a ReLU"),
        (["test", "codec=egg", "--config-dir", "lab"], "did you mean 'eeg'?"),
        (["test", "codec=none"], "name one: codec=image_f4, or a class: my_lab.MyCodec"),
        (["test", "my_lab.EEGCodec", "8"], "arguments of a class are given by --set KEY=VALUE"),
        (["test", "codec=image_f4", "--set", "width=8"], "of yaml write codec.STREAM.KEY=VALUE"),
        (["test", "my_lab.EEGCodec", "--set", "width"], "wanted --set KEY=VALUE, got width"),
        (["test", "runs/nowhere"], "there is no trained model"),
        (["test", "none.yaml"], "none.yaml"),
        (["tset"], "did you mean 'test'?"),
    ],
)
def test_what_is_missing_or_wrong_is_told(lab, capsys, words, told):
    assert cli.main(["codec", *words]) == 2
    err = capsys.readouterr().err
    assert told in err and "Traceback" not in err and len(err.splitlines()) <= 7


def test_verbs_are_listed(capsys):
    assert codec.main(["--help"]) == 0 and codec.main([]) == 2
    out = capsys.readouterr().out
    assert all(f"  {verb} " in out for verb in codec.VERBS)
    with pytest.raises(SystemExit, match="0"):
        codec.main(["test", "--help"])


def test_arguments_of_a_class_are_yaml():
    assert arguments(["a=1", "b.c=[1, 2]", "b.d=x", "e={f: null}"]) == {"a": 1, "b": {"c": [1, 2], "d": "x"}, "e": {"f": None}}
