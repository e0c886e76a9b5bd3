"""Autoencoders of diffusers from a folder, from the hub, or from the numbers of a saved model."""

from __future__ import annotations

import inspect
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mmldm.codec.hifigan import HiFiGAN
from mmldm.codec.mel import LogMel
from mmldm.codec.pretrained_families import FAMILIES

__all__ = ["body_of", "folder_of", "load_vocoder", "numbers_of", "read_config"]

WEIGHTS = "diffusion_pytorch_model"
PARTS = r"(?:\.(\w+?))?(?:-\d+-of-\d+)?\.(safetensors|bin)"  # of a file's name: its variant, which part it is, its format
UNFIT = (OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError, ArithmeticError)  # of wrong numbers
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def folder_of(source: str | Path, variant: str | None = None) -> Path:
    """The folder of a source: itself, or the files of a hub name (owner/name), downloaded; raises ValueError."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    words = str(source).split("/")
    if len(words) != 2 or path.is_absolute() or words[0] in ("", ".", "..", "~"):
        raise ValueError(f"wanted a folder with config.json, or a hub name owner/name, got {source}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(f"{source} wants the package huggingface_hub: pip install mmldm[pretrained]") from error
    name = f"{WEIGHTS}.{variant}" if variant else WEIGHTS
    files = ["config.json", f"{name}.safetensors", f"{WEIGHTS}-0*.safetensors" if not variant else f"{name}-0*.safetensors"]
    wanted = [f"{part}{file}" for part in ("", "vae/") for file in files]
    try:
        found = snapshot_download(str(source), allow_patterns=[*wanted, "vocoder/config.json", "vocoder/model.safetensors"])
    except (OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise ValueError(f"{source}: neither a folder here nor to be had from the hub ({reason})") from error
    return Path(found)


def read_config(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The autoencoder's own folder, `folder` or its `vae`, and its config.json; raises ValueError for other classes."""
    for place in (folder, folder / "vae"):
        try:
            config = json.loads((place / "config.json").read_text(encoding="utf-8"))
            kind = config["_class_name"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if kind not in FAMILIES:
            raise ValueError(f"wanted one of {', '.join(FAMILIES)}, got {kind} in {place}")
        return place, config
    raise ValueError(f"wanted the config.json of an autoencoder of diffusers in {folder} or its vae, got none")


def body_of(source: str | None, numbers: Mapping[str, Any] | None, variant: str | None, dtype: str) -> nn.Module:
    """The autoencoder of a source with its weights, or of `numbers_of` with its weights still to be loaded; frozen.

    Raises ValueError for what is neither, both, or cannot be read.
    """
    if (source is None) == (numbers is None):
        raise ValueError(f"wanted a source (a folder or a hub name) or numbers, got {source!r} and {numbers!r}")
    if dtype not in DTYPES:
        raise ValueError(f"wanted dtype one of {', '.join(DTYPES)}, got {dtype!r}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the class about itself
        body = _loaded(source, variant, DTYPES[dtype]) if numbers is None else _built(numbers, DTYPES[dtype])
    FAMILIES[type(body).__name__].prepare(body)
    return body.eval().requires_grad_(False)


def _loaded(source: str, variant: str | None, dtype: torch.dtype) -> nn.Module:
    place, config = read_config(folder_of(source, variant))
    variant, safe = _weights(place, variant)
    options = {"torch_dtype": dtype, "variant": variant, "use_safetensors": safe, "low_cpu_mem_usage": False}
    try:
        kind = _class_of(config["_class_name"])
        body, told = kind.from_pretrained(str(place), local_files_only=True, output_loading_info=True, **options)
    except UNFIT as error:
        raise ValueError(f"{place}: config and weights of {config['_class_name']} cannot be read ({_reason(error)})") from error
    if lacking := sorted(told["missing_keys"]):
        raise ValueError(
            f"{place}: wanted all weights of {config['_class_name']}, {len(lacking)} are not there: {lacking[0]} …"
        )
    return body


def _weights(place: Path, variant: str | None) -> tuple[str | None, bool]:
    """The variant to read (the only one where none is asked and none is plain), and whether as .safetensors; else .bin."""
    names = [file.name for file in place.glob(f"{WEIGHTS}*")]
    found = {(m[1], m[2] == "safetensors") for n in names if (m := re.fullmatch(WEIGHTS + PARTS, n))}
    asked = [each for each in found if each[0] == variant] or (sorted(found, key=str)[:1] if variant is None else [])
    if not asked:
        raise ValueError(f"wanted weights {WEIGHTS}{f'.{variant}' if variant else ''}.safetensors in {place}, got {names}")
    return max(asked, key=lambda each: each[1])


def _built(numbers: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    kind = numbers.get("class_name")
    if kind not in FAMILIES:
        raise ValueError(f"wanted class_name to be one of {', '.join(FAMILIES)}, got {kind!r}")
    try:
        body = _class_of(kind).from_config({key: value for key, value in numbers.items() if key != "class_name"})
    except UNFIT as error:
        raise ValueError(f"{kind} cannot be built from these numbers ({_reason(error)})") from error
    return nn.Module.to(body, dtype)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def numbers_of(body: nn.Module) -> dict[str, Any]:
    """Class and constructor arguments of an autoencoder as plain data."""
    known = inspect.signature(type(body).__init__).parameters
    plain = json.loads(json.dumps({k: v for k, v in body.config.items() if k in known}))
    return {"class_name": type(body).__name__, **plain}


def _class_of(kind: str) -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(f"{kind} wants the package diffusers: pip install mmldm[pretrained]") from error
    return getattr(diffusers, kind)


# ---------------------------------------------------------------- vocoders


def load_vocoder(folder: Path, mel: LogMel) -> tuple[HiFiGAN, dict[str, Any]] | None:
    """The SpeechT5HifiGan of `folder`/vocoder as our HiFiGAN for `mel`, and its numbers; None where there is none.

    Raises ValueError for another vocoder, or one of another mel front end.
    """
    place = folder / "vocoder"
    if not (place / "config.json").is_file():
        return None
    config = json.loads((place / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "speecht5_hifigan" or config.get("normalize_before"):
        raise ValueError(f"{place}: wanted a SpeechT5HifiGan with normalize_before false, got {config.get('model_type')}")
    if (config["sampling_rate"], config["model_in_dim"]) != (mel.rate, mel.bins):
        raise ValueError(
            f"{place}: wanted a vocoder of {mel.bins} bins at {mel.rate} Hz, "
            f"got {config['model_in_dim']} bins at {config['sampling_rate']} Hz"
        )
    if config.get("leaky_relu_slope", 0.1) != 0.1:
        raise ValueError(f"{place}: wanted leaky_relu_slope 0.1, got {config['leaky_relu_slope']}")
    numbers = {
        "rates": list(config["upsample_rates"]),
        "kernels": list(config["upsample_kernel_sizes"]),
        "channels": config["upsample_initial_channel"],
        "block_kernels": list(config["resblock_kernel_sizes"]),
        "block_dilations": [list(dilations) for dilations in config["resblock_dilation_sizes"]],
    }
    vocoder = HiFiGAN(mel, **numbers)
    vocoder.load_state_dict(_vocoder_state(_vocoder_tensors(place), len(numbers["block_kernels"])))
    return vocoder.eval(), numbers


def _vocoder_tensors(place: Path) -> dict[str, Tensor]:
    if (place / "model.safetensors").is_file():
        return load_file(place / "model.safetensors")
    if (place / "pytorch_model.bin").is_file():
        return torch.load(place / "pytorch_model.bin", map_location="cpu", weights_only=True)
    raise ValueError(f"wanted model.safetensors or pytorch_model.bin in {place}, got neither")


def _vocoder_state(tensors: Mapping[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """Its tensors by our names."""
    state = {}
    for name, tensor in tensors.items():
        if name in ("mean", "scale"):
            continue
        head, _, rest = name.partition(".")
        if head == "resblocks":
            number, _, rest = rest.partition(".")
            head = "blocks.{}.{}".format(*divmod(int(number), blocks))
        state[f"{'ups' if head == 'upsampler' else head}.{rest}"] = tensor.float()
    return state
