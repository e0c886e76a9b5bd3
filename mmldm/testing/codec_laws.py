"""The laws of every codec: shapes, values, and that encoding and decoding are functions."""

from __future__ import annotations

import torch

from mmldm.interfaces import grid_positions
from mmldm.model import Whitening
from mmldm.testing.lab import Lab, Moot, Note, attributes, law, same

__all__ = ["axes", "batch_independent", "deterministic", "finite", "keeps_nothing", "latent_shape", "round_trip", "span",
           "spread", "whitening"]  # fmt: skip

FAR, HALF = 10.0, torch.finfo(torch.float16).max


# ---------------------------------------------------------------- shapes


@law("latent_shape is what encode gives", breaks="sampling (noise of a wrong shape)")
def latent_shape(lab: Lab) -> str | None:
    """For whole, odd and minimal sizes `latent_shape` tells the shape of `encode(x).mean`."""
    for shape in lab.lengths():
        posterior = lab.exact.encode(lab.media(shape))
        told, got = tuple(lab.exact.latent_shape(shape)), tuple(posterior.mean.shape[1:])
        if told != got:
            return f"media {shape}: latent_shape says {told}, encode gives {got}"
        if told[0] != lab.exact.latent_channels:
            return f"latent_channels is {lab.exact.latent_channels}, encode gives {got[0]}"
    return None


@law("every length comes back", breaks="generation and reconstruction of other sizes")
def round_trip(lab: Lab) -> str | None:
    """Sizes that are no multiple of a cell, down to one sample, are padded and cropped back."""
    for shape in lab.lengths():
        x = lab.media(shape, 2, torch.float32)
        y = lab.codec.decode(lab.codec.encode(x).mean, shape)
        if tuple(y.shape[1:]) != shape or len(y) != len(x):
            return f"media {shape} came back as {tuple(y.shape[1:])}"
        if not bool(y.isfinite().all()):
            return f"media {shape} came back with values that are not finite"
    return None


@law("axes agree with the latent", breaks="positions, alignment of streams, known cells")
def axes(lab: Lab) -> str | None:
    """One `Axis` per grid dimension; `axis.cells` counts what `encode` gives; the time axis is in seconds."""
    cells = lab.exact.latent_shape(lab.shape)[1:]
    if len(cells) != len(lab.exact.axes):
        return f"{len(lab.exact.axes)} axes for latents of {len(cells)} grid dimensions"
    grid = grid_positions(lab.exact.axes, cells)
    if not bool((grid[..., 1] > grid[..., 0]).all()):
        return "cells of no extent"
    if lab.time is None:
        return None
    axis, rate = lab.exact.axes[lab.time], lab.exact.media.rate
    if abs(axis.unit * rate - 1) > 1e-6:
        return f"the time axis has {axis.unit} s per media sample at {rate} samples per second"
    for length in range(1, min(3 * axis.size + axis.first, lab.shape[lab.dim - 1]) + 1):
        got = lab.exact.latent_shape(lab.timed(length))[1 + lab.time]
        if got != axis.cells(length):
            return f"{length} media samples: axis.cells says {axis.cells(length)}, the latent has {got}"
    return None


# ---------------------------------------------------------------- values


@law("values stay finite", breaks="training on silence and on blank pictures")
def finite(lab: Lab) -> str | None:
    """Constant media (silence, a blank picture) and noise give finite latents and come back finite."""
    for name, posterior, y in lab.extremes:
        for part, values in {"mean": posterior.mean, "std": posterior.std, "decoded": y}.items():
            if values is not None and not bool(values.isfinite().all()):
                return f"{name}: {part} is not finite"
    return None


@law("std is a standard deviation", breaks="sampling of latents, the whitening")
def spread(lab: Lab) -> str | None:
    """Where the posterior has a std it has the mean's shape and is nowhere negative."""
    for name, posterior, _ in lab.extremes:
        if posterior.std is None:
            return Moot("the posterior has no std")
        if posterior.std.shape != posterior.mean.shape:
            return f"{name}: std {tuple(posterior.std.shape)} for mean {tuple(posterior.mean.shape)}"
        if bool((posterior.std < 0).any()):
            return f"{name}: std of {posterior.std.min().item():.3g}"
    return None


