"""Vocoders in the public formats of HiFi-GAN and BigVGAN: a folder with config.json and the generator's weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmldm.codec.bigvgan import BigVGAN
from mmldm.codec.hifigan import HiFiGAN
from mmldm.codec.mel import LogMel

__all__ = ["GeneratorFile", "is_generator", "load_bigvgan", "load_hifigan", "read_generator"]


@dataclass(frozen=True)
class GeneratorFile:
    """A generator as it was read: its `kind`, the numbers of its `mel` and of its own constructor, its tensors by our names."""

    kind: type[HiFiGAN] | type[BigVGAN]
    mel: dict[str, Any]
    numbers: dict[str, Any]
    state: dict[str, Tensor]

    def build(self) -> HiFiGAN | BigVGAN:
        """The vocoder with its weights."""
        vocoder = self.kind(LogMel(**self.mel), **self.numbers)
        try:
            vocoder.load_state_dict(self.state)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines()[1:3]]
            raise ValueError(f"wanted the weights that config.json describes: {' '.join(lines)[:300]}") from error
        return vocoder.eval()


def load_hifigan(path: str | Path) -> HiFiGAN:
    """The HiFi-GAN of a folder with config.json and a generator checkpoint, or of that checkpoint; raises ValueError."""
    return _load(path, HiFiGAN)


def load_bigvgan(path: str | Path) -> BigVGAN:
    """The BigVGAN of a folder with config.json and a generator checkpoint, or of that checkpoint; raises ValueError."""
    return _load(path, BigVGAN)


def _load(path: str | Path, kind: type) -> Any:
    found = read_generator(path)
    if found.kind is not kind:
        raise ValueError(f"wanted a {kind.__name__}, got a {found.kind.__name__} in {path}")
    return found.build()


def is_generator(path: str | Path) -> bool:
    """Whether `path` is a folder, or a checkpoint in one, whose config.json describes such a generator."""
    path = Path(path)
    try:
        found = json.loads(((path if path.is_dir() else path.parent) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and "upsample_rates" in found and "_class_name" not in found


def read_generator(path: str | Path) -> GeneratorFile:
    """Read config.json and the checkpoint beside it; raises ValueError in one line for what is not such a folder."""
    path = Path(path)
    config = (path if path.is_dir() else path.parent) / "config.json"
    try:
        numbers = json.loads(config.read_text(encoding="utf-8"))
        mel, own = _mel(numbers), _numbers(numbers)
    except OSError as error:
        raise ValueError(f"wanted a folder with config.json and a generator checkpoint, got {path}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{config}: not a HiFi-GAN's or BigVGAN's configuration ({error})") from error
    kind = BigVGAN if "own_beta" in own else HiFiGAN
    return GeneratorFile(kind, mel, own, _state(_tensors(path if path.is_file() else _checkpoint(path))))


# ---------------------------------------------------------------- numbers


def _mel(config: Mapping[str, Any]) -> dict[str, Any]:
    if config["win_size"] != config["n_fft"]:
        raise ValueError(f"wanted win_size equal to n_fft {config['n_fft']}, got {config['win_size']}")
    return {
        "rate": config["sampling_rate"],
        "n_fft": config["n_fft"],
        "hop": config["hop_size"],
        "bins": config["num_mels"],
        "f_min": float(config["fmin"]),
        "f_max": float(config["sampling_rate"] / 2 if config["fmax"] is None else config["fmax"]),
    }


def _numbers(config: Mapping[str, Any]) -> dict[str, Any]:
    own = {
        "rates": list(config["upsample_rates"]),
        "kernels": list(config["upsample_kernel_sizes"]),
        "channels": config["upsample_initial_channel"],
        "block_kernels": list(config["resblock_kernel_sizes"]),
        "block_dilations": [list(d) for d in config["resblock_dilation_sizes"]],
        "paired": str(config["resblock"]) == "1",
    }
    if "activation" not in config:
        return own
    if config["activation"] not in ("snake", "snakebeta"):
        raise ValueError(f"wanted the activation snake or snakebeta, got {config['activation']}")
    return own | {
        "own_beta": config["activation"] == "snakebeta",
        "logarithmic": bool(config["snake_logscale"]),
        "tanh": bool(config.get("use_tanh_at_final", True)),
        "final_bias": bool(config.get("use_bias_at_final", True)),
    }


# ---------------------------------------------------------------- tensors


def _checkpoint(folder: Path) -> Path:
    """The one generator checkpoint of a folder: `g_…`, `generator…` or `bigvgan_generator…`."""
    found = [f for f in sorted(folder.iterdir()) if f.is_file() and re.match(r"g_|generator|\w*_generator", f.name)]
    if len(found) != 1:
        listed = ", ".join(f.name for f in found) or "none"
        raise ValueError(f"wanted one generator checkpoint in {folder}, got {listed}; name the file itself")
    return found[0]


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True)
        tensors = stored.get("generator", stored)
        if not isinstance(tensors, Mapping) or not all(isinstance(t, Tensor) for t in tensors.values()):
            raise ValueError("no tensors under the name generator")
    except Exception as error:  # what a file that is something else makes the unpickler raise is not listed anywhere
        raise ValueError(f"{file}: not a generator checkpoint ({str(error).splitlines()[0][:200]})") from error
    return dict(tensors)


def _state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weight norms folded, names changed to ours, the fixed filters left out."""
    state, blocks = {}, _blocks_per_upsampling(tensors)
    for name, tensor in tensors.items():
        if name.endswith(("filter", "weight_v", "original1")):
            continue
        if name.endswith(("weight_g", "parametrizations.weight.original0")):
            direction = name.replace("weight_g", "weight_v").replace("original0", "original1")
            name = name.replace("weight_g", "weight").replace("parametrizations.weight.original0", "weight")
            v = tensors[direction]
            tensor = v * (tensor / v.flatten(1).norm(dim=1).reshape(tensor.shape))
        state[_renamed(name, blocks)] = tensor.float()
    return state


def _blocks_per_upsampling(tensors: Mapping[str, Tensor]) -> int:
    count = {
        part: len({name.split(".")[1] for name in tensors if name.startswith(f"{part}.")}) for part in ("ups", "resblocks")
    }
    if not count["ups"] or count["resblocks"] % count["ups"]:
        raise ValueError(f"wanted as many residual blocks for each upsampling, got {count['resblocks']} for {count['ups']}")
    return count["resblocks"] // count["ups"]


def _renamed(name: str, blocks: int) -> str:
    """The public formats' name of a tensor -> ours."""
    name = re.sub(r"^ups\.(\d+)\.0\.", r"ups.\1.", name)
    name = re.sub(r"^activation_post\.", "after.", name)
    number = re.match(r"resblocks\.(\d+)\.", name)
    if not number:
        return name
    level, place = divmod(int(number[1]), blocks)
    return re.sub(r"\.convs\.", ".convs1.", f"blocks.{level}.{place}.{name[number.end() :]}")
