import argparse
import io
import json
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from muse.data.preparation import photographs, sources
from muse.data.preparation.photographs import compose
from muse.data.preparation.sources import read_rcc, stamp_class
from muse.data.preparation.splitting import choose_validation, group, series_name, thumbnail


def arguments(*words):
    parser = argparse.ArgumentParser()
    photographs.add_arguments(parser)
    return parser.parse_args(list(map(str, words)))


def noise(size, rng):
    return Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((size, size), Image.NEAREST)


WORDS = ("ant", "bee", "cow", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay")


@pytest.fixture
def material(tmp_path):
    rng = np.random.default_rng(0)
    for label in ("sea_animals", "tools"):
        folder = tmp_path / "cutouts" / label
        folder.mkdir(parents=True)
        for word in WORDS:
            image = noise(40, rng).convert("RGBA")
            image.putalpha(Image.fromarray(np.pad(np.full((30, 30), 255, np.uint8), 5)))
            image.save(folder / f"{word}.png")
            (folder / f"{word}.txt").write_text(f"A {word} of {label}.\nde.utf8=Etwas.\n")
    (tmp_path / "photos").mkdir()
    for word in WORDS:
        noise(64, rng).save(tmp_path / "photos" / f"{word}.png")
    return tmp_path


def prepare(material, name="out", *extra):
    output = material / name
    index = photographs.prepare(arguments(
        "--output", output, "--cutouts", material / "cutouts", "--backgrounds", material / "photos", "--size", 32,
        "--per-cutout", 3, "--validation-per-cutout", 2, "--workers", 1, *extra))
    return output, index


def samples(shard):
    found = {}
    with tarfile.open(shard) as tar:
        for member in tar:
            key, extension = member.name.split(".", 1)
            found.setdefault(key, {})[extension] = tar.extractfile(member).read()
    return found


def test_two_runs_give_the_same_bytes_whatever_the_workers(material, capsys):
    first, index = prepare(material, "one")
    second, again = prepare(material, "two", "--workers", 2)
    assert index == again == json.loads((first / "dataset.json").read_text())
    for name in ("train-000000.tar", "validation-000000.tar"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    other, changed = prepare(material, "three", "--seed", 1)
    assert changed["splits"] != index["splits"]
    assert "sea animals: 8 + 2" in capsys.readouterr().out


def test_samples_are_complete_and_sides_apart(material):
    output, index = prepare(material)
    assert index["classes"] == ["sea animals", "tools"]
    seen = {}
    for split, count in (("train", 16 * 3), ("validation", 4 * 2)):
        found = samples(output / f"{split}-000000.tar")
        assert len(found) == count == index["splits"][split]["samples"]
        for files in found.values():
            assert set(files) == {"jpg", "txt", "cls", "seg.png", "json"}
            about = json.loads(files["json"])
            label = int(files["cls"])
            assert index["classes"][label] == about["class"]
            assert files["txt"].decode() == about["caption"] == f"A {about['cutout'].split('/')[1]} of " \
                + about["cutout"].split("/")[0] + "."
            mask = np.array(Image.open(io.BytesIO(files["seg.png"])))
            assert mask.shape == (32, 32) and set(np.unique(mask)) == {0, label + 1}
            assert 0.45 ** 2 * 0.8 < (mask > 0).mean() < 0.75 ** 2 * 1.2
            seen.setdefault(split, set()).update([about["cutout"], about["background"]])
    assert not seen["train"] & seen["validation"]


def test_near_duplicates_stay_on_one_side_and_small_classes_are_left_out(material):
    folder = material / "cutouts" / "tools"
    for word in WORDS[:3]:
        Image.open(folder / f"{word}.png").transpose(Image.FLIP_LEFT_RIGHT).save(folder / f"other_{word}.png")
        (folder / f"other_{word}.txt").write_text("A mirrored one.")
    (material / "cutouts" / "rare").mkdir()
    Image.open(folder / "ant.png").save(material / "cutouts" / "rare" / "thing.png")
    (material / "cutouts" / "rare" / "thing.txt").write_text("A rare thing.")
    Image.open(folder / "ant.png").save(folder / "silent.png")
    output, index = prepare(material)
    sides = {split: {json.loads(files["json"])["cutout"] for files in samples(output / f"{split}-000000.tar").values()}
             for split in ("train", "validation")}
    for word in WORDS[:3]:
        assert len({split for split, names in sides.items()
                    for name in names if name in (f"tools/{word}", f"tools/other_{word}")}) == 1
    assert index["left_out"]["cut-outs without a caption"] == {"count": 1, "examples": ["tools/silent"]}
    assert "rare" in str(index["left_out"]) and "rare" not in index["classes"]


def test_a_new_run_leaves_no_stale_shards(material, monkeypatch):
    monkeypatch.setattr(photographs.ShardWriter.__init__, "__defaults__", (10,))
    output, index = prepare(material)
    assert len(list(output.glob("train-*.tar"))) == 5 == len(index["splits"]["train"]["shards"])
    monkeypatch.setattr(photographs.ShardWriter.__init__, "__defaults__", (5000,))
    prepare(material)
    assert sorted(path.name for path in output.iterdir()) == ["dataset.json", "train-000000.tar", "validation-000000.tar"]


@pytest.mark.parametrize("words, message", [
    (("--size", 0), "--size must be at least 1"), (("--cutouts", "/absent"), "/absent is no directory"),
    (("--size", 65), "0 usable background"), (("--size", 300), "no usable cut-out")])
def test_bad_requests(material, words, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        prepare(material, "out", *words)


def test_composite_pixels_come_from_object_inside_and_background_outside_the_mask():
    background = Image.new("RGB", (90, 60), (0, 0, 255))
    cutout = Image.new("RGBA", (40, 20), (255, 0, 0, 255))
    cutout.paste((0, 255, 0, 0), (20, 0, 40, 20))  # green, but transparent: it must not show
    for seed in range(5):
        picture, mask = compose(cutout, background, 32, np.random.default_rng(seed))
        pixels = np.array(picture).astype(int)
        assert pixels[..., 1].max() <= 2
        inner = mask & np.roll(mask, 2, 1) & np.roll(mask, -2, 1)
        assert inner.any() and np.abs(pixels[inner] - (255, 0, 0)).max() <= 4
        assert ((pixels[~mask][:, 2] > 125)).all()


@pytest.mark.parametrize("names", [("house1", "house2"), ("tape", "tape_mirror"), ("cep", "cep-1"), ("grave-a", "grave-b"),
                                   ("TajMahal_background", "tajMahal"), ("flower10", "flower2"), ("bat_left", "bat")])
def test_series_share_a_name(names):
    assert series_name(names[0]) == series_name(names[1])


def test_different_things_keep_their_names():
    assert len({series_name(name) for name in ("apple_red", "apple_green", "lion", "sea", "7", "0_sun", "1_mercury")}) == 7


def test_groups_and_validation_side():
    rng = np.random.default_rng(0)
    pictures = [thumbnail(noise(32, rng)) for _ in range(6)]
    pictures[4] = pictures[1][:, ::-1] + 2
    groups = group(["a", "bb1", "cc", "bb2", "dd", "ee"], pictures)
    assert groups[1] == groups[3] == groups[4] and len(set(groups)) == 4
    chosen = choose_validation(groups, 0.34, rng)
    assert 1 <= len(chosen) <= 2 and not {1, 3, 4} & set(chosen)
    assert choose_validation([0, 0, 0], 0.5, rng) == []


def test_package_without_photographs_is_not_kept(tmp_path, monkeypatch):
    (tmp_path / "usr/share/gcompris-qt/rcc").mkdir(parents=True)
    monkeypatch.setattr(sources, "_unpacked", lambda source, cache: tmp_path)
    for _ in range(2):
        with pytest.raises(ValueError, match="no photograph of places in .*--backgrounds"):
            sources.photographs_folder()


@pytest.mark.parametrize("path, expected", [
    ("animals/mammals/aquatic/orca.png", "sea animals"), ("animals/mammals/apes/chimp.png", "mammals"),
    ("household/tools/saw.png", "tools"), ("food/fruit/cartoon/apple.png", None), ("symbols/math/one.png", None)])
def test_stamp_classes(path, expected):
    assert stamp_class(Path(path)) == expected


def test_qt_resource_files():
    names, offsets = b"", {}
    for name in ("dir", "a.webp", "b.txt"):
        offsets[name] = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    packed = b"\0\0\0\4" + zlib.compress(b"text")
    contents = struct.pack(">I", 3) + b"abc" + struct.pack(">I", len(packed)) + packed
    tree = struct.pack(">IHIIQ", 0, 2, 1, 1, 0) + struct.pack(">IHIIQ", offsets["dir"], 2, 2, 2, 0) \
        + struct.pack(">IHIIQ", offsets["a.webp"], 0, 0, 0, 0) + struct.pack(">IHIIQ", offsets["b.txt"], 1, 0, 7, 0)
    header = struct.pack(">4sIIII", b"qres", 2, 20, 20 + len(tree), 20 + len(tree) + len(contents))
    assert list(read_rcc(header + tree + contents + names)) == [("/dir/a.webp", b"abc"), ("/dir/b.txt", b"text")]
    with pytest.raises(ValueError, match="does not start with qres"):
        list(read_rcc(b"x" * 40))
