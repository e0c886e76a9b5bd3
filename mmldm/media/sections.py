"""Sections of a page as HTML: texts, tables, charts, previews."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmldm.media.chart import COLOURS, lines

__all__ = ["anchor", "section"]

PIXELS = 160  # pictures up to this width are shown with hard pixels
CELL = {"picture": 150, "wide": 300, "audio": 340, "video": 200}  # least width of a card in pixels


def anchor(name: str) -> str:
    """A name fit for addresses and files."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "section"


def section(name: str, blocks: list[dict[str, Any]]) -> str:
    """A section: texts, tables, charts side by side, then previews with the newest step of each title open."""
    parts = [f'<section id="{anchor(name)}"><h2>{html.escape(name)}</h2>']
    parts += [_text(b["text"]) for b in blocks if b["kind"] == "text"]
    parts += [_table(b) for b in blocks if b["kind"] == "table"]
    charts = "".join(_chart(name, curves) for name, curves in _grouped([b for b in blocks if b["kind"] == "curve"]).items())
    if charts:
        parts.append(f'<div class="grid" style="--cell:340px">{charts}</div>')
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


def _grouped(curves: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Curves by chart: those of three words (val/level/0.1) share the chart of the first two, all others have their own; the
    losses come first, speed last."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for curve in sorted(curves, key=lambda c: ("loss" not in c["name"], c["name"].startswith("speed/"), c["name"])):
        words = curve["name"].split("/")
        groups.setdefault("/".join(words[:2]) + " by" if len(words) > 2 else curve["name"], []).append(curve)
    return groups


def _chart(name: str, curves: Sequence[Mapping[str, Any]]) -> str:
    """A card with a chart; the last values stand in its head, or in the legend of several lines."""
    drawn = lines([(c["name"], c["steps"], c["values"]) for c in curves], name)
    last = [f"{c['values'][-1]:.4g}" if c["values"] else "" for c in curves]
    if len(curves) == 1:
        return f'<div class="card"><p class="name">{html.escape(curves[0]["name"])}<small>{last[0]}</small></p>{drawn}</div>'
    keys = [
        f'<span><i class="c{i % COLOURS}"></i>{html.escape(c["name"].split("/", 2)[2])} <b>{value}</b></span>'
        for i, (c, value) in enumerate(zip(curves, last, strict=True))
    ]
    title = html.escape(name.removesuffix(" by"))
    return f'<div class="card"><p class="name">{title}</p>{drawn}<p class="legend">{"".join(keys)}</p></div>'


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
