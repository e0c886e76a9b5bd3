"""Two networks of one shape and the loops around them, for sampling.py: our DiT, and a PixArt transformer of diffusers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel
from torch import Tensor, nn

from mmldm.denoiser import DiT
from mmldm.denoiser.memory import Reuse
from mmldm.diffusion import CFG, Grid, ListGrid, Path, Prediction, Solver, sample
from mmldm.diffusion.branches import Branch, Branches, take_rows
from mmldm.interfaces import Axis, Codec, Cond, CondWidths
from mmldm.model import Model

SCALE = 4.5
Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Shape:
    """The network and its inputs: width, depth, heads, cells per side, caption tokens and their width, batch."""

    width: int = 384
    depth: int = 12
    heads: int = 6
    side: int = 32
    tokens: int = 120
    caption: int = 384
    batch: int = 8


class Cells(Codec):
    """The geometry of a latent of four channels, 8 pixels to a cell; nothing is encoded."""

    latent_channels, axes = 4, (Axis("height", 8, 8, 1.0), Axis("width", 8, 8, 1.0))

    def encode_features(self, features):
        raise NotImplementedError

    def decode_features(self, z):
        raise NotImplementedError

    def latent_shape(self, media_shape):
        raise NotImplementedError


@dataclass(frozen=True)
class Inputs:
    """Noise (B, 4, side, side), captions (2·B, tokens, caption), asked for first and nothing after, and their mask."""

    noise: Tensor
    captions: Tensor
    mask: Tensor

    @staticmethod
    def draw(shape: Shape) -> Inputs:
        random, rows = torch.Generator().manual_seed(0), 2 * shape.batch
        noise = torch.randn(shape.batch, 4, shape.side, shape.side, generator=random)
        captions = torch.randn(rows, shape.tokens, shape.caption, generator=random)
        lengths = torch.randint(shape.tokens // 4, shape.tokens + 1, (rows, 1), generator=random)
        return Inputs(noise, captions, torch.arange(shape.tokens)[None] < lengths)


def ours(shape: Shape, kind: torch.dtype, path: Path, prediction: Prediction) -> Model:
    """Our model, no weight of it left at the zero that it starts from."""
    torch.manual_seed(0)
    widths = {"text": CondWidths(tokens=shape.caption)}
    denoiser = DiT({"z": Cells().geometry}, widths, shape.width, shape.depth, shape.heads, patch=2)
    for p in denoiser.parameters():
        if not bool(p.any()):
            nn.init.normal_(p, std=0.02)
    model = Model({"z": Cells()}, nn.Module(), denoiser, path, prediction).eval().requires_grad_(False)
    model.denoiser.to(kind)
    return model


def our_loop(model: Model, inputs: Inputs, solver: Solver, grid: Grid, steps: int, reuse: Reuse | None = None) -> Run:
    """Conditions prepared, then all steps: what a pipeline does between its text encoder and its codec."""
    rows, guidance, points = len(inputs.noise), CFG(SCALE), grid(steps, model.path)

    def run() -> Tensor:
        model.denoiser.reuse = reuse
        prepared = model.prepare({"text": Cond(tokens=inputs.captions, mask=inputs.mask)})
        context = {"z": model.context("z", inputs.noise.shape[2:])}
        parts = {name: take_rows(prepared, i * rows, (i + 1) * rows) for i, name in enumerate(("cond", "null"))}
        asked = Branches({name: Branch(model.denoise, part, context) for name, part in parts.items()})
        return sample(asked, {"z": inputs.noise}, {"z": points}, solver, model.path, guidance, context)["z"]

    return run


def theirs(shape: Shape) -> PixArtTransformer2DModel:
    """A PixArt transformer of the same shape."""
    torch.manual_seed(0)
    model = PixArtTransformer2DModel(
        num_attention_heads=shape.heads,
        attention_head_dim=shape.width // shape.heads,
        num_layers=shape.depth,
        cross_attention_dim=shape.width,
        caption_channels=shape.caption,
        sample_size=shape.side,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        use_additional_conditions=False,
    )
    return model.eval().requires_grad_(False)


def their_loop(model: PixArtTransformer2DModel, inputs: Inputs, steps: int, autocast: bool = False) -> Run:
    """The denoising loop of their pipeline: both branches in one batch, DPM-Solver++ 2M."""
    kind, scheduler = model.dtype, DPMSolverMultistepScheduler()
    captions, mask = inputs.captions.to(kind), inputs.mask.to(kind)
    size = {"resolution": None, "aspect_ratio": None}

    def run() -> Tensor:
        scheduler.set_timesteps(steps)
        z = inputs.noise.to(kind)
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            for t in scheduler.timesteps:
                both, level = torch.cat([z, z]), t.expand(2 * len(z))
                eps = model(both, captions, timestep=level, encoder_attention_mask=mask, added_cond_kwargs=size).sample
                asked, nothing = eps.chunk(2)
                z = scheduler.step(nothing + SCALE * (asked - nothing), t, z, return_dict=False)[0]
        return z

    return run


def their_grid(steps: int) -> ListGrid:
    """The levels that their scheduler visits."""
    scheduler = DPMSolverMultistepScheduler()
    scheduler.set_timesteps(steps)
    return ListGrid([(int(k) + 1) / 1000 for k in scheduler.timesteps] + [0.0])
