import json

import pytest


def read(output, name):
    return json.loads((output / f"{name}.json").read_text())


def test_linear_probe(tiny, flags, call, tmp_path):
    status, out, err = call("linear_probe", *flags, "--output", tmp_path, "--epochs", 30)
    assert status == 0, err
    result = read(tmp_path, "linear_probe")
    assert (result["train_images"], result["test_images"], result["epochs"]) == (60, 21, 30)
    assert result["linear_probe_encoder_top1"] > 0.6  # colours: visible even to random weights; chance is .33
    assert 0 <= result["linear_probe_top1"] <= 1 and "linear_probe_top1" in out


def test_linear_probe_without_labels(tiny, flags, call):
    status, _, err = call("linear_probe", *flags, "dataset.params.train_shards=null")
    assert status == 1 and "dataset.params.train_shards is not set" in err


def test_zero_shot_by_the_index(tiny, flags, call, tmp_path):
    status, _, err = call("zero_shot", *flags, "--output", tmp_path, "--templates", "simple")
    assert status == 0, err
    result = read(tmp_path, "zero_shot")
    assert result["images"] == 21 and set(result["zero_shot_per_class"]) == {"red", "green", "blue"}
    assert result["majority_share"] == pytest.approx(1 / 3) and result["templates"] == "simple"


def test_zero_shot_names_an_unset_variable(flags, call, monkeypatch):
    monkeypatch.delenv("DATA_DIR", raising=False)
    status, _, err = call("zero_shot", *flags, "dataset.params.eval_shards=${oc.env:DATA_DIR}/validation-*.tar")
    assert status == 1 and "environment variable DATA_DIR, which is not set" in err and len(err.splitlines()) == 1


def test_zero_shot_openai_templates(tiny, flags, call, tmp_path):
    (tmp_path / "names.txt").write_text("red\ngreen\nblue\nyellow\npink\nbrown\n")
    status, _, err = call("zero_shot", *flags, "--output", tmp_path, "--classes", tmp_path / "names.txt")
    assert status == 0, err
    assert read(tmp_path, "zero_shot")["classes"] == 6 and "zero_shot_top5" in read(tmp_path, "zero_shot")


def test_zero_shot_with_too_few_classes(tiny, flags, call, tmp_path):
    (tmp_path / "names.txt").write_text("red\ngreen\n")
    status, _, err = call("zero_shot", *flags, "--classes", tmp_path / "names.txt", "--templates", "simple")
    assert status == 1 and "label 2 is outside the list of 2 classes" in err and len(err.splitlines()) == 1


def test_zero_shot_meta(call):
    status, out, _ = call("zero_shot_meta", "names")
    assert status == 0 and out.splitlines()[0] == "0\ttench" and len(out.splitlines()) == 1000
    status, out, _ = call("zero_shot_meta", "templates")
    assert len(out.splitlines()) == 80 and all("{}" in line for line in out.splitlines())
    status, _, err = call("zero_shot_meta", "nonsense")
    assert status == 1 and "say names or templates" in err
