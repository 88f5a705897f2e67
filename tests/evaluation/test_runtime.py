import json

import pytest
import torch

from muse.evaluation.runtime import find_checkpoint, markdown_table, progress, write_results


def checkpoint(directory, complete=True):
    directory.mkdir(parents=True)
    (directory / "model.safetensors").touch()
    (directory / "config.yaml").touch()
    if complete:
        (directory / "metadata.json").touch()
    return directory


def test_a_path_means_its_newest_complete_checkpoint(tmp_path):
    for step in (500, 1000, 9000):
        checkpoint(tmp_path / f"run/checkpoint-{step:06d}")
    checkpoint(tmp_path / "run/checkpoint-010000", complete=False)
    newest = tmp_path / "run/checkpoint-009000"
    assert find_checkpoint(tmp_path / "run") == newest
    assert find_checkpoint(newest) == newest
    assert find_checkpoint(newest / "model.safetensors") == newest
    (tmp_path / "released.bin").touch()
    assert find_checkpoint(tmp_path / "released.bin") == tmp_path / "released.bin"
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        find_checkpoint(tmp_path / "absent")


def test_progress_passes_every_batch_and_tells_the_count(capsys):
    batches = [{"image": torch.zeros(3, 1)}, {"image": torch.zeros(2, 1)}]
    assert list(progress(batches, "eval images", every=0)) == batches
    assert capsys.readouterr().err == "eval images: 3\neval images: 5\n"
    assert len(list(progress(batches, "eval images"))) == 2 and capsys.readouterr().err == ""


def test_results_are_json_and_a_table(tmp_path, capsys):
    results = {"psnr": 17.20461, "images": 9, "per_class": {"cat": 0.5}, "stage": 1}
    write_results(results, tmp_path / "new", "zero_shot")
    assert json.loads((tmp_path / "new/zero_shot.json").read_text()) == results
    table = (tmp_path / "new/zero_shot.md").read_text()
    assert table == markdown_table(results) and table in capsys.readouterr().out
    lines = table.splitlines()
    assert lines[2] == "| psnr   | 17.2046 |" and len({len(line) for line in lines}) == 1 and len(lines) == 5
