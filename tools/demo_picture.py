"""The README's picture from a finished demo: python tools/demo_picture.py runs/demo docs/demo.png"""

import json
import sys
import tempfile
from pathlib import Path

from PIL import Image

from mmldm.media import sheet
from mmldm.pipeline import Pipeline

WIDTH = 1000
ROWS = {"image": (8, 8), "audio": (8, 4), "video": (5, 1)}  # samples and columns


def row(demo: Path, modality: str, folder: Path) -> Image.Image:
    """The samples of one modality as a picture of the common width."""
    media = Pipeline.load(demo / modality / "model").medias()[modality]
    records = [json.loads(p.read_text(encoding="utf-8")) for p in sorted((demo / modality / "samples").glob("*.json"))]
    count, columns = ROWS[modality]
    items = [(media.load(demo / modality / "samples" / r["files"][0]).x, r["prompt"]) for r in records[:count]]
    picture = Image.open(sheet(items, media, folder / f"{modality}.png", columns)).convert("RGB")
    return picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    demo, out = Path(sys.argv[1]), Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        rows = [row(demo, modality, Path(folder)) for modality in ROWS]
    picture = Image.new("RGB", (WIDTH, sum(r.height for r in rows)), "white")
    top = 0
    for r in rows:
        picture.paste(r, (0, top))
        top += r.height
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(out, optimize=True)
