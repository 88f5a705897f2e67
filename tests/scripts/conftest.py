"""A tiny random MUSE with labelled shards, as the scripts see them: files."""
import importlib.util
import io
import json
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from muse.config import save_config
from muse.config.schema import (BackboneConfig, DataParams, DatasetConfig, EncoderConfig, EvaluationConfig,
                                ExperimentConfig, ModelConfig, MuseConfig, PreprocessingConfig, TeacherConfig,
                                TextEncoderConfig)

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ["red", "green", "blue"]


def load_script(name):
    """A script as a module, without running its main."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(capsys):
    """Run a script's main through the error boundary: (name, *arguments) -> (status, stdout, stderr)."""
    from muse.utils.cli import run

    def call(name, *arguments):
        script = load_script(name)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run(lambda: script.main([str(argument) for argument in arguments]))
        return (stop.value.code or 0, *capsys.readouterr())

    return call


def tiny_model_config():
    return ModelConfig(
        muse_layers=2, width=32, heads=2, latent_dim=8, semantic_dim=16,
        encoder=EncoderConfig(config={
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
            "patch_size": 7, "image_size": 28, "qkv_bias": True, "qk_normalization": False, "norm_type": "layer_norm",
            "hidden_act": "gelu", "layer_norm_eps": 1e-6}),
        decoder=BackboneConfig(config={
            "in_channels": 3, "latent_channels": 8, "attention_head_dim": 8,
            "decoder_block_types": ["ResBlock"] * 3, "decoder_block_out_channels": [8, 8, 8],
            "decoder_layers_per_block": [1, 1, 1], "decoder_qkv_multiscales": [[], [], []],
            "decoder_norm_types": "rms_norm", "decoder_act_fns": "silu", "upsample_block_type": "interpolate",
            "decoder_in_shortcut": True}),
        teacher=TeacherConfig(config={"model_type": "dinov2", "hidden_size": 32, "num_hidden_layers": 2,
                                      "num_attention_heads": 2, "patch_size": 7, "image_size": 28,
                                      "initializer_range": 1.0}),
        text_encoder=TextEncoderConfig(config={
            "embed_dim": 16,
            "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}}))


def write_shard(path, count, seed, classes=3):
    random = np.random.default_rng(seed)
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            label = i % classes
            pixels = random.integers(0, 120, (28, 28, 3), dtype=np.uint8)
            pixels[..., label % 3] += 120
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "png")
            for name, content in (("png", buffer.getvalue()), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{i:05d}.{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Directory with data/{train,validation}-000000.tar, dataset.json, config.yaml and run/checkpoint-00000{1,2}."""
    from muse.models import MUSE_ViT

    root = tmp_path_factory.mktemp("tiny")
    (root / "data").mkdir()
    write_shard(root / "data/train-000000.tar", 60, seed=0)
    write_shard(root / "data/validation-000000.tar", 21, seed=1)
    (root / "data/dataset.json").write_text(json.dumps({"classes": CLASSES, "splits": {}}))
    config = MuseConfig(
        experiment=ExperimentConfig(stage=2, output_dir=str(root / "run"), init_checkpoint=str(root / "parent")),
        model=tiny_model_config(),
        dataset=DatasetConfig(
            params=DataParams(train_shards=f"{root}/data/train-*.tar", eval_shards=f"{root}/data/validation-*.tar",
                              num_workers=0),
            preprocessing=PreprocessingConfig(resize_shorter_edge=28, crop_size=28)),
        evaluation=EvaluationConfig(batch_size=8, frechet="none", perceptual="none"))
    save_config(config, root / "config.yaml")
    torch.manual_seed(0)
    model = MUSE_ViT(config.model, stage=2)
    for step in (1, 2):
        directory = root / f"run/checkpoint-{step:06d}"
        model.save_pretrained(directory, replace(config))
        (directory / "metadata.json").write_text(json.dumps({"format_version": 1, "stage": 2, "step": step}))
    model.save_released(root / "released.bin")
    return root


@pytest.fixture
def flags(tiny):
    """--config and --checkpoint of the tiny run."""
    return "--config", tiny / "config.yaml", "--checkpoint", tiny / "run"


@pytest.fixture(scope="session")
def python():
    return sys.executable
