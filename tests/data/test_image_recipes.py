import argparse
import importlib.util
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from muse.data.preparation import captions, imagefolder
from muse.utils.downloads import sha256_of

ROOT = Path(__file__).parents[2]


def run(recipe, *words):
    parser = argparse.ArgumentParser()
    recipe.add_arguments(parser)
    return recipe.prepare(parser.parse_args([*map(str, words), "--workers", "1"]))


def contents(shard):
    with tarfile.open(shard) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    for label in ("red_fox", "owl"):
        (folder / label / "deep").mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (40, 20), (i * 20, 0, 0)).save(folder / label / "deep" / f"{i}.png")
            (folder / label / "deep" / f"{i}.txt").write_text(f" {label} {i}\n")
    (folder / "owl" / "broken.jpg").write_bytes(b"x")
    (folder / "owl" / "notes.md").write_text("x")
    (folder / "loose.png").write_bytes(b"x")
    return folder


def test_imagefolder(pictures, tmp_path, capsys):
    index = run(imagefolder, "--input", pictures, "--output", tmp_path / "out", "--validation-fraction", 0.25,
                "--samples-per-shard", 4)
    assert index["classes"] == ["owl", "red fox"]
    assert index["splits"]["train"]["samples"] + index["splits"]["validation"]["samples"] == 8
    assert {reason: entry["count"] for reason, entry in index["left_out"].items()} == {
        "files outside class folders": 1, "files that are no images": 1, "images that cannot be read": 1}
    originals = {path.read_bytes() for path in pictures.rglob("?.png")}
    total = 0
    for split in index["splits"].values():
        for name, entry in split["shards"].items():
            files = contents(tmp_path / "out" / name)
            keys = {name.split(".")[0] for name in files}
            assert entry == {"samples": len(keys), "sha256": sha256_of(tmp_path / "out" / name)}
            total += len(keys)
            for key in keys:
                about = json.loads(files[key + ".json"])
                assert files[key + ".png"] in originals
                assert index["classes"][int(files[key + ".cls"])] == about["class"]
                assert files[key + ".txt"].decode().split()[0].replace("_", " ") == about["class"]
    assert total == 8 and len(index["splits"]["train"]["shards"]) == 2
    printed = capsys.readouterr().out
    assert "images in 2 shard(s)" in printed and "left out, images that cannot be read: 1 (owl/broken.jpg" in printed


def test_imagefolder_with_its_own_validation_folder_and_size(pictures, tmp_path):
    index = run(imagefolder, "--input", pictures, "--validation", pictures, "--output", tmp_path / "out", "--size", 10)
    assert [index["splits"][split]["samples"] for split in ("train", "validation")] == [8, 8]
    files = contents(tmp_path / "out" / "train-000000.tar")
    assert {Image.open(io.BytesIO(files[name])).size for name in files if name.endswith("jpg")} == {(20, 10)}


@pytest.mark.parametrize("words, message", [
    (("--input", "/absent"), "/absent is no directory"), (("--input", "{empty}"), "has no class folder"),
    (("--input", "{pictures}", "--validation", "{foreign}"), "class bat of .* is not in"),
    (("--input", "{foreign}"), "no image in the class folders"),
    (("--input", "{pictures}", "--validation-fraction", "1"), "below 1"),
    (("--input", "{pictures}", "--validation-fraction", "0.1", "--validation", "x"), "not both")])
