"""A codec's inference in pieces: chunks along time that carry a state, tiles of a plane, and whole clips as their sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mmldm import windows
from mmldm.records import Axis, Posterior

__all__ = ["Piecewise"]


class Piecewise(nn.Module):
    """Base of a Codec: `encode` and `decode` at a fixed size of pieces, made of its front, body and declared reach.

    A codec whose layers carry a state overrides `encode_step` and `decode_step`; for any other, pieces are windows with
    context, exact where its reach is bounded and cross-faded along `blended` where it is not.
    """

    media: Any
    latent_channels: int
    axes: tuple[Axis, ...]
    lookahead: int | None
    reach: Mapping[str, int] | None
    decode_reach: Mapping[str, int] | None
    chunk: int | None
    tile: int | None

    def field(self, axis: Axis) -> tuple[float, float]:
        """Media samples before and after a cell's own that its encoding may see along an axis; inf where unbounded."""
        far = (self.reach or {}).get(axis.name, math.inf)
        return far, self.lookahead if axis.name == "time" and self.lookahead is not None else far

    @property
    def blended(self) -> tuple[str, ...]:
        """Names of the axes along which pieces are cross-faded, because a cell or a sample may see everything there."""
        cut = [self.axes[a] for a in self._cuts()]
        return tuple(a.name for a in cut if self._encoding(a, None).fade or self._decoding(a, None).fade)

    # -- whole clips

    def encode(self, x: Tensor) -> Posterior:
        """Media (B, C, *S) in [-1, 1] -> Posterior of (B, D, *L), not whitened."""
        if not self._cuts():
            return self.encode_features(self.front(x))
        if self._time is None or self.chunk is None:
            return self.encode_chunk(x, last=True)[0]
        axis = self.axes[self._time]

        def step(piece: Tensor, state: Any, last: bool) -> tuple[Tensor | None, Any]:
            posterior, state = self.encode_chunk(piece, state, last)
            return (None if posterior is None else posterior.joined()), state

        y = windows.chunked(step, x, 2 + self._time, axis, windows.GRID, self.chunk)
        return Posterior.parted(y, self.latent_channels)

    def decode(self, z: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """Latents (B, D, *L), not whitened -> media (B, C, *S), cropped to `shape` = (C, *S) where given."""
        if not self._cuts():
            x = self.unfront(self.decode_features(z), shape)
        elif self._time is None or self.chunk is None:
            x = self.decode_chunk(z, last=True)[0]
        else:
            x = windows.chunked(self.decode_chunk, z, 2 + self._time, windows.GRID, self.axes[self._time], self.chunk)
        return x if shape is None else x[(slice(None), slice(None), *(slice(0, n) for n in shape[1:]))]

    # -- pieces along time

    def encode_chunk(self, x: Tensor, state: Any = None, last: bool = False) -> tuple[Posterior | None, Any]:
        """The next media samples of a clip, any number of them -> the cells that can be told now (None: none), new state.

        Nothing is kept on the codec: `state` is a tree of tensors and numbers, None at the beginning. `last` completes the
        last cell; x may then be empty along time.
        """
        states, kept = state or {}, {}

        def run(part: Tensor, tile: int) -> Tensor | None:
            posterior, kept[tile] = self.encode_step(part, states.get(tile), last)
            return None if posterior is None else posterior.joined()

        y = windows.tiled(run, x, self._planes(self._encoding), self.tile)
        return (None if y is None else Posterior.parted(y, self.latent_channels)), kept

    def decode_chunk(self, z: Tensor, state: Any = None, last: bool = False) -> tuple[Tensor | None, Any]:
        """The next cells of a latent, any number of them -> the media samples that can be told now (None: none), new state."""
        states, kept = state or {}, {}

        def run(part: Tensor, tile: int) -> Tensor | None:
            y, kept[tile] = self.decode_step(part, states.get(tile), last)
            return y

        return windows.tiled(run, z, self._planes(self._decoding), self.tile), kept

    def encode_step(self, x: Tensor, state: Any, last: bool) -> tuple[Posterior | None, Any]:
        """`encode_chunk` of one tile: windows with context; for a codec that carries the state of its layers to override."""
        if self._time is None:
            return self.encode_features(self.front(x)), None

        def run(part: Tensor) -> Tensor:
            return self.encode_features(self.front(part)).joined()

        context = self._encoding(self.axes[self._time], self.chunk)
        y, state = windows.advance(run, x, state, last, 2 + self._time, context)
        return (None if y is None else Posterior.parted(y, self.latent_channels)), state

    def decode_step(self, z: Tensor, state: Any, last: bool) -> tuple[Tensor | None, Any]:
        """`decode_chunk` of one tile: windows with context, or what a codec does instead."""

        def run(part: Tensor) -> Tensor:
            return self.unfront(self.decode_features(part))

        if self._time is None:
            return run(z), None
        return windows.advance(run, z, state, last, 2 + self._time, self._decoding(self.axes[self._time], self.chunk))

    # -- how pieces are cut

    @property
    def _time(self) -> int | None:
        """The axis that runs in time, None where the media has none."""
        names = [axis.name for axis in self.axes]
        return names.index("time") if self.media.time_axis is not None and "time" in names else None

    def _cuts(self) -> dict[int, int]:
        """Cells of a piece along each of the media's axes that are cut."""
        sizes = {a: self.chunk if a == self._time else self.tile for a in range(len(self.media.shape) - 1)}
        return {a: size for a, size in sizes.items() if size is not None}

    def _planes(self, context: Callable[[Axis, int | None], windows.Context]) -> dict[int, windows.Context]:
        return {2 + a: context(self.axes[a], size) for a, size in self._cuts().items() if a != self._time}

    def _encoding(self, axis: Axis, size: int | None) -> windows.Context:
        before, after = (far / axis.size for far in self.field(axis))
        return windows.Context.of(axis, windows.GRID, before, after, size)

    def _decoding(self, axis: Axis, size: int | None) -> windows.Context:
        far = (self.decode_reach or {}).get(axis.name, math.inf)
        return windows.Context.of(windows.GRID, axis, far, far, size)