@law("decoded media keep their range", breaks="writing files, half precision")
def span(lab: Lab) -> str | None:
    """Media in [-1, 1] come back below 65504, the largest number of float16; what is far from [-1, 1] is told."""
    most, name = max((y.abs().max().item(), name) for name, _, y in lab.extremes)
    told = f"{name} came back with values up to {most:.2g}"
    if most > HALF:
        return told
    return Note(f"{told}: a trained codec should not") if most > FAR else None


@law("latents can be whitened", breaks="noise levels that mean the same in every channel")
def whitening(lab: Lab) -> str | None:
    """After a fit the latents have mean 0 and variance 1 per channel; constant channels are counted."""
    posterior = lab.codec.encode(lab.media(lab.shape, 4, torch.float32))
    fitted = Whitening(lab.codec.latent_channels)
    fitted.fit([posterior])
    dead = fitted.std <= 1.001e-4  # what a fit takes for zero
    z = fitted.double()(posterior.mean.double()).transpose(0, 1).flatten(1)
    mean, variance = z.mean(1), z.var(1, correction=0)
    if posterior.std is not None:
        variance = variance + posterior.std.double().transpose(0, 1).flatten(1).square().mean(1) / fitted.std.square()
    right = dead | ((mean.abs() < 1e-3) & ((variance - 1).abs() < 1e-2))
    if not bool(right.all()):
        channel = int((~right).nonzero()[0])
        return f"whitened channel {channel} has mean {mean[channel]:.3g} and variance {variance[channel]:.3g}"
    return Note(f"{int(dead.sum())} of {len(dead)} channels are constant: they carry nothing") if bool(dead.any()) else None


# ---------------------------------------------------------------- functions


@law("the same twice", breaks="reproducible samples and caches")
def deterministic(lab: Lab) -> str | None:
    """Equal media give equal latents, equal latents equal media, to the bit."""
    x = lab.media(lab.shape, dtype=torch.float32)
    first, second = lab.codec.encode(x.clone()).mean, lab.codec.encode(x.clone()).mean
    if not torch.equal(first, second):
        return "encoding twice gives two means"
    once, again = lab.codec.decode(first, lab.shape), lab.codec.decode(first, lab.shape)
    return None if torch.equal(once, again) else "decoding twice gives two results"


@law("independent of the batch", breaks="equal results for any batch size")
def batch_independent(lab: Lab) -> str | None:
    """An item alone gives what it gives in a batch."""
    x = lab.media(lab.shape, batch=3)
    together = lab.exact.encode(x.clone()).mean
    if found := lab.near(torch.cat([lab.exact.encode(row[None]).mean for row in x]), together):
        return f"encode: {found}"
    decoded = torch.cat([lab.exact.decode(row[None]) for row in together])
    return (found := lab.near(decoded, lab.exact.decode(together))) and f"decode: {found}"


@law("nothing is kept or changed", breaks="several streams at once, compilation, checkpointing")
def keeps_nothing(lab: Lab) -> str | None:
    """Encoding and decoding leave their input and every tensor and attribute of the codec as they were."""
    codec = lab.fresh()
    before, x = attributes(codec), lab.media(lab.shape, dtype=torch.float32)
    given = x.clone()
    z = codec.encode(x).mean.clone()
    if not torch.equal(x, given):
        return "encode writes into its input"
    given = z.clone()
    codec.decode(z, lab.shape)
    if not torch.equal(z, given):
        return "decode writes into its input"
    if lab.time is not None:
        codec.encode_chunk(x)
        codec.decode_chunk(z)
    after = attributes(codec)
    changed = sorted(name for name in before | after if not same(before.get(name, codec), after.get(name, codec)))
    return f"encoding and decoding change its {', '.join(changed[:4])}" if changed else None
