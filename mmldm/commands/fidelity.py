"""How faithful a codec is, and what its latents are like: the codec part of `mmldm evaluate` and of the demo."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from mmldm import config, store, trained
from mmldm.codec.perceptual import LPIPS
from mmldm.commands.progress import progress
from mmldm.commands.sources import batches, sized_source
from mmldm.data import Source
from mmldm.evaluation import (
    Embedder,
    LatentStatistics,
    Learned,
    Moments,
    by_frame,
    flicker,
    frechet_distance,
    log_spectral_distance,
    mean_absolute_error,
    motion_energy,
    psnr,
    si_sdr,
    ssim,
    stft_distance,
)
from mmldm.interfaces import Codec, Media
from mmldm.media import MediaLogger, Page

__all__ = ["fidelity", "metrics_of"]

Metric = Callable[[Tensor, Tensor], Tensor]


def fidelity(
    stored: store.StoredModel, cfg: DictConfig, page: Page, trust: tuple[str, ...] = (), section: str = "reconstructions"
) -> dict[str, dict[str, Any]]:
    """Measure a codec on cfg.data and show it on the page; the report's sections.

    `reconstruction`: means over the items, by what the media is; `by frame`: lists over the frame positions of clips; `latent`;
    `frechet`: between originals and reconstructions, in cfg.embedder's space, or why there is none (`missing`).
    """
    ((stream, part),) = trained.with_vocoders(trained.load_codecs(stored, trust), cfg.vocoder, trust).items()
    codec = part.codec.to("cuda" if torch.cuda.is_available() else "cpu")
    codec.media = media = trained.sized(codec.media, cfg.data.seconds, cfg.data.size)
    source = sized_source(cfg, {stream: media})
    embedder, missing = fitted(cfg, page, source, stream, media)
    originals, made, halves = Moments(), Moments(), (Moments(), Moments())
    device = codec_device(codec)
    whiten = part.whitening.to(device)
    metrics, latents = metrics_of(media, codec, cfg.lpips), LatentStatistics(codec.axes, whiten)
    values: dict[str, list[Tensor]] = defaultdict(list)
    with torch.no_grad(), progress("reconstructing") as tell:
        for batch in batches(source, {stream: media}, {}, cfg.count, cfg.batch_size):
            x = batch.media[stream].to(device)
            z = codec.encode(x).mean
            y = saved(codec.decode(z, x.shape[1:]).float(), media)
            latents.update(z)
            if not values:
                show(page, section, media, x[:8], y[:8])
            for name, metric in metrics.items():
                values[name].append(metric(y, x).double().cpu())
            if embedder is not None:
                rows = embedder(x)
                originals.update(rows)
                made.update(embedder(y))
                for side, half in enumerate(halves):
                    half.update(rows[(batch.index.to(rows.device) % 2) == side])
            tell(len(torch.cat(values["l1"])), min(cfg.count, len(source)))
    report = summed({name: torch.cat(found) for name, found in values.items()})
    report["latent"] = latents.summary()
    if embedder is not None:
        report["frechet"] = compared(embedder, made, originals, halves)
    elif missing:
        report["frechet"] = {"missing": missing}
    draw(page, report, latents, section)
    return report


def codec_device(codec: Codec) -> torch.device:
    """Where the codec's tensors are."""
    return next(itertools.chain(codec.parameters(), codec.buffers()), torch.empty(0)).device


def saved(y: Tensor, media: Media) -> Tensor:
    """A reconstruction as a file holds it: pictures and sound are cut at ±1, arrays hold anything."""
    return y.clamp(-1, 1) if pictures(media) or sounds(media) else y


def pictures(media: Media) -> bool:
    """Whether the media is a picture or a clip: three channels on a plane."""
    return len(media.shape) - 1 - (media.time_axis is not None) == 2 and media.shape[0] == 3


def sounds(media: Media) -> bool:
    """Whether the media is a waveform that can be heard."""
    return len(media.shape) == 2 and media.time_axis == 0 and bool(media.rate) and media.rate >= 8000


