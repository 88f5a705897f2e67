"""The configurations in configs/ hold the paper's values and build networks of the paper's sizes."""
from pathlib import Path

import pytest

from muse.config import load_config
from muse.config.check import check

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ALL = sorted(CONFIGS.glob("*/stage?.yaml"))
INTERN_VIT = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, patch_size=14,
                  image_size=448, qkv_bias=True, qk_normalization=False, norm_type="layer_norm", hidden_act="gelu",
                  layer_norm_eps=1e-6)
DC_AE = dict(in_channels=3, latent_channels=32, attention_head_dim=32,
             decoder_block_types=["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
             decoder_block_out_channels=[128, 256, 512, 512, 1024, 1024], decoder_layers_per_block=[3] * 6,
             decoder_qkv_multiscales=[[], [], [], [5], [5], [5]], decoder_norm_types="rms_norm",
             decoder_act_fns="silu", upsample_block_type="interpolate", decoder_in_shortcut=True)


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    monkeypatch.setenv("CHECKPOINT_DIR", str(tmp_path / "checkpoints"))
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("NUM_PROCESSES", raising=False)


def test_three_sizes_of_three_stages():
    assert len(ALL) == 9


@pytest.mark.parametrize("path", ALL, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_loads_and_follows_its_parent(path):
    config = load_config(path)
    stage = int(path.stem[-1])
    assert config.experiment.stage == stage
    assert config.experiment.output_dir == f"outputs/{path.parent.name}/{path.stem}"
    parent = None if stage == 1 else f"outputs/{path.parent.name}/stage{stage - 1}"
    assert config.experiment.init_checkpoint == parent
    assert config.model.variant == "released"


@pytest.mark.parametrize("size, steps, warmups", [("1b", 50_000, (2000, 5000, 1000)), ("3b", 75_000, (5000, 5000, 1000))])
def test_values_of_the_paper(size, steps, warmups):
    stages = [load_config(CONFIGS / f"muse_{size}" / f"stage{n}.yaml") for n in (1, 2, 3)]
    columns = [(c.optimizer.params.learning_rate, c.lr_scheduler.params.end_lr, c.lr_scheduler.params.warmup_steps,
                c.optimizer.params.discriminator_learning_rate, c.losses.reconstruction_weight,
                c.losses.perceptual_weight, c.losses.topology_weight, c.losses.itc_weight,
                c.losses.discriminator_weight, c.losses.discriminator_start, c.model.grad_scale) for c in stages]
    assert columns == [
        (4e-4, 1e-5, warmups[0], 4e-4, 1.0, 1.1, 2.0, 0.0, 0.1, 1_000_000, 0.5),
        (2e-4, 1e-5, warmups[1], 2e-4, 1.0, 1.1, 5.0, 0.2, 0.1, 1_000_000, 0.5),
        (5e-5, 1e-6, warmups[2], 1e-4, 1.0, 2.0, 0.2, 0.1, 0.5, 0, 1.0)]
    for c in stages:
        assert (c.training.max_train_steps, c.training.per_gpu_batch_size, c.training.seed) == (steps, 32, 42)
        assert c.experiment.save_every == c.experiment.eval_every == steps // 10
        assert [s["weight"] for s in c.dataset.params.train_shards] == [0.2, 0.6, 0.2]
    assert stages[2].optimizer.params.encoder_learning_rate_factor == 0.5


def test_full_size_model_has_the_papers_parameter_counts():
    overrides = ["model.encoder.path=null", f"model.encoder.config={INTERN_VIT}".replace("'", ""),
                 "model.decoder.path=null", f"model.decoder.config={DC_AE}".replace("'", "")]
    lines = check(CONFIGS / "muse_1b" / "stage2.yaml", overrides).lines
    trained = next(line for line in lines if line.startswith("  trained"))
    frozen = next(line for line in lines if line.startswith("  frozen"))
    assert "decoder 159.2" in trained and "muse_blocks 20.45 M" in trained and "adapter_mlp 2.10 M" in trained
    assert "semantic_projector 0.66 M" in trained and "to_latent 0.02 M" in trained
    assert frozen.startswith("  frozen: 304.0")
    assert "  224 x 224 pixels -> latent 32 x 8 x 8" in lines
    assert "  32 images x 1 accumulated x 8 processes = 256 images a step" in check(
        CONFIGS / "muse_1b" / "stage2.yaml", processes=8).lines
