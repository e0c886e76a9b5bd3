"""A folder is a data set, by the conventions people already have."""

import json
import os

import pytest

from mmldm.data.manifest import read_manifest

SUFFIXES = (".png", ".mp4")


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def texts(manifest, root):
    return {os.path.relpath(row["file"], root): row["text"] for row in manifest.rows}


def test_metadata_csv_with_bom_quotes_commas_numbers_and_further_columns(tmp_path):
    touch(tmp_path, "a.png", "sub/b.PNG", "c.png", "left.png")
    (tmp_path / "metadata.csv").write_text(
        "\ufefffile_name,text,fps,score,code,label,mask_file_name\n"
        'a.png,"red, round and ""loud""",24,0.5,007,1,m/a.png\nsub/b.PNG,zwölf Bäume,25,,x,2,\n\n'
        'c.png,"two\nlines",30,1e-3,1,,\n'
        "gone.png,lost,1,2,3,4,\nclip.wav,sound,1,2,3,4,\n",
        encoding="utf-8",
    )
    manifest = read_manifest(tmp_path, SUFFIXES)
    a, c, b = manifest.rows
    assert a == {"file": str(tmp_path / "a.png"), "text": 'red, round and "loud"', "label": "1", "fps": 24, "score": 0.5,
                 "code": "007", "mask_file_name": str(tmp_path / "m/a.png")}  # fmt: skip
    assert b["text"] == "zwölf Bäume" and b["score"] is None and b["mask_file_name"] is None
    assert c["text"] == "two\nlines" and c["score"] == 1e-3 and isinstance(c["fps"], int) and c["label"] is None
    assert manifest.skipped == [(str(tmp_path / "gone.png"), "no such file (metadata.csv, line 7)")]
    reasons = dict(manifest.ignored)
    assert (
        reasons[str(tmp_path / "left.png")] == "not listed in metadata.csv"
        and "another kind" in reasons[str(tmp_path / "clip.wav")]
    )


