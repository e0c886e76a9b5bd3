"""The page of a run: one file that opens from disk, goes on after a resume and says what it was told, escaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
import torch

from mmldm.interfaces import Preview
from mmldm.media import ArrayMedia, AudioMedia, ImageMedia, MediaLogger, Page, VideoMedia
from mmldm.media.chart import chart, thinned

VOID = {"meta", "img", "br", "line", "circle", "polyline"}


class Tree(HTMLParser):
    """Collects tags and checks that they are nested."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def read(page: Page) -> Tree:
    return Tree(page.write().read_text(encoding="utf-8"))


def test_all_media_are_shown_by_relative_paths_that_exist(tmp_path):
    page = Page(tmp_path / "run", "A <run>")
    logger = MediaLogger(page)
    g = torch.Generator().manual_seed(0)
    media = {"Pictures": ImageMedia(16, 16), "Sound": AudioMedia(8000, 1, 0.2), "Video": VideoMedia(3, 8.0, 16, 16),
             "Signal": ArrayMedia(3, 40, 20.0)}  # fmt: skip
    for section, kind in media.items():
        logger.media(section, 10, kind, torch.rand(2, *kind.shape, generator=g) - 0.5, ["a <b>circle</b> & one", "two"])
    voiced = VideoMedia(3, 8.0, 16, 16).preview(torch.zeros(3, 3, 16, 16), tmp_path / "run" / "media", "both",
                                                torch.zeros(1, 3000), 8000)  # fmt: skip
    page.previews("Both", "with sound", [voiced])
    tree = read(page)
    text = page.path.read_text(encoding="utf-8")
    addresses = [a["src"] for tag in ("img", "audio", "video") for a in tree.all(tag)]
    assert len(addresses) >= 2 + 4 + 4 + 2 + 2
    assert all((tmp_path / "run" / a).is_file() and not a.startswith("/") for a in addresses)
    assert "<script" not in text and "http" not in text and "<b>circle" not in text
    assert "a <b>circle</b> & one" in tree.words and "A <run>" in tree.words
    assert [a.get("class") for a in tree.all("img") if a["width"] == "16"] == ["pixels"] * 2
    silent, spoken = [a for a in tree.all("video") if "muted" in a], [a for a in tree.all("video") if "muted" not in a]
    assert len(silent) == 2 and all("autoplay" in a and "loop" in a for a in silent)
    assert len(spoken) == 1 and "autoplay" not in spoken[0]


def test_a_resumed_run_goes_on_with_its_page(tmp_path):
    page = Page(tmp_path)
    logger = MediaLogger(page)
    for step in (0, 10, 20, 30):
        logger.scalars(step, {"loss": 1.0 / (step + 1)})
    logger.media("Pictures", 20, ImageMedia(8, 8), torch.zeros(1, 3, 8, 8))
    page.text("Overview", "the **first** words")
    page.write()
    page = Page(tmp_path)
    logger = MediaLogger(page)
    for step in (20, 30, 40):
        logger.scalars(step, {"loss": 0.5})
    for step in (20, 40):
        logger.media("Pictures", step, ImageMedia(8, 8), torch.zeros(1, 3, 8, 8))
    tree = read(page)
    text = page.path.read_text(encoding="utf-8")
    assert len(tree.all("circle")) == 5  # 0, 10, then 20, 30, 40 of the resumed run
    assert [w for w in tree.words if w.startswith("step ")] == ["step 40", "step 20"]
    assert "the <b>first</b> words" in text and [a["href"] for a in tree.all("a")][:3] == ["#curves", "#pictures", "#overview"]


def test_a_damaged_state_begins_a_new_page(tmp_path):
    (tmp_path / "index.json").write_text("{ not json")
    page = Page(tmp_path)
    page.text("Overview", "words")
    assert "words" in read(page).words


def test_the_same_name_replaces_and_steps_are_kept(tmp_path):
    page = Page(tmp_path)
    for value in (0.25, 0.75):
        page.table("Numbers", [["colour", value, 1000], ["on", True, None]], ["attribute", "share", "n"])
        page.curve("Numbers", "loss", [1, 2, 3], [value, float("nan"), 0.1])
        page.text("Numbers", f"now {value}", name="state")
    tree = read(page)
    assert len(tree.all("table")) == 1 and len(tree.all("svg")) == 1
    assert "0.75" in tree.words and "1,000" in tree.words and "now 0.75" in tree.words and "now 0.25" not in tree.words
    assert "×" in tree.words  # the lost value is marked, not hidden


