"""HiFi-GAN and BigVGAN: equal to their peers, of the reach that they declare, read from the public file formats."""

import json

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as qwen
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniBigVGANConfig

from mmldm import keyed, windows
from mmldm.codec import LogMel
from mmldm.codec.bigvgan import AliasFree, BigVGAN, Snake, low_pass
from mmldm.codec.hifigan import HiFiGAN
from mmldm.codec.vocoder_files import load_bigvgan, load_hifigan, read_generator
from mmldm.records import Axis

MEL = LogMel(8000, 256, 64, 20)
SMALL = {
    "rates": (8, 4, 2),
    "kernels": (16, 8, 4),
    "channels": 16,
    "block_kernels": (3, 5),
    "block_dilations": ((1, 3), (1, 2)),
}


def features(frames: int = 30, channels: int = 1) -> torch.Tensor:
    return keyed.normal(("mel",), range(2), (channels, frames, MEL.bins)).double() * 0.5


def awake(module: nn.Module) -> nn.Module:
    """Every parameter away from its initial value, in float64."""
    module = module.double().eval()
    for name, parameter in module.named_parameters():
        parameter.data += keyed.normal(("awake", name), [0], parameter.shape)[0] * 0.1
    return module


def vocoder(kind: str) -> HiFiGAN | BigVGAN:
    made = {
        "hifigan": lambda: HiFiGAN(MEL, **SMALL),
        "single blocks, odd overlap": lambda: HiFiGAN(MEL, **SMALL | {"kernels": (17, 9, 4), "paired": False}),
        "bigvgan": lambda: BigVGAN(MEL, **SMALL),
        "snake, tanh": lambda: BigVGAN(MEL, **SMALL, own_beta=False, logarithmic=False, tanh=True, final_bias=True),
    }
    return awake(made[kind]())


KINDS = ("hifigan", "single blocks, odd overlap", "bigvgan", "snake, tanh")

