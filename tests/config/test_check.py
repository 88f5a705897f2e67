import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from muse.config.__main__ import main
from muse.config.check import check

DC_AE = dict(latent_channels=4, attention_head_dim=8, decoder_block_types=["ResBlock", "EfficientViTBlock"],
             decoder_block_out_channels=[8, 16], decoder_layers_per_block=[1, 1], decoder_qkv_multiscales=[[], [5]],
             decoder_norm_types="rms_norm", decoder_act_fns="silu", upsample_block_type="interpolate",
             decoder_in_shortcut=True)
INTERN_VIT = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, patch_size=4,
                  image_size=16)


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A stage-1 configuration with which nothing is wrong; returns a writer taking changes."""
    monkeypatch.setenv("NUM_PROCESSES", "2")
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train-0.tar", "train-1.tar", "val-0.tar"):
        (data / name).write_bytes(b"")
    (data / "dataset.json").write_text(json.dumps({"splits": {
        "train": {"samples": 90, "shards": {"train-0.tar": {"samples": 50}, "train-1.tar": {"samples": 40}}},
        "val": {"samples": 9, "shards": {"val-0.tar": {"samples": 9}}}}}))
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    (teacher / "config.json").write_text("{}")
    (teacher / "model.safetensors").write_bytes(b"")
    values = {
        "experiment": {"name": "small", "output_dir": str(tmp_path / "run")},
        "model": {"width": 32, "heads": 2, "muse_layers": 2, "latent_dim": 4, "semantic_dim": 16,
                  "encoder": {"config": INTERN_VIT}, "decoder": {"config": DC_AE}, "teacher": {"path": str(teacher)}},
        "losses": {"perceptual_weight": 0.0},
        "dataset": {"params": {"train_shards": f"{data}/train-*.tar", "eval_shards": f"{data}/val-{{0..0}}.tar"},
                    "preprocessing": {"resize_shorter_edge": 16, "crop_size": 16}},
        "training": {"max_train_steps": 90, "per_gpu_batch_size": 5, "gradient_accumulation_steps": 2},
        "lr_scheduler": {"params": {"warmup_steps": 10}},
        "evaluation": {"frechet": "none", "perceptual": "none"}}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_sound_configuration(config):
    report = check(config)
    assert report.problems == []
    text = "\n".join(report.lines)
    assert "small: stage 1, Topology Warmup; variant released" in text
    assert "encoder: random weights, by model.encoder.config" in text
    assert "teacher" in text and "(found)" in text
    assert "  16 x 16 pixels -> latent 4 x 2 x 2" in report.lines
    assert "off    ITC" in text and "2      topology" in text
    assert "train_shards: 2 shards, 90 samples" in text and "eval_shards: 1 shard, 9 samples" in text
    assert "5 images x 2 accumulated x 2 processes = 20 images a step" in text
    assert "90 steps = 1800 images, 20.0 epochs of 90" in text


def test_counts_agree_with_the_model(config):
    from muse.config import load_config
    from muse.models import MUSE_ViT
    model = MUSE_ViT(load_config(config).model)
    trained = sum(p.numel() for name, p in model.named_parameters()
                  if not name.startswith(("encoder.", "semantic_projector", "logit_scale")))
    line = next(line for line in check(config).lines if line.startswith("  trained"))
    assert line.startswith(f"  trained: {trained / 1e6:.2f} M (")


@pytest.mark.parametrize("overrides, essence", [
    (["model.teacher.path=/nowhere/teacher"], "model.teacher.path is /nowhere/teacher, which does not exist"),
    (["model.encoder.config=null"], "model.encoder names no network"),
    (["dataset.preprocessing.crop_size=15"], "crop_size 15 does not divide by 8, the model's stride; use 8"),
    (["dataset.params.train_shards=/nowhere/*.tar"], "dataset.params.train_shards: no file matches /nowhere/*.tar"),
    (["dataset.params.eval_shards=null"], "dataset.params.eval_shards is not set"),
    (["experiment.stage=2"], "experiment.init_checkpoint"),
    (["experiment.stage=2", "experiment.init_checkpoint=/nowhere/run"], "/nowhere/run"),
    (["losses.perceptual_weight=1", "losses.perceptual_loss=st_lpips_alex",
      "losses.perceptual_weights.st_lpips_alex=/nowhere/w"], "/nowhere/w"),
    (["losses.perceptual_weight=1", "losses.perceptual_loss=ssim-1.0"], "perceptual_loss is 'ssim-1.0'"),
    (["evaluation.frechet=efficientnet_lite0", "evaluation.frechet_weights=/nowhere/w"], "/nowhere/w"),
    (["evaluation.perceptual=st_lpips"], "evaluation.perceptual=st_lpips needs evaluation.perceptual_weights"),
    (["losses.itc_weight=0.1", "model.text_encoder.config={embed_dim: 12}"], "freezes the semantic head"),
    (["training.sed=1"], "command line: unknown key 'training.sed'")])
def test_what_would_fail_later_is_listed(config, overrides, essence):
    report = check(config, overrides)
    assert any(essence in problem for problem in report.problems), report.problems


def test_every_problem_is_listed_and_the_rest_still_described(config):
    report = check(config, ["model.teacher.path=/nowhere", "dataset.params.train_shards=/nowhere"])
    assert len(report.problems) == 2
    assert any("trained" in line for line in report.lines) and any("images a step" in line for line in report.lines)


def test_text_encoder_of_another_width(config, tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    (text / "config.json").write_text('{"hidden_size": 24}')
    (text / "model.safetensors").write_bytes(b"")
    report = check(config, ["experiment.stage=2", "losses.itc_weight=0.1",
                            f"model.text_encoder.path={text}", "model.text_encoder.library=transformers"])
    assert ("model.semantic_dim is 16, but the text encoder's embeddings have 24 numbers; "
            "set model.semantic_dim=24") in report.problems


def test_hub_ids_are_not_reached_for(config):
    report = check(config, ["model.teacher.path=facebook/dinov3-vith16plus-pretrain-lvd1689m"])
    assert report.problems == []
    assert any("a hub id is downloaded at the start" in line for line in report.lines)


def test_command_prints_and_exits(config, capsys):
    assert main(["check", str(config), "training.seed=1", "--processes", "4"]) == 0
    assert "x 4 processes = 40 images a step" in capsys.readouterr().out
    assert main(["check", str(config), "training.sed=1"]) == 1
    assert capsys.readouterr().err == ("error: command line: unknown key 'training.sed'; did you mean "
                                       "'training.seed'?\n")
    assert main(["keys"]) == 0
    assert capsys.readouterr().out.startswith("| key | type | default | meaning |")


def test_a_resumable_run_is_named_without_loading_it(config, tmp_path, monkeypatch):
    from muse.config import load_config, save_config
    saved = tmp_path / "run" / "checkpoint-000007"
    (saved / "training_state").mkdir(parents=True)
    save_config(load_config(config), saved / "config.yaml")
    (saved / "metadata.json").write_text('{"format_version": 1, "stage": 1, "step": 7}')
    torch.save({"step": 7}, saved / "training_state" / "state.pt")
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("the training state was loaded"))
    report = check(config)
    assert report.problems == [] and f"  {saved} (continues)" in report.lines
    (saved / "training_state" / "state.pt").write_bytes(b"torn")
    assert [problem for problem in check(config).problems if f"remove {saved} to continue" in problem]


@pytest.mark.parametrize("value", ["two", "0", "-1", "1.5"])
def test_num_processes_must_be_a_number(config, monkeypatch, value):
    monkeypatch.setenv("NUM_PROCESSES", value)
    assert check(config).problems == [f"NUM_PROCESSES is '{value}': set it to a whole number above 0, or unset it"]
    assert check(config, processes=3).problems == []


def test_the_command_has_an_error_boundary(monkeypatch, capsys):
    def unforeseen(*args):
        raise OSError("disk gone")

    monkeypatch.setattr("muse.config.check.check", unforeseen)
    monkeypatch.setattr(sys, "argv", ["muse.config", "check", "any.yaml"])
    monkeypatch.delitem(sys.modules, "muse.config.__main__", raising=False)
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("muse.config", run_name="__main__")
    assert caught.value.code == 1 and capsys.readouterr().err == "error: disk gone\n"


def test_command_as_typed(config):
    done = subprocess.run([sys.executable, "-m", "muse.config", "check", config.name, "model.heads=3"],
                          cwd=config.parent, capture_output=True, text=True,
                          env={"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "PATH": ""})
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: small.yaml: model.width 32 over model.heads 3 is no even width per head" in done.stderr