def test_a_chart_spans_its_values(tmp_path):
    page = Page(tmp_path)
    page.curve("C", "x", list(range(5000)), [float(i) ** 2 for i in range(5000)])
    points = re.search(r'points="([^"]+)"', page.write().read_text(encoding="utf-8")).group(1).split()
    x, y = zip(*(map(float, p.split(",")) for p in points), strict=True)
    assert 300 < len(points) <= 600 and list(x) == sorted(x) and x[-1] - x[0] > 300 and y[0] - y[-1] > 150
    for steps, values in (([], []), ([1], [2.0]), ([1, 2], [3.0, 3.0]), ([1, 2], [float("inf")] * 2)):
        page.curve("C", "edge", steps, values)
        read(page)


def test_curves_of_three_words_are_lines_of_one_chart_with_a_legend(tmp_path):
    logger = MediaLogger(Page(tmp_path))
    for step in range(1, 50):
        levels = {f"val/level/{level}": level / step for level in (0.1, 0.5, 0.9)}
        logger.scalars(step, {"speed/memory_gib": 1.0, **levels, "val/loss": 3.0 / step**2})
    tree = read(logger.page)
    lines = tree.all("polyline")
    assert len(tree.all("svg")) == 3 and [a["class"] for a in lines] == ["c0", "c0", "c1", "c2", "c0"]
    assert [w for w in tree.words if w in ("val/loss", "val/level", "speed/memory_gib")] == [
        "val/loss", "val/level", "speed/memory_gib",
    ]  # fmt: skip
    assert [w.strip() for w in tree.words if w.strip() in ("0.1", "0.5", "0.9")][-3:] == ["0.1", "0.5", "0.9"]


def test_values_that_span_much_stand_on_a_logarithmic_axis():
    def heights(values):
        points = re.search(r'points="([^"]+)"', chart(range(len(values)), values)).group(1).split()
        return [float(p.split(",")[1]) for p in points]

    y = heights([100.0, 10.0, 1.0, 0.1])
    assert y[1] - y[0] == pytest.approx(y[2] - y[1], abs=0.2) == pytest.approx(y[3] - y[2], abs=0.2)
    y = heights([4.0, 3.0, 2.0, 1.0])
    assert y[1] - y[0] == pytest.approx(y[3] - y[2], abs=0.2)
    assert ">1000<" in chart([0, 1], [1e-3, 1e4]) and "0.05" in chart([0, 1], [0.05, 2.0])
    assert heights([1.0, 0.0, -1000.0])[-1] > 190  # not positive: linear


def test_a_long_run_keeps_a_page_of_bounded_size(tmp_path):
    page = Page(tmp_path)
    logger = MediaLogger(page)
    for step in range(1, 9001, 3):
        logger.scalars(step, {"loss": 1.0 / step})
    kept = page._state["sections"]["Curves"]["curve/loss"]
    assert 1000 <= len(kept["steps"]) <= 2000 and kept["steps"][0] == 1 and kept["steps"][-1] == 8998
    assert thinned([], 3) == [] and 2 <= len(thinned([(s, 0.0) for s in range(50)], 3)) <= 3
    points = []
    for step in range(1, 5000):  # of which each comes by itself
        points = thinned([*points, (step, 0.0)], 100)
    assert 50 <= len(points) <= 100 and sum(step <= 2500 for step, _ in points) > 0.3 * len(points)
    picture = Preview(ImageMedia(4, 4).save(torch.zeros(3, 4, 4), tmp_path / "a.png"), "picture")
    for step in range(100):
        page.previews("P", "samples", [[picture]], step)
    steps = sorted(block["step"] for block in page._state["sections"]["P"].values())
    assert 20 <= len(steps) <= 40 and steps[0] == 0 and steps[-1] == 99


def test_other_loggers_hear_everything(tmp_path):
    class Ear:
        heard: list = []

        def scalars(self, step, values):
            self.heard.append((step, dict(values)))

        def media(self, section, step, previews):
            self.heard.append((section, step, len(previews)))

    logger = MediaLogger(Page(tmp_path), [Ear(), object()])
    logger.scalars(1, {"loss": 2.0})
    logger.media("P", 1, ImageMedia(4, 4), torch.zeros(2, 3, 4, 4))
    assert Ear.heard == [(1, {"loss": 2.0}), ("P", 1, 2)]
    with pytest.raises(ValueError, match="caption"):
        logger.media("P", 1, ImageMedia(4, 4), torch.zeros(2, 3, 4, 4), ["one"])
    with pytest.raises(ValueError, match="steps"):
        logger.page.curve("C", "x", [1], [])


def test_odd_file_names_are_addressed_rightly(tmp_path):
    path = ImageMedia(4, 4).save(torch.zeros(3, 4, 4), tmp_path / "a #1 100%?\"'.png")
    page = Page(tmp_path)
    page.previews("P", "odd", [[Preview(path, "picture", "x")]])
    assert read(page).all("img")[0]["src"] == "a #1 100%?\"'.png".replace("%", "%25").replace("#", "%23").replace("?", "%3F")