# ---------------------------------------------------------------- what every vocoder keeps


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_frames_become_hops_and_channels_do_not_meet(kind):
    v, x = vocoder(kind), features(channels=2)
    y = v(x)
    assert y.shape == (2, 2, 30 * 64) and bool(y.isfinite().all()) and float(y.abs().max()) <= 1
    torch.testing.assert_close(y[:, 1:], v(x[:, 1:]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_windows_of_the_declared_reach_are_the_whole(kind):
    v, x = vocoder(kind), features(70)
    context = windows.Context.of(windows.GRID, Axis("time", 64, 64, 1 / 8000), v.reach, v.reach, 10)
    pieces, state = [], None
    for begin in range(0, 70, 14):
        y, state = windows.advance(v, x[:, :, begin : begin + 14], state, begin == 56, 2, context)
        pieces += [] if y is None else [y]
    assert len(pieces) > 2
    torch.testing.assert_close(torch.cat(pieces, -1), v(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_declared_reach_is_the_least(kind):
    v, x = vocoder(kind), features(2 * vocoder(kind).reach + 3)[:1].requires_grad_()
    middle = v.reach + 1
    v(x)[..., 64 * middle : 64 * (middle + 1)].square().sum().backward()
    seen = x.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert int(max(middle - seen.min(), seen.max() - middle)) == v.reach


# ---------------------------------------------------------------- peers


@torch.no_grad()
def test_hifigan_equals_transformers():
    config = SpeechT5HifiGanConfig(
        model_in_dim=20,
        upsample_initial_channel=16,
        upsample_rates=[8, 4, 2],
        upsample_kernel_sizes=[16, 8, 4],
        resblock_kernel_sizes=[3, 5],
        resblock_dilation_sizes=[[1, 3], [1, 2]],
        normalize_before=False,
    )
    peer, ours = awake(SpeechT5HifiGan(config)), HiFiGAN(MEL, **SMALL).double()
    public = {k.replace("upsampler.", "ups."): v for k, v in peer.state_dict().items() if k not in ("mean", "scale")}
    ours.load_state_dict(renamed(public))
    log_mel = features()[:, 0]
    torch.testing.assert_close(ours.upsampled(log_mel.transpose(1, 2))[:, 0], peer(log_mel), rtol=0, atol=1e-12)


@torch.no_grad()
def test_bigvgan_equals_transformers():
    config = Qwen2_5OmniBigVGANConfig(
        mel_dim=20,
        upsample_initial_channel=16,
        upsample_rates=[8, 4, 2],
        upsample_kernel_sizes=[16, 8, 4],
        resblock_kernel_sizes=[3, 5],
        resblock_dilation_sizes=[[1, 3, 5], [1, 2, 3]],
    )
    peer = awake(qwen.Qwen2_5OmniToken2WavBigVGANModel(config))
    ours = BigVGAN(MEL, **SMALL | {"block_dilations": ((1, 3, 5), (1, 2, 3))}).double()
    ours.load_state_dict(renamed(peer.state_dict()))
    for name, filter in peer.named_buffers():
        torch.testing.assert_close(low_pass(0.25, 0.3, 12).double(), filter.flatten(), rtol=0, atol=1e-7, msg=name)
        filter.copy_(low_pass(0.25, 0.3, 12).expand_as(filter))
    x = features()[:1, 0].transpose(1, 2)
    theirs = peer(x)
    x = peer.process_mel_spectrogram(x)
    torch.testing.assert_close(ours.upsampled(x)[0, 0], theirs, rtol=0, atol=1e-12)


def renamed(tensors: dict) -> dict:
    """The public formats' names -> ours, float64 kept."""
    from mmldm.codec import vocoder_files

    blocks = vocoder_files._blocks_per_upsampling(tensors)
    return {vocoder_files._renamed(k, blocks): v for k, v in tensors.items() if not k.endswith("filter")}


@torch.no_grad()
def test_the_alias_free_nonlinearity_makes_no_new_tones_below_its_rate():
    """A tone near the top, distorted: what folds back below it is weaker than without the filters."""
    x = torch.sin(2 * torch.pi * 0.4 * torch.arange(2000.0))[None, None]
    act = Snake(1)
    plain, free = (torch.fft.rfft(f(x)[0, 0, 500:1500] * torch.hann_window(1000)).abs() for f in (act, AliasFree(act)))
    folded = slice(180, 220)  # twice 0.4 is 0.8 cycles per sample, heard at 0.2
    assert float(free[folded].max()) < 0.5 * float(plain[folded].max())


# ---------------------------------------------------------------- files


class Public(nn.Module):
    """The names of a public generator's tensors, weight norms included."""

    def __init__(self, ours: HiFiGAN | BigVGAN, nested: bool, old: bool):
        super().__init__()
        norm = nn.utils.weight_norm if old else parametrizations.weight_norm
        self.conv_pre, self.conv_post = norm(ours.conv_pre), norm(ours.conv_post)
        ups = [norm(up) for up in ours.ups]
        self.ups = nn.ModuleList(nn.ModuleList([up]) for up in ups) if nested else nn.ModuleList(ups)
        self.resblocks = nn.ModuleList(block for level in ours.blocks for block in level)
        for block in self.resblocks:
            for convs in (block.convs1, block.convs2):
                for conv in convs or ():
                    norm(conv)
        if nested:
            self.activation_post = ours.after


def write(folder, kind: str, old: bool, **changes) -> torch.Tensor:
    """A folder in a public format; what its generator makes of `features()`."""
    v = vocoder(kind).float()
    nested = isinstance(v, BigVGAN)
    y = v(features().float()).detach()
    config = {
        "resblock": "1" if v.blocks[0][0].convs2 is not None else "2",
        "upsample_rates": [8, 4, 2],
        "upsample_kernel_sizes": [up.kernel_size[0] for up in v.ups],
        "upsample_initial_channel": 16,
        "resblock_kernel_sizes": [3, 5],
        "resblock_dilation_sizes": [[1, 3], [1, 2]],
        "sampling_rate": 8000, "n_fft": 256, "win_size": 256, "hop_size": 64, "num_mels": 20, "fmin": 0, "fmax": None,
        "segment_size": 8192,
    }  # fmt: skip
    if nested:
        snake = v.after.act
        own = {"activation": "snake" if snake.beta is None else "snakebeta", "snake_logscale": snake.logarithmic}
        config |= own | {"use_tanh_at_final": v.bounded is torch.tanh, "use_bias_at_final": v.conv_post.bias is not None}
    state = Public(v, nested, old).state_dict()
    for name in state:
        if name.endswith(("weight_v", "original1")):
            state[name] = 3 * state[name]  # a direction: its length is not part of the weight
    if config["resblock"] == "2":
        state = {name.replace(".convs1.", ".convs."): tensor for name, tensor in state.items()}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | changes))
    torch.save({"generator": state}, folder / ("bigvgan_generator.pt" if nested else "g_02500000"))
    return y


@pytest.mark.parametrize("old", [True, False], ids=["weight_g", "parametrised"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_public_files_are_read(kind, old, tmp_path):
    expected = write(tmp_path, kind, old)
    loaded = (load_bigvgan if kind in KINDS[2:] else load_hifigan)(tmp_path)
    assert loaded.mel.digest() == MEL.digest()
    torch.testing.assert_close(loaded(features().float()), expected, rtol=1e-5, atol=1e-6)


REFUSED = {
    "hop": ({"hop_size": 60}, "product is the hop"),
    "window": ({"win_size": 200}, "win_size"),
    "other weights": ({"upsample_initial_channel": 32}, "weights that config.json describes"),
    "other activation": ({"activation": "relu", "snake_logscale": True}, "snake or snakebeta"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_do_not_fit_are_refused_in_one_line(case, tmp_path):
    changes, said = REFUSED[case]
    write(tmp_path, "hifigan", False, **changes)
    with pytest.raises(ValueError, match=said) as caught:
        load_hifigan(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_no_generator_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json"):
        read_generator(tmp_path / "nowhere")
    write(tmp_path / "a", "hifigan", False)
    with pytest.raises(ValueError, match="wanted a BigVGAN, got a HiFiGAN"):
        load_bigvgan(tmp_path / "a")
    (tmp_path / "a" / "g_00000001").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="g_00000001, g_02500000"):
        load_hifigan(tmp_path / "a")
    with pytest.raises(ValueError, match="not a generator checkpoint"):
        load_hifigan(tmp_path / "a" / "g_00000001")