def test_metadata_jsonl_in_a_sub_folder_and_the_other_names_of_a_caption(tmp_path):
    touch(tmp_path, "x/a.png", "x/b.png", "x/c.png")
    lines = [{"file_name": "b.png", "caption": "bee", "n": 2}, {"file_name": "a.png", "prompt": "ay", "tags": ["u", "v"]}]
    (tmp_path / "x/metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    manifest = read_manifest(tmp_path, SUFFIXES)
    assert texts(manifest, tmp_path) == {"x/a.png": "ay", "x/b.png": "bee"}
    assert manifest.rows[0]["tags"] == ["u", "v"] and manifest.rows[1]["n"] == 2 and "caption" not in manifest.rows[1]


def test_sidecars_and_folder_names_and_a_mixture_of_all(tmp_path):
    touch(tmp_path, "m/a.png", "s/b.mp4", "s/c.mp4", "golden_retriever/d.png", "train/e.png", "train/Siamese-cat/f.png",
          "g.png", ".hidden/h.png", ".i.png", "m/extra.png")  # fmt: skip
    (tmp_path / "m/metadata.csv").write_text("file_name,text\na.png,from the table\n")
    (tmp_path / "m/extra.txt").write_text("from beside")
    (tmp_path / "s/b.txt").write_bytes("\ufeff  a sidecar, äöü \n".encode())
    (tmp_path / "notes.md").write_text("no media")
    manifest = read_manifest(tmp_path, SUFFIXES)
    assert texts(manifest, tmp_path) == {
        "m/a.png": "from the table", "m/extra.png": "from beside", "s/b.mp4": "a sidecar, äöü", "s/c.mp4": "s",
        "golden_retriever/d.png": "golden retriever",
        "train/e.png": None, "train/Siamese-cat/f.png": "Siamese cat", "g.png": None,
    }  # fmt: skip
    labels = {os.path.basename(row["file"]): row["label"] for row in manifest.rows}
    assert (
        labels["d.png"] == "golden_retriever" and labels["e.png"] is None and labels["b.mp4"] == "s" and labels["a.png"] is None
    )
    assert [row["file"] for row in manifest.rows] == sorted(row["file"] for row in manifest.rows)
    assert read_manifest(tmp_path, SUFFIXES) == manifest


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json"])
@pytest.mark.parametrize("column", ["file", "file_name", "path"])
def test_a_single_manifest_file(tmp_path, kind, column):
    touch(tmp_path, "data/a.png", "b.png")
    records = [{column: "data/a.png", "text": "one", "n": 1}, {column: str(tmp_path / "b.png"), "text": "two", "n": 2}]
    path = tmp_path / f"list.{kind}"
    if kind in ("csv", "tsv"):
        separator = "," if kind == "csv" else "\t"
        path.write_text("\n".join(separator.join(map(str, r)) for r in [records[0].keys(), *(r.values() for r in records)]))
    else:
        path.write_text(json.dumps(records) if kind == "json" else "\n".join(map(json.dumps, records)))
    rows = {os.path.basename(r["file"]): r for r in read_manifest(path, SUFFIXES).rows}
    assert rows["a.png"] == {"file": str(tmp_path / "data/a.png"), "text": "one", "label": None, "n": 1}
    assert rows["b.png"]["text"] == "two" and rows["b.png"]["n"] == 2


def test_links_are_followed_and_loops_end(tmp_path):
    touch(tmp_path, "real/cat/a.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/linked").symlink_to(tmp_path / "real/cat")
    (tmp_path / "set/b.png").symlink_to(tmp_path / "real/cat/a.png")
    (tmp_path / "set/linked/up").symlink_to(tmp_path / "set")
    assert texts(read_manifest(tmp_path / "set", SUFFIXES), tmp_path / "set") == {"b.png": None, "linked/a.png": "linked"}


def test_equal_rows_count_once_and_two_captions_of_a_file_twice(tmp_path):
    touch(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,one\na.png,two\na.png,one\n")
    manifest = read_manifest(tmp_path, SUFFIXES)
    assert [row["text"] for row in manifest.rows] == ["one", "two"]
    assert manifest.ignored == [(str(tmp_path / "a.png"), "the same row twice")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", "file_name,text\na.png,red, round\n", r"line 2: wanted 2 columns \(file_name, text\), got 3"),
        ("metadata.csv", "file_name,text\na.png\n", "line 2: wanted 2 columns"),
        ("metadata.csv", 'file_name,text\na.png,"open\n', "wanted a well-formed table"),
        ("metadata.csv", "name,text\na.png,b\n", "wanted a header with one of file_name"),
        ("metadata.csv", "", "wanted a header"),
        ("metadata.csv", b"file_name,text\na.png,\xff\xfe\n", "wanted UTF-8 text"),
        ("metadata.jsonl", '{"file_name": "a.png"}\n{"file_name": \n', "line 2: wanted one object per line"),
        ("metadata.jsonl", '["a.png"]\n', "line 1: wanted an object"),
        ("metadata.jsonl", '{"text": "a"}\n', "line 1: wanted a path in one of the columns"),
        ("list.json", "3", "wanted a list of objects"),
        ("list.xml", "<a/>", "choose from .csv, .tsv, .jsonl, .json"),
    ],
)
def test_malformed_metadata_is_one_clear_error(tmp_path, name, content, message):
    touch(tmp_path, "a.png")
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_manifest(tmp_path if name.startswith("metadata") else tmp_path / name, SUFFIXES)


def test_nothing_there_is_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        read_manifest(tmp_path / "nowhere", SUFFIXES)
    with pytest.raises(ValueError, match=r"wanted files ending in \.mp4, \.png; got none"):
        read_manifest(tmp_path, SUFFIXES)
    touch(tmp_path, "a.wav", "b.wav", "c.doc")
    with pytest.raises(ValueError, match=r"got 2 \.wav, 1 \.doc"):
        read_manifest(tmp_path, SUFFIXES)
    (tmp_path / "metadata.csv").write_text("file_name,text\ngone.png,x\n")
    with pytest.raises(ValueError, match="gone.png: no such file"):
        read_manifest(tmp_path, SUFFIXES)
