"""One page that shows what a run made: players, pictures, curves, tables; opens from disk, needs no network and no script."""

from __future__ import annotations

import html
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from mmldm.interfaces import Media, MediaError, Preview
from mmldm.media.chart import thinned
from mmldm.media.container import streams_of
from mmldm.media.files import replacing
from mmldm.media.sections import anchor
from mmldm.media.sections import section as html_of

__all__ = ["MediaLogger", "Page"]

TEMPLATE = Path(__file__).with_name("page.html")
POINTS = 2000  # of a curve that are kept
STEPS = 40  # of which previews are kept on the page; the files of all stay


class Page:
    """`folder`/index.html, built section by section; what is there is kept in index.json beside it, so that a resumed run
    goes on with its page. The same section and name (and step) replaces what it held."""

    def __init__(self, folder: str | Path, title: str = "mmldm"):
        self.folder = Path(folder)
        self._state: dict[str, Any] = {"title": title, "sections": {}}
        try:
            state = json.loads(self.state_path.read_text(encoding="utf-8"))
            if isinstance(state.get("sections"), dict):
                self._state["sections"] = state["sections"]
        except (OSError, ValueError, AttributeError):
            pass  # a first page, or one that cannot be continued

    @property
    def path(self) -> Path:
        """The page itself."""
        return self.folder / "index.html"

    @property
    def state_path(self) -> Path:
        """What a resumed run continues from."""
        return self.folder / "index.json"

    def previews(self, section: str, title: str, items: Sequence[Sequence[Preview]], step: int | None = None) -> None:
        """Cards, one per sample: its players and pictures, and the captions below; of several steps the last is open."""
        cards = [[self._shown(preview) for preview in previews] for previews in items]
        key = f"previews/{title}" + ("" if step is None else f"/{step}")
        self._put(section, key, {"kind": "previews", "title": title, "step": step, "cards": cards})
        blocks = self._state["sections"][section]
        same = {k: b["step"] for k, b in blocks.items() if k.startswith(f"previews/{title}/") and b["step"] is not None}
        kept = {k for _, k in thinned(sorted((step, k) for k, step in same.items()), STEPS)}
        for k in same.keys() - kept:
            del blocks[k]

    def curve(self, section: str, name: str, steps: Sequence[float], values: Sequence[float]) -> None:
        """A line chart of the values so far, of at most POINTS of them; a name of three words (val/level/0.1) is a line of the
        chart of the first two."""
        if len(steps) != len(values):
            raise ValueError(f"wanted as many steps as values, got {len(steps)} and {len(values)}")
        points = thinned([(float(s), float(v)) for s, v in zip(steps, values, strict=True)], POINTS)
        block = {"kind": "curve", "name": name, "steps": [s for s, _ in points], "values": [v for _, v in points]}
        self._put(section, f"curve/{name}", block)

    def table(self, section: str, rows: Sequence[Sequence[Any]], header: Sequence[str] | None = None, title: str = "") -> None:
        """A table; numbers stand to the right."""
        cells = [[c if isinstance(c, (int, float, str, type(None))) else str(c) for c in row] for row in rows]
        self._put(section, f"table/{title}/{list(header or ())}",
                  {"kind": "table", "title": title, "header": list(header or ()), "rows": cells})  # fmt: skip

    def text(self, section: str, text: str, name: str | None = None) -> None:
        """Paragraphs with **bold**, *emphasis*, `code` and `- ` lists; a `name` makes it replaceable."""
        self._put(section, f"text/{name if name is not None else text}", {"kind": "text", "text": text})

    def write(self) -> Path:
        """Write index.html and its state."""
        sections = self._state["sections"]
        links = "".join(f'<a href="#{anchor(name)}">{html.escape(name)}</a>' for name in sections)
        body = "\n".join(html_of(name, list(blocks.values())) for name, blocks in sections.items())
        template = TEMPLATE.read_text(encoding="utf-8")
        page = template.format(title=html.escape(self._state["title"]), links=links, body=body)
        for path, text in ((self.state_path, json.dumps(self._state)), (self.path, page)):
            with replacing(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        return self.path

    def _put(self, section: str, key: str, block: dict[str, Any]) -> None:
        self._state["sections"].setdefault(section, {})[key] = block

    def _shown(self, preview: Preview) -> dict[str, Any]:
        """One preview as the state keeps it: relative address, how it plays, its size."""
        address = Path(os.path.relpath(preview.path, self.folder)).as_posix()
        shown = {"address": address, "kind": preview.kind, "caption": preview.caption}
        if preview.kind == "picture":
            try:
                with Image.open(preview.path) as picture:
                    shown["size"] = list(picture.size)
            except OSError:
                shown["size"] = [0, 0]
        elif preview.kind == "video":
            try:
                shown["silent"] = "audio" not in streams_of(preview.path)
            except MediaError:
                shown["silent"] = False
        return shown


class MediaLogger:
    """Writes media and numbers of a run to its page, and forwards them to further loggers.

    A further logger has `scalars(step, values)` and `media(section, step, previews)`; either may be missing.
    """

    def __init__(self, page: Page, others: Sequence[Any] = ()):
        self.page, self.others = page, tuple(others)

    def media(
        self, section: str, step: int, media: Media, xs: Tensor, captions: Sequence[str] = (), title: str = "samples"
    ) -> list[list[Preview]]:
        """Previews of a batch (B, C, *S), each with its caption, as files below the page's folder and cards on it."""
        if captions and len(captions) != len(xs):
            raise ValueError(f"wanted one caption per sample, got {len(captions)} for {len(xs)}")
        folder = self.page.folder / "media" / anchor(section)
        items = []
        for i, x in enumerate(xs):
            previews = media.preview(x, folder, f"{anchor(title)}-{step:08d}-{i:03d}")
            if captions and previews:
                previews = [*previews[:-1], Preview(previews[-1].path, previews[-1].kind, str(captions[i]))]
            items.append(previews)
        self.page.previews(section, title, items, step)
        self.page.write()
        for other in self.others:
            if hasattr(other, "media"):
                try:
                    other.media(section, step, items)
                except Exception as error:  # a service that fails does not end the training
                    logging.getLogger(__name__).warning(
                        "%s did not take %s of step %d: %s", type(other).__name__, section, step, error
                    )
        return items

    def scalars(self, step: int, values: Mapping[str, float], section: str = "Curves") -> None:
        """Append one point to each named curve; values of later steps that a resumed run repeats are replaced."""
        blocks = self.page._state["sections"].get(section, {})
        for name, value in values.items():
            old = blocks.get(f"curve/{name}", {"steps": [], "values": []})
            kept = [(s, v) for s, v in zip(old["steps"], old["values"], strict=True) if s < step]
            self.page.curve(section, name, [*(s for s, _ in kept), step], [*(v for _, v in kept), float(value)])
        for other in self.others:
            if hasattr(other, "scalars"):
                other.scalars(step, values)
