import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def read(output, name):
    return json.loads((output / f"{name}.json").read_text())


def test_reconstruction_metrics_table_and_grid(tiny, flags, call, tmp_path):
    status, out, err = call("evaluate", *flags, "--output", tmp_path, "--grid", 5, "--mean_colour", "--topology")
    assert status == 0, err
    result = read(tmp_path, "reconstruction")
    assert result["images"] == 21 and result["stage"] == 2 and result["checkpoint"].endswith("checkpoint-000002")
    assert 0 < result["psnr"] < 30 and -1 < result["ssim"] < 1 and result["psnr_mean_colour"] > 10
    assert 0 < result["topology_kl"] and 0 < result["topology_kl_uniform"]
    table = (tmp_path / "reconstruction.md").read_text()
    assert table in out and f"{result['psnr']:.4f}" in table
    picture = np.asarray(Image.open(tmp_path / "reconstructions.png"))
    assert picture.shape[0] > 2 * 28 and picture.shape[1] > 5 * 28


def test_batch_size_changes_nothing_and_overrides_work(tiny, flags, call, tmp_path):
    for size in (3, 21):
        call("evaluate", *flags, "--output", tmp_path / str(size), f"evaluation.batch_size={size}", "--grid", 0)
    one, other = (read(tmp_path / str(size), "reconstruction") for size in (3, 21))
    assert one["psnr"] == pytest.approx(other["psnr"], rel=1e-6)
    assert one["ssim"] == pytest.approx(other["ssim"], rel=1e-5)
    assert not (tmp_path / "3/reconstructions.png").exists()
    status, *_ = call("evaluate", *flags, "--output", tmp_path / "few", "evaluation.max_images=4", "--grid", 2)
    assert status == 0 and read(tmp_path / "few", "reconstruction")["images"] == 4


def test_default_output_lies_beside_the_checkpoint(tiny, call):
    status, *_ = call("evaluate", f"config={tiny}/config.yaml", "--checkpoint", tiny / "run/checkpoint-000001",
                      "--grid", 0)
    assert status == 0 and (tiny / "run/evaluation/checkpoint-000001/reconstruction.json").is_file()


def test_released_weights_take_the_architecture_of_the_config(tiny, flags, call, tmp_path):
    call("evaluate", *flags, "--output", tmp_path / "a")
    status, _, err = call("evaluate", "--config", tiny / "config.yaml", "--checkpoint", tiny / "released.bin",
                          "--output", tmp_path / "b")
    assert status == 0, err
    one, other = (read(tmp_path / name, "reconstruction") for name in "ab")
    assert one["psnr"] == pytest.approx(other["psnr"], rel=1e-6)


def test_config_of_another_model(tiny, flags, call):
    status, _, err = call("evaluate", *flags, "model.latent_dim=16")
    assert status == 1 and "model.latent_dim=8" in err and "16" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("override, message", [
    ("dataset.params.eval_shards=null", "dataset.params.eval_shards is not set"),
    ("dataset.params.eval_shards=${MUSE_NOWHERE}/a.tar", "MUSE_NOWHERE, which is not set"),
    ("dataset.params.eval_shards=nowhere/*.tar", "no file matches nowhere/"),
    ("evaluation.perceptual=st_lpips", "needs evaluation.perceptual_weights"),
    ("evaluation.frechet=vgg", "vgg")])
def test_what_cannot_be_evaluated(tiny, flags, call, override, message):
    status, _, err = call("evaluate", *flags, override)
    assert status == 1 and message in err and len(err.splitlines()) == 1


def test_missing_checkpoint_and_device(tiny, flags, call, tmp_path):
    status, _, err = call("evaluate", "--config", tiny / "config.yaml", "--checkpoint", tmp_path / "gone.bin")
    assert status == 1 and "no checkpoint at" in err
    status, _, err = call("evaluate", *flags, "--device", "cuda:77")
    assert status == 1 and "--device cuda:77" in err and len(err.splitlines()) == 1


def launch(tiny, *arguments, **environment):
    command = ["bash", ROOT / "tools/evaluate.sh", tiny / "config.yaml", tiny / "run", *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=240,
                          env={**os.environ, "OMP_NUM_THREADS": "1", **environment})


def test_launcher_fails_with_python(tiny, python, tmp_path):
    done = launch(tiny, tmp_path, "evaluation.batch_size=-3", PYTHON=python)
    assert done.returncode == 1 and "evaluation.batch_size" in done.stderr and "Traceback" not in done.stderr


def test_two_processes_agree_with_one(tiny, flags, call, python, tmp_path):
    done = launch(tiny, tmp_path / "2", "--grid", 4, NUM_PROCESSES="2", PYTHON=python, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    call("evaluate", *flags, "--output", tmp_path / "1", "--grid", 0)
    one, two = (read(tmp_path / processes, "reconstruction") for processes in ("1", "2"))
    assert two["images"] == 21 and two["psnr"] == pytest.approx(one["psnr"], rel=1e-6)
    assert two["ssim"] == pytest.approx(one["ssim"], rel=1e-5)
    assert done.stdout.count("| psnr") == 1
