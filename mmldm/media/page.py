"""One page that shows what a run made: players, pictures, curves, tables; opens from disk, needs no network and no script."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from mmldm.interfaces import Media, MediaError, Preview
from mmldm.media.chart import chart
from mmldm.media.container import streams_of
from mmldm.media.files import replacing

__all__ = ["MediaLogger", "Page"]

TEMPLATE = Path(__file__).with_name("page.html")
PIXELS = 160  # pictures up to this width are shown with hard pixels
CELL = {"picture": 150, "wide": 300, "audio": 340, "video": 200}  # least width of a card in pixels


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

    def curve(self, section: str, name: str, steps: Sequence[float], values: Sequence[float]) -> None:
        """A line chart of all values so far."""
        if len(steps) != len(values):
            raise ValueError(f"wanted as many steps as values, got {len(steps)} and {len(values)}")
        self._put(section, f"curve/{name}", {"kind": "curve", "name": name, "steps": [float(s) for s in steps],
                                             "values": [float(v) for v in values]})  # fmt: skip

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
        links = "".join(f'<a href="#{_anchor(name)}">{html.escape(name)}</a>' for name in sections)
        body = "\n".join(_section(name, list(blocks.values())) for name, blocks in sections.items())
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
        folder = self.page.folder / "media" / _anchor(section)
        items = []
        for i, x in enumerate(xs):
            previews = media.preview(x, folder, f"{_anchor(title)}-{step:08d}-{i:03d}")
            if captions and previews:
                previews = [*previews[:-1], Preview(previews[-1].path, previews[-1].kind, str(captions[i]))]
            items.append(previews)
        self.page.previews(section, title, items, step)
        self.page.write()
        for other in self.others:
            if hasattr(other, "media"):
                other.media(section, step, items)
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


# ---------------------------------------------------------------- html


def _anchor(name: str) -> str:
    """A name fit for addresses and files."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "section"


def _section(name: str, blocks: list[dict[str, Any]]) -> str:
    """A section: texts, tables, charts side by side, then previews with the newest step of each title open."""
    parts = [f'<section id="{_anchor(name)}"><h2>{html.escape(name)}</h2>']
    parts += [_text(b["text"]) for b in blocks if b["kind"] == "text"]
    parts += [_table(b) for b in blocks if b["kind"] == "table"]
    charts = [b for b in blocks if b["kind"] == "curve"]
    if charts:
        cards = [f'<div class="card"><p class="name">{html.escape(b["name"])}{_last(b)}</p>'
                 f"{chart(b['steps'], b['values'], b['name'])}</div>" for b in charts]  # fmt: skip
        parts.append('<div class="grid" style="--cell:340px">' + "".join(cards) + "</div>")
    shown = [b for b in blocks if b["kind"] == "previews"]
    for title in dict.fromkeys(b["title"] for b in shown):
        same = sorted(
            (b for b in shown if b["title"] == title), key=lambda b: -1 if b["step"] is None else b["step"], reverse=True
        )
        for rank, block in enumerate(same):
            step = "" if block["step"] is None else f"<small>step {block['step']}</small>"
            head = f"{html.escape(title)}{step}"
            grid = _cards(block["cards"], lazy=rank > 0)
            parts.append(f"<details><summary>{head}</summary>{grid}</details>" if rank else f"<h3>{head}</h3>{grid}")
    return "\n".join([*parts, "</section>"])


def _cards(cards: list[list[dict[str, Any]]], lazy: bool) -> str:
    widths = [CELL[_layout(p)] for card in cards for p in card]
    out = []
    for card in cards:
        words = [html.escape(p["caption"]) for p in card if p["caption"]]
        inner = "".join(_preview(p, lazy) for p in card)
        out.append(f'<div class="card">{inner}' + "".join(f'<p class="words">{w}</p>' for w in words[-1:]) + "</div>")
    return f'<div class="grid" style="--cell:{max(widths, default=150)}px">' + "".join(out) + "</div>"


def _layout(preview: dict[str, Any]) -> str:
    width, height = preview.get("size", (1, 1))
    return "wide" if preview["kind"] == "picture" and width > 2.5 * max(height, 1) else preview["kind"]


def _preview(preview: dict[str, Any], lazy: bool) -> str:
    address = html.escape(preview["address"].replace("%", "%25").replace("#", "%23").replace("?", "%3F"), quote=True)
    words = html.escape(preview["caption"], quote=True)
    if preview["kind"] == "audio":
        return f'<audio controls preload="{"none" if lazy else "metadata"}" src="{address}"></audio>'
    if preview["kind"] == "video":
        how = "loop muted autoplay playsinline controls" if preview["silent"] and not lazy else "loop playsinline controls"
        return f'<video {how} preload="{"none" if lazy else "metadata"}" src="{address}"></video>'
    width, height = preview["size"]
    style = ' class="pixels"' if 0 < width <= PIXELS else ""
    return (
        f'<a href="{address}"><img{style} loading="lazy" width="{width}" height="{height}" alt="{words}" src="{address}"></a>'
    )


def _last(block: dict[str, Any]) -> str:
    return (
        f'<small style="float:right;color:var(--pale);font-weight:400">{block["values"][-1]:.4g}</small>'
        if block["values"]
        else ""
    )


def _table(block: dict[str, Any]) -> str:
    right = [_is_number(c) for c in block["rows"][0]] if block["rows"] else []
    right += [False] * (len(block["header"]) - len(right))
    head = "".join(
        f"<th{' class=number' if to_right else ''}>{html.escape(str(h))}</th>"
        for h, to_right in zip(block["header"], right, strict=False)
    )
    rows = "".join("<tr>" + "".join(_cell(c) for c in row) + "</tr>" for row in block["rows"])
    title = f"<h3>{html.escape(block['title'])}</h3>" if block["title"] else ""
    return f'{title}<div class="scroll"><table>{f"<tr>{head}</tr>" if head else ""}{rows}</table></div>'


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if not _is_number(value):
        return f"<td>{html.escape('' if value is None else str(value))}</td>"
    return f'<td class="number">{value:,}</td>' if isinstance(value, int) else f'<td class="number">{value:.4g}</td>'


def _text(text: str) -> str:
    parts = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        lines = [_inline(line) for line in paragraph.splitlines()]
        if lines and all(line.lstrip().startswith("- ") for line in lines):
            parts.append("<ul>" + "".join(f"<li>{line.lstrip()[2:]}</li>" for line in lines) + "</ul>")
        else:
            parts.append(f"<p>{'<br>'.join(lines)}</p>")
    return "\n".join(parts)


def _inline(line: str) -> str:
    line = html.escape(line)
    line = re.sub(r"`([^`]+)`", r"<code>\1</code>", line)
    line = re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", line)
    return re.sub(r"(?<!\*)\*([^*\s][^*]*)\*(?!\*)", r"<i>\1</i>", line)
