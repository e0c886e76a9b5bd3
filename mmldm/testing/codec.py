"""The contract of a codec as runnable assertions; the laws are in codec_laws, codec_pieces and codec_machines."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from mmldm.interfaces import Codec
from mmldm.testing import codec_laws, codec_machines, codec_pieces
from mmldm.testing.lab import Lab, Law, Moot, Note, small_shape

__all__ = ["CODEC_LAWS", "Check", "check_codec", "codec_checks", "report"]

CODEC_LAWS: tuple[Law, ...] = (
    codec_laws.latent_shape,
    codec_laws.round_trip,
    codec_laws.axes,
    codec_laws.finite,
    codec_laws.spread,
    codec_laws.span,
    codec_laws.whitening,
    codec_laws.deterministic,
    codec_laws.batch_independent,
    codec_laws.keeps_nothing,
    codec_pieces.field,
    codec_pieces.decoded_field,
    codec_pieces.beginning,
    codec_pieces.decoded_beginning,
    codec_pieces.first_alone,
    codec_pieces.pieces,
    codec_pieces.state,
    codec_pieces.small_state,
    codec_pieces.tiles,
    codec_machines.autocast,
    codec_machines.half,
    codec_machines.device,
    codec_machines.saved,
    codec_machines.sent,
    codec_machines.trainable,
)


@dataclass(frozen=True)
class Check:
    """The outcome of one law: `name`, whether it `passed`, in which `detail`, what `breaks` downstream without it, and whether
    it `applies` at all (where not, `detail` says why)."""

    name: str
    passed: bool
    detail: str
    breaks: str
    applies: bool = True

    def __str__(self) -> str:
        mark = "FAIL" if not self.passed else "ok  " if self.applies else "—   "
        return f"{mark} {self.name}: {self.detail}{'' if self.passed else f'; without it {self.breaks} breaks'}"


def check_codec(codec: Codec, media_shape: Sequence[int] | None = None, tolerance: float = 1e-10) -> list[Check]:
    """Run the whole contract on copies of `codec` with media of `media_shape` (C, *S; default: a short clip of its media).

    Returns every check; raises AssertionError that lists all that failed. Algebra is checked in float64 to `tolerance`.
    """
    checks = codec_checks(codec, media_shape, tolerance)
    failed = [str(check) for check in checks if not check.passed]
    if failed:
        raise AssertionError(f"{type(codec).__name__}: {len(failed)} of {len(checks)} checks failed\n" + "\n".join(failed))
    return checks


def codec_checks(
    codec: Codec,
    media_shape: Sequence[int] | None = None,
    tolerance: float = 1e-10,
    without: Collection[str] = (),
) -> list[Check]:
    """The outcome of every law (but those named in `without`), failed or not."""
    if strange := [name for name in without if name not in {law.name for law in CODEC_LAWS}]:
        raise ValueError(f"wanted names of laws, got {strange}; choose from {', '.join(law.name for law in CODEC_LAWS)}")
    shape = small_shape(codec) if media_shape is None else tuple(media_shape)
    lab = Lab(codec, shape, tolerance)
    return [_outcome(law, lab) for law in CODEC_LAWS if law.name not in without]


@torch.no_grad()
def _outcome(law: Law, lab: Lab) -> Check:
    try:
        found = law.run(lab)
    except Exception as error:  # a codec from outside may raise anything: that is a finding
        found = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    passed = found is None or isinstance(found, Note | Moot)
    return Check(law.name, passed, found or "holds", law.breaks, not isinstance(found, Moot))


def report(checks: Sequence[Check]) -> str:
    """One line per check, then a count; under a failed one what breaks."""
    width, lines = max((len(check.name) for check in checks), default=0), []
    for check in checks:
        mark = "FAIL" if not check.passed else "ok" if check.applies else "—"
        lines.append(f"{mark:<5} {check.name:<{width}}  {'' if check.detail == 'holds' else check.detail}".rstrip())
        lines += [] if check.passed else [f"{'':<5} {'':<{width}}  without it breaks: {check.breaks}"]
    failed = sum(not check.passed for check in checks)
    moot = sum(not check.applies for check in checks)
    return "\n".join([*lines, f"{len(checks) - failed - moot} laws hold, {failed} fail, {moot} do not apply"])