def test_imagefolder_refuses(pictures, tmp_path, words, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign" / "bat").mkdir(parents=True)
    words = [word.format(empty=tmp_path / "empty", pictures=pictures, foreign=tmp_path / "foreign") for word in words]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(imagefolder, *words, "--output", tmp_path / "out")


@pytest.mark.parametrize("stop", [False, True])
def test_nothing_of_an_earlier_run_stays(pictures, tmp_path, monkeypatch, stop):
    output = tmp_path / "out"
    run(imagefolder, "--input", pictures, "--output", output, "--validation-fraction", 0.25, "--samples-per-shard", 2)
    (output / "train-000009.tar").touch()  # of a run that was interrupted before its index
    (output / "validation-000001.tar.part").touch()
    (output / "notes.tar").touch()
    if stop:
        monkeypatch.setattr("muse.data.preparation.images.write_split", lambda *_: sys.exit(1))
        with pytest.raises(SystemExit):
            run(imagefolder, "--input", pictures, "--output", output)
    else:
        run(imagefolder, "--input", pictures, "--output", output)
    left = {path.name for path in output.iterdir()}
    assert left == {"notes.tar"} | (set() if stop else {"dataset.json", "train-000000.tar"})


def test_captions_from_a_folder(pictures, tmp_path):
    (pictures / "owl" / "deep" / "0.txt").unlink()
    (pictures / "owl" / "deep" / "1.txt").write_text("  \n")
    index = run(captions, "--input", pictures, "--output", tmp_path / "out")
    files = contents(tmp_path / "out" / "train-000000.tar")
    found = {files[name].decode() for name in files if name.endswith(".txt")}
    assert found == {f"red_fox {i}" for i in range(4)} | {"owl 2", "owl 3"}
    assert index["left_out"]["images without a caption"]["count"] == 4


TABLES = {
    "table.csv": 'file,text\nowl/deep/0.png,"an owl, at night"\nowl/deep/1.png,\nabsent.png,gone\n',
    "table.jsonl": '{"file": "owl/deep/0.png", "text": "an owl, at night"}\n\n{"file": "owl/deep/1.png", "text": null}\n'
                   '{"file": "absent.png", "text": "gone"}\n',
}


@pytest.mark.parametrize("name", TABLES)
def test_captions_from_a_table(pictures, tmp_path, name):
    (pictures / name).write_text(TABLES[name])
    index = run(captions, "--input", pictures / name, "--output", tmp_path / "out", "--path-column", "file",
                "--caption-column", "text")
    files = contents(tmp_path / "out" / "train-000000.tar")
    assert files["00000000.txt"] == b"an owl, at night" and index["splits"]["train"]["samples"] == 1
    assert {reason: entry["count"] for reason, entry in index["left_out"].items()} == {
        "images that are missing": 1, "images without a caption": 1}


@pytest.mark.parametrize("name, text, message", [
    ("a.csv", "path,title\nx.png,y\n", "has no column 'caption'.*path, title.*--caption-column"),
    ("a.jsonl", "{\n", "line 1 is not JSON"), ("a.jsonl", "[]\n", "line 1 is not a JSON object"),
    ("a.txt", "", "expected a folder or a table"), ("a.csv", "path,caption\nx.png,y\n", "1 images that are missing"),
    ("a.csv", "", "it is empty")])
def test_captions_refuses(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        run(captions, "--input", tmp_path / name, "--output", tmp_path / "out")


def test_parquet_says_what_it_needs(pictures, tmp_path):
    if importlib.util.find_spec("pyarrow") is None:
        (pictures / "table.parquet").write_bytes(b"")
        with pytest.raises(ValueError, match="needs pyarrow; install it"):
            run(captions, "--input", pictures / "table.parquet", "--output", tmp_path / "out")
        return
    import pyarrow
    from pyarrow import parquet
    table = pyarrow.table({"path": ["owl/deep/0.png", "owl/deep/2.png"], "caption": ["one", "two"]})
    parquet.write_table(table, pictures / "table.parquet")
    assert run(captions, "--input", pictures / "table.parquet",
               "--output", tmp_path / "out")["splits"]["train"]["samples"] == 2


def test_script_reports_a_mistake_in_one_line(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "scripts" / "prepare_data.py", "captions", "--input", "/absent", "--output",
                           tmp_path], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"})
    assert done.returncode == 1 and done.stderr == "error: --input /absent does not exist\n"
