"""The captions of published data sets become a manifest, with awkward names and texts, and what has no file is listed."""

import importlib.util
import json
from pathlib import Path

import pytest

from mmldm.data.manifest import read_manifest

SCRIPT = Path(__file__).resolve().parent.parent / "tools" / "prepare" / "captions.py"
spec = importlib.util.spec_from_file_location("captions", SCRIPT)
captions = importlib.util.module_from_spec(spec)
spec.loader.exec_module(captions)

PANDA = (
    "videoID,url,timestamp,caption,matching_score\n"
    "-xyz_012345,https://y/w?v=-xyz_012345,\"[['0:00:13.580', '0:00:17.580'], ['0:00:20.000', '0:00:24.000']]\","
    '"[\'A man, who waves.\', ""It\'s a \\""dog\\"".""]","[0.5, 0.25]"\n'
    "whole,https://y/w?v=whole,\"[['0:00:01', '0:00:02']]\",\"['a cat']\",[0.4]\n"
)
COCO = {"images": [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg"}, {"id": 8, "file_name": "gone.jpg"}],
        "annotations": [{"image_id": 9, "id": 1, "caption": " A plate, \"full\"\n"},
                        {"image_id": 8, "id": 2, "caption": "lost"},
                        {"image_id": 9, "id": 3, "caption": "Zwölf Bäume"}]}  # fmt: skip
TABLES = {
    "audiocaps": (
        "audiocap_id,youtube_id,start_time,caption\n"
        '103549,-7fmOlUlwoNg,20,"Water, then ""splashes"""\n103548,6BJ455B1aAs,0,A rocket flies\n1,gone0000000,5,lost\n'
        "2,wwwwwwwwwww,30,a bell\n",
        ["Y-7fmOlUlwoNg.wav", "6BJ455B1aAs_000000.flac", "6BJ455B1aAs.mp4", "sub/wwwwwwwwwww_30000.mp4"],
        [("Y-7fmOlUlwoNg.wav", 'Water, then "splashes"'), ("6BJ455B1aAs_000000.flac", "A rocket flies"),
         ("sub/wwwwwwwwwww_30000.mp4", "a bell")], 1),
    "clotho": (
        "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
        '"Rain, on a [roof] #2.wav",one,"two, three",four,five,six\ngone.wav,a,b,c,d,e\n',
        ["development/Rain, on a [roof] #2.wav"],
        [("development/Rain, on a [roof] #2.wav", text) for text in ("one", "two, three", "four", "five", "six")], 5),
    "musiccaps": (
        "ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,is_balanced_subset,is_audioset_eval\n"
        "-0Gj8-vB1q4,30,40,\"/m/0140xf,/m/02cjck\",\"['low quality', 'ballad']\",\"A ballad.\nTwo lines, \"\"quoted\"\".\","
        "4,False,True\n"
        "-0SdAVK79lg,30,40,/m/0155w,\"['guitar']\",A guitar,0,False,False\nnothere0000,1,2,x,[],lost,0,False,True\n",
        ["-0Gj8-vB1q4.wav", "[-0SdAVK79lg]-[30-40].wav"],
        [("-0Gj8-vB1q4.wav", 'A ballad. Two lines, "quoted".'), ("[-0SdAVK79lg]-[30-40].wav", "A guitar")], 1),
    "vggsound": (
        '---g-f_I2yQ,1,people marching,test\n--0PQM4-hqg,30,"car engine, idling",train\ngone0000000,0,lost,train\n',
        ["---g-f_I2yQ_000001.mp4", "--0PQM4-hqg_000030.wav", "--0PQM4-hqg_000030.mp4"],
        [("---g-f_I2yQ_000001.mp4", "people marching"), ("--0PQM4-hqg_000030.mp4", "car engine, idling")], 1),
    "webvid": (
        "videoid,contentUrl,duration,page_dir,name\n"
        '21179416,https://s/preview.mp4,PT00H00M11S,006001_006050,"Aerial shot, ""winter"" forest"\n'
        "7,https://s/7.mp4,PT00H00M12S,000001_000050,Seven\n8,x,PT1S,000001_000050,\n9,x,PT1S,p,lost\n",
        ["006001_006050/21179416.mp4", "7.mp4", "8.mp4"],
        [("006001_006050/21179416.mp4", 'Aerial shot, "winter" forest'), ("7.mp4", "Seven")], 2),
    "panda": (
        PANDA, ["-xyz_012345_0.mp4", "-xyz_012345_00001.mp4", "whole.mp4"],
        [("-xyz_012345_0.mp4", "A man, who waves."), ("-xyz_012345_00001.mp4", 'It\'s a "dog".')], 1),
    "coco": (
        json.dumps(COCO), ["train2014/COCO_train2014_000000000009.jpg"],
        [("train2014/COCO_train2014_000000000009.jpg", text) for text in ('A plate, "full"', "Zwölf Bäume")], 1),
}  # fmt: skip


def prepared(tmp_path, name, table, files, *options):
    media = tmp_path / "media"
    for file in [*files, "notes.txt"]:
        (media / file).parent.mkdir(parents=True, exist_ok=True)
        (media / file).write_bytes(b"x")
    (tmp_path / "table").write_text("\ufeff" + table if name == "audiocaps" else table, encoding="utf-8")
    status = captions.main([name, str(tmp_path / "table"), str(media), "--out", str(tmp_path / "out/list.jsonl"), *options])
    return status, tmp_path / "out/list.jsonl"


@pytest.mark.parametrize("name", TABLES)
def test_each_format_becomes_a_manifest_that_is_read(tmp_path, capsys, name):
    table, files, expected, missing = TABLES[name]
    status, manifest = prepared(tmp_path, name, table, files)
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    assert status == 0 and [(row["file"], row["text"]) for row in rows] == [(f"../media/{f}", text) for f, text in expected]
    assert len(manifest.with_name("list.missing.txt").read_text().splitlines()) == missing
    assert f"{len(expected)} of {len(expected) + missing} captions have a file" in capsys.readouterr().out
    found = read_manifest(manifest, {Path(f).suffix for f, _ in expected})
    assert sorted((row["file"], row["text"]) for row in found.rows) == sorted(
        (str(tmp_path / "media" / f), text) for f, text in expected
    )
    assert not found.skipped and not found.ignored


def test_labels_scores_and_splits_are_kept(tmp_path):
    table, files, *_ = TABLES["vggsound"]
    manifest = prepared(tmp_path, "vggsound", table, files, "--split", "train")[1]
    (row,) = (json.loads(line) for line in manifest.read_text().splitlines())
    assert row["label"] == row["text"] == "car engine, idling" and row["split"] == "train"
    manifest = prepared(tmp_path, "panda", *TABLES["panda"][:2])[1]
    assert [json.loads(line)["matching_score"] for line in manifest.read_text().splitlines()] == [0.5, 0.25]


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("clotho", "file,caption\na,b\n", "wanted the columns file_name, caption_1"),
        ("vggsound", "a,1,label\n", "line 1: wanted 4 columns"),
        ("audiocaps", 'audiocap_id,youtube_id,start_time,caption\n1,a,0,"open\n', "wanted a well-formed table"),
        ("panda", 'videoID,timestamp,caption\na,"[[1, 2]]","[]"\n', "row 2: wanted lists of one length"),
        ("panda", "videoID,timestamp,caption\na,__import__('os'),[]\n", "row 2: wanted lists"),
        ("coco", '{"images": []}', "wanted images and annotations"),
        ("coco", "[", "wanted images and annotations"),
    ],
)
def test_a_malformed_table_is_one_line(tmp_path, capsys, name, table, message):
    assert prepared(tmp_path, name, table, [])[0] == 1
    said = capsys.readouterr().err
    assert message in said and said.startswith("error: ") and said.count("\n") == 1
    assert not list(tmp_path.rglob("*.part"))


def test_no_file_at_all_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert prepared(tmp_path, "coco", TABLES["coco"][0], [])[0] == 1
    assert "0 of 3 captions have a file" in capsys.readouterr().out
    assert captions.main(["coco", str(tmp_path / "table"), str(tmp_path / "nowhere")]) == 1
    assert captions.main(["coco", str(tmp_path / "nothing"), str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("error: ") == 2
