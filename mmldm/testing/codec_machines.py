"""The laws of a codec on any machine: precision, devices, trained-model folders, worker processes, training."""

from __future__ import annotations

import copy
import itertools
from multiprocessing.reduction import ForkingPickler

import torch
from torch import nn

from mmldm.interfaces import Codec
from mmldm.testing.lab import Lab, Moot, Note, law, tensors

__all__ = ["autocast", "device", "half", "saved", "sent", "trainable"]


@law("bfloat16 autocast", breaks="training on devices that use it")
def autocast(lab: Lab) -> str | None:
    """Under autocast latents stay finite and within 10 % of those in float32."""
    x = lab.media(lab.shape, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        z = lab.codec.encode(x.clone()).mean
        y = lab.codec.decode(z, lab.shape)
    if not bool(z.isfinite().all() and y.isfinite().all()):
        return "not finite under bfloat16 autocast"
    return (found := lab.near(z.float(), lab.codec.encode(x).mean, 0.1)) and f"latents under bfloat16 autocast: {found}"


@law("bfloat16 weights", breaks="inference in little memory")
def half(lab: Lab) -> str | None:
    """With its weights in bfloat16 the same, or a refusal."""
    codec, x = lab.fresh().bfloat16(), lab.media(lab.shape, dtype=torch.float32)
    try:
        z = codec.encode(x.bfloat16()).mean
        y = codec.decode(z.bfloat16(), lab.shape)
    except (RuntimeError, ValueError, TypeError) as error:
        return Note(f"refused, so keep its weights in float32 ({_line(error)})")
    if not bool(z.isfinite().all() and y.isfinite().all()):
        return "not finite with bfloat16 weights"
    return (found := lab.near(z.float(), lab.codec.encode(x).mean, 0.1)) and f"latents with bfloat16 weights: {found}"


@law("follows its device", breaks="training and generation on an accelerator")
def device(lab: Lab) -> str | None:
    """Every tensor that it makes is where its input is: run where there is an accelerator, else followed in form only."""
    if torch.cuda.is_available():
        found = _placed(lab.fresh().to("cuda"), lab, "cuda")
        return found or Note("run on cuda")
    from torch._subclasses.fake_tensor import FakeTensorMode  # shapes and devices without numbers

    codec = lab.fresh()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        memo = {id(t): mode.from_tensor(t.detach()).to("cuda") for t in itertools.chain(codec.parameters(), codec.buffers())}
        try:
            found = _placed(copy.deepcopy(codec, memo), lab, "cuda")
        except Exception as error:  # what needs numbers cannot be followed in form
            text = _line(error)
            return text if "same device" in text else Moot(f"only an accelerator can tell ({text})")
    return found or Note("followed in form for cuda, run on none")


def _placed(codec: Codec, lab: Lab, device: str) -> str | None:
    posterior = codec.encode(torch.zeros(1, *lab.shape, device=device))
    y = codec.decode(posterior.mean, lab.shape)
    outside = [t.device.type for t in tensors([posterior, y]) if t.device.type != device]
    return f"media on {device} gave results on {outside[0]}" if outside else None


def _line(error: Exception) -> str:
    text = next(iter(str(error).splitlines()), "") or type(error).__name__
    return text if len(text) <= 120 else f"{text[:119]}…"


# ---------------------------------------------------------------- saving, sending, training


@law("save and load", breaks="trained-model folders")
def saved(lab: Lab) -> str | None:
    """A copy of other weights that loads these does the same to the bit."""
    loaded, x = lab.fresh(), lab.media(lab.shape, dtype=torch.float32)
    for tensor in loaded.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(1)
    loaded.decode(loaded.encode(x.clone()).mean)  # whatever it derives from its weights, it has derived from the wrong ones
    state = {name: tensor.detach().clone().contiguous() for name, tensor in lab.codec.state_dict().items()}
    loaded.load_state_dict(state, strict=True)
    z = loaded.encode(x.clone()).mean
    if not torch.equal(lab.codec.encode(x).mean, z):
        return "the loaded codec encodes otherwise"
    return None if torch.equal(lab.codec.decode(z), loaded.decode(z)) else "the loaded codec decodes otherwise"


@law("its media travel", breaks="data loaders with workers")
def sent(lab: Lab) -> str | None:
    """`media` can be sent to another process, has no weights and arrives the same."""
    media = lab.source.media
    held = [name for name, value in getattr(media, "__dict__", {}).items() if isinstance(value, nn.Module)]
    if held:
        return f"the media holds modules: {', '.join(held)}"
    arrived = ForkingPickler.loads(ForkingPickler.dumps(media))
    facts = [(m.shape, m.time_axis, m.rate) for m in (media, arrived)]
    return None if facts[0] == facts[1] else f"the media was {facts[0]} and arrived as {facts[1]}"


@law("gradient reaches every parameter", breaks="codec training (and several processes)")
def trainable(lab: Lab) -> str | None:
    """A loss on what is decoded and on std moves every parameter that requires a gradient."""
    codec = copy.deepcopy(lab.exact).train()
    trained = [(name, p) for name, p in codec.named_parameters() if p.requires_grad]
    if not trained:
        return Moot("no parameter is trained")
    with torch.enable_grad():
        posterior = codec.encode_features(codec.front(lab.x))
        spread = 0 if posterior.std is None else posterior.std.square().sum()
        (codec.decode_features(posterior.mean).square().sum() + spread).backward()
    dead = [name for name, p in trained if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    return f"no gradient reaches {', '.join(dead[:5])}" if dead else None