def metrics_of(media: Media, codec: Codec, lpips: Any = None) -> dict[str, Metric]:
    """The metrics (reconstruction, original) -> (B,), or (B, T) by frame, that mean something for a media: by its channels and
    axes, not by its name; `l1` is always there."""
    metrics: dict[str, Metric] = {"l1": mean_absolute_error}
    if pictures(media):
        metrics |= {"psnr": psnr, "ssim": ssim}
        if media.time_axis is not None:
            metrics |= {"psnr": partial(by_frame, psnr), "ssim": partial(by_frame, ssim)}
            metrics |= {"flicker": flicker, "motion_energy": motion_energy}
        if lpips is not None:
            metrics["lpips"] = LPIPS(lpips if isinstance(lpips, str) else list(lpips)).to(codec_device(codec))
    elif sounds(media):
        metrics |= {"si_sdr": si_sdr, "stft_distance": stft_distance, "log_spectral_distance": log_spectral_distance}
        metrics["feature_l1"] = lambda y, x: mean_absolute_error(codec.front(y), codec.front(x))
    return metrics


def summed(values: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Means over items: one number per metric; of (items, T) also the list over frames, the first and the later ones."""
    numbers: dict[str, float] = {}
    frames: dict[str, list[float]] = {}
    for name, found in values.items():
        numbers[name] = float(found.mean())
        if found.ndim == 2 and found.shape[1] > 1:
            frames[name] = found.mean(0).tolist()
            numbers |= {f"{name} (first frame)": frames[name][0], f"{name} (later frames)": float(found[:, 1:].mean())}
    return {"reconstruction": numbers, **({"by frame": frames} if frames else {})}


# ---------------------------------------------------------------- Fréchet distance


def fitted(cfg: DictConfig, page: Page, source: Source, stream: str, media: Media) -> tuple[Embedder | None, str]:
    """cfg.embedder, prepared for the media; None without one, or with the reason why there is nothing it can learn from.

    Raises ValueError where the weights that it was given do not fit the media.
    """
    embedder = config.build(cfg.embedder)
    if embedder is None:
        return None, ""
    captions = [str(source.row(i).get("text") or "") for i in range(min(cfg.count, len(source)))]
    if len(captions) < 2:
        return None, f"wanted at least 2 items, got {len(captions)}"
    loader = batches(source, {stream: media}, {}, cfg.count, cfg.batch_size)
    try:
        embedder.fit(media, (batch.media[stream] for batch in loader), captions)
    except ValueError as error:
        if not isinstance(embedder, Learned) or embedder.given:
            raise
        return None, str(error)
    if isinstance(embedder, Learned):
        page.folder.mkdir(parents=True, exist_ok=True)
        embedder.save(page.folder / "embedder.safetensors")
    return embedder, ""


def compared(embedder: Embedder, made: Moments, originals: Moments, halves: tuple[Moments, Moments]) -> dict[str, Any]:
    """The distance with all that it depends on; that between halves of the originals is its scale."""
    numbers: dict[str, Any] = {"distance": frechet_distance(made, originals)}
    if min(half.n for half in halves) > 1:
        numbers["between halves of the originals"] = frechet_distance(*halves)
    return {**numbers, "items": made.n, "width": len(made.mean), "embedder": embedder.name, "digest": embedder.digest}


# ---------------------------------------------------------------- the page


def show(page: Page, section: str, media: Media, x: Tensor, y: Tensor) -> None:
    """Originals and reconstructions side by side."""
    pairs = [tensor for pair in zip(x, y, strict=True) for tensor in pair]
    names = ["original", "reconstruction"] * len(x)
    MediaLogger(page).media(section, 0, media, torch.stack(pairs).float().cpu(), names)


def draw(page: Page, report: Mapping[str, Mapping[str, Any]], latents: LatentStatistics, section: str) -> None:
    """The report's tables, curves by frame, and the latent's channels and histogram."""
    prefix = section.removesuffix("reconstructions")
    for part, numbers in report.items():
        for name, value in numbers.items() if part == "by frame" else ():
            page.curve(section, f"{name} by frame position", range(len(value)), value)
        if part != "by frame":
            rows = [[name, f"{value:.4g}" if isinstance(value, float) else value] for name, value in numbers.items()]
            page.table(f"{prefix}{part}", rows, ["", part])
    page.table(f"{prefix}latent", latents.table(), ["channel", "mean", "std", "excess kurtosis"], title="channels")
    page.curve(f"{prefix}latent", "density of the whitened latent", *latents.histogram())
    page.write()
