import json

import pytest

from muse.data.index import read_index, write_index
from muse.data.sources import expand, find_sources, split_name


@pytest.fixture
def files(tmp_path):
    for name in ("a-000.tar", "a-001.tar", "a-002.tar", "b.tar", "odd[1].tar"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def names(urls):
    return [url.rsplit("/", 1)[-1] for url in urls]


@pytest.mark.parametrize("pattern, expected", [
    ("a-*.tar", ["a-000.tar", "a-001.tar", "a-002.tar"]), ("a-{000..001}.tar", ["a-000.tar", "a-001.tar"]),
    ("{b,a-002}.tar", ["b.tar", "a-002.tar"]), ("odd[1].tar", ["odd[1].tar"]), ("b.tar", ["b.tar"])])
def test_patterns(files, pattern, expected):
    assert names(expand(f"{files}/{pattern}")) == expected


def test_list_keeps_its_order_and_no_repetition(files):
    assert names(expand([f"{files}/b.tar", f"{files}/a-*.tar", f"{files}/b.tar"])) == [
        "b.tar", "a-000.tar", "a-001.tar", "a-002.tar"]


def test_remote_sources_are_passed_on():
    assert expand("https://host/x-{00..01}.tar") == ["https://host/x-00.tar", "https://host/x-01.tar"]
    assert expand("s3://bucket/{1..2}.tar") == ["pipe:aws s3 cp s3://bucket/1.tar -", "pipe:aws s3 cp s3://bucket/2.tar -"]
    assert expand("pipe:gunzip -c /x/{a,b}.tar") == ["pipe:gunzip -c /x/a.tar", "pipe:gunzip -c /x/b.tar"]
    assert find_sources("s3://bucket/{1..2}.tar")[0].names == ("1.tar", "2.tar")


@pytest.mark.parametrize("pattern", ["none-*.tar", "none.tar", "a-{000..005}.tar"])
def test_missing_files_are_named(files, pattern):
    with pytest.raises(FileNotFoundError, match=r"train_shards: no file matches .*(none|a-003)"):
        find_sources(f"{files}/{pattern}", "train_shards")


@pytest.mark.parametrize("shards, message", [
    (None, "is not set"), ([], "is not set"), (7, "expected a path"), ([{"shard": "x"}], "is {shards, weight}"),
    ([{"shards": "x", "weight": 0}], "positive"), ([{"shards": "x", "weight": "much"}], "positive"),
    ([{"shards": "x", "weight": True}], "positive"), ([{"shards": "x", "weight": float("nan")}], "positive")])
def test_malformed_sources_are_refused(shards, message):
    with pytest.raises(ValueError, match=message):
        find_sources(shards)


def test_directory_is_refused_with_a_remedy(files):
    with pytest.raises(ValueError, match=r"is a directory; name its shards, for example .*/train-\*.tar"):
        expand(str(files))


def test_mixture_of_weights_and_bare_paths(files):
    sources = find_sources([{"shards": f"{files}/a-*.tar", "weight": 2}, f"{files}/b.tar"])
    assert [(len(source.urls), source.weight) for source in sources] == [(3, 2.0), (1, 1.0)]


@pytest.mark.parametrize("path, expected", [
    ("0001.jpg", ("0001", "jpg")), ("d/a.b.jpg", ("d/a.b", "jpg")), ("x.seg.png", ("x", "seg.png")),
    ("x.SEG.PNG", ("x", "SEG.PNG")), ("README", (None, None))])
def test_member_names(path, expected):
    assert split_name(path) == expected


def test_index_beside_the_shards(files):
    assert read_index(f"{files}/a-*.tar") is None
    write_index(files, {"classes": ["dörfer"], "splits": {}})
    for shards in (f"{files}/a-*.tar", str(files), [{"shards": f"{files}/b.tar", "weight": 1}], [f"{files}/b.tar"]):
        assert read_index(shards)["classes"] == ["dörfer"]
    assert read_index("pipe:cat x.tar") is None and read_index("https://host/x.tar") is None
    (files / "dataset.json").write_text(json.dumps({})[:-1])
    with pytest.raises(ValueError, match="dataset.json is not valid JSON"):
        read_index(str(files))
