"""A tokenizer, shards and configuration small enough to train several times in a test."""
import io
import tarfile
import zlib

import numpy as np
import torch
from PIL import Image

from muse.config import config_from_dict

SIDE = 56
ENCODER = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, patch_size=14,
               image_size=56, norm_type="layer_norm", hidden_act="gelu", attention_bias=True)
DECODER = dict(latent_channels=8, attention_head_dim=8, decoder_block_types=["ResBlock"] * 3,
               decoder_block_out_channels=[8, 8, 16], decoder_layers_per_block=[1, 1, 1],
               decoder_qkv_multiscales=[[], [], []], decoder_norm_types="rms_norm", decoder_act_fns="silu",
               upsample_block_type="interpolate")
TEACHER = dict(model_type="dinov2", hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=56,
               patch_size=14)


def write_shard(path, count=12, seed=0):
    """A tar of `count` JPEGs with captions."""
    rng = np.random.default_rng(seed)
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            ramp = np.linspace(0, 200, SIDE)[:, None, None] + rng.integers(0, 55, (1, SIDE, 3))
            picture = io.BytesIO()
            Image.fromarray(ramp.astype(np.uint8)).save(picture, "JPEG")
            for suffix, data in (("jpg", picture.getvalue()), ("txt", f"picture {i % 5}".encode())):
                member = tarfile.TarInfo(f"{i:05d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def tiny_config(root, stage=1, **sections):
    """A MuseConfig of `stage` that writes to root/stageN; `sections` are merged in: experiment=dict(...), ..."""
    shard = root / "train-000000.tar"
    if not shard.exists():
        write_shard(shard)
        write_shard(root / "validation-000000.tar", 5, seed=1)
    settings = {
        "experiment": dict(output_dir=str(root / f"stage{stage}"), stage=stage, save_every=100, eval_every=0,
                           generate_every=0, log_every=1),
        "model": dict(muse_layers=2, width=16, heads=2, latent_dim=8, semantic_dim=8, grad_scale=0.5,
                      encoder=dict(config=ENCODER), decoder=dict(config=DECODER), teacher=dict(config=TEACHER),
                      text_encoder=dict(library="transformers", path="replaced by FakeText")),
        "losses": dict(perceptual_weight=0.0, discriminator_weight=0.0, discriminator_channels=32, topology_weight=1.0,
                       itc_weight=0.0 if stage == 1 else 0.2),
        "dataset": dict(params=dict(train_shards=str(shard), num_workers=0, shuffle_buffer=4),
                        preprocessing=dict(resize_shorter_edge=SIDE, crop_size=SIDE, random_crop=False)),
        "optimizer": dict(params=dict(learning_rate=1e-2)),
        "lr_scheduler": dict(params=dict(warmup_steps=0, end_lr=1e-3)),
        "training": dict(max_train_steps=3, per_gpu_batch_size=4, mixed_precision="no"),
        "evaluation": dict(batch_size=4, frechet="none", perceptual="none"),
    }
    return config_from_dict(merged(settings, sections))


def merged(base, changes):
    """base with `changes` laid over it, dict by dict."""
    out = dict(base)
    for key, value in changes.items():
        out[key] = merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


class FakeText(torch.nn.Module):
    """Stands for the text encoder: a fixed unit vector for each caption."""
    dim = 8

    @classmethod
    def from_config(cls, config):
        return cls()

    def encode(self, captions):
        rows = [np.random.RandomState(zlib.crc32(c.encode())).standard_normal(self.dim) for c in captions]
        return torch.nn.functional.normalize(torch.tensor(np.array(rows), dtype=torch.float32), dim=-1)


def weights(trainer):
    """A copy of every weight of the tokenizer, by name."""
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def run_steps(trainer, count):
    """`count` optimizer steps; returns the batches' iterator so that a test can go on with it."""
    batches = iter(trainer.loader)
    for _ in range(count):
        trainer.train_step(batches)
    return batches
