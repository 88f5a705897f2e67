"""Names of the released checkpoint (a public contract) <-> names inside this model. Values pass through bit for bit.

Only the encoder differs: released checkpoints carry InternVL's original vision-tower names with a fused qkv, this model
holds transformers' InternVLVisionModel.
"""
import re

import torch

ENCODER = "encoder.vit."  # where MUSE_ViT holds the tower
RULES = (  # released (InternVL's own) -> transformers
    ("embeddings.class_embedding", "embeddings.cls_token"),
    ("embeddings.position_embedding", "embeddings.position_embeddings"),
    ("embeddings.patch_embedding.", "embeddings.patch_embeddings.projection."),
    ("encoder.layers.", "encoder.layer."),
    (".attn.proj.", ".attention.projection_layer."),
    (".attn.q_norm.", ".attention.q_norm."),
    (".attn.k_norm.", ".attention.k_norm."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".ls1", ".lambda_1"),
    (".ls2", ".lambda_2"),
)
QKV = ("q_proj", "k_proj", "v_proj")


def encoder_from_released(tensors):
    """Vision-tower tensors under InternVL's names -> transformers' names; names already converted pass unchanged."""
    converted = {}
    for name, value in tensors.items():
        if ".attn.qkv." in name:
            stem, kind = name.split(".attn.qkv.")
            for part, chunk in zip(QKV, value.chunk(3, dim=0)):
                converted[_rename(f"{stem}.attention.{part}.{kind}")] = chunk.contiguous()
        else:
            converted[_rename(name)] = value
    return converted


def encoder_to_released(tensors):
    """The inverse of `encoder_from_released`."""
    converted = {}
    for name, value in tensors.items():
        fused = re.fullmatch(r"(.*)\.attention\.q_proj\.(weight|bias)", name)
        if fused:
            parts = [tensors[name.replace("q_proj", part)] for part in QKV]
            converted[_rename(f"{fused[1]}.attn.qkv.{fused[2]}", back=True)] = torch.cat(parts)
        elif not re.search(r"\.attention\.[kv]_proj\.", name):
            converted[_rename(name, back=True)] = value
    return converted


def _rename(name, back=False):
    for released, ours in RULES:
        old, new = (ours, released) if back else (released, ours)
        if old in name and not (not back and new in name):
            name = name.replace(old, new)
    return name


def from_released(tensors):
    """A released MUSE state dict (optionally with `module.`, teacher and normalisation buffers) -> this model's names."""
    tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    tensors = {name: value for name, value in tensors.items()
               if not name.startswith(("dino_teacher.", "dino_mean", "dino_std"))}
    tower = {name.removeprefix("encoder."): value for name, value in tensors.items() if name.startswith("encoder.")}
    rest = {name: value for name, value in tensors.items() if not name.startswith("encoder.")}
    return {**{ENCODER + name: value for name, value in encoder_from_released(tower).items()}, **rest}


def to_released(tensors):
    """This model's state dict -> released names (without teacher)."""
    tower = {name.removeprefix(ENCODER): value for name, value in tensors.items() if name.startswith(ENCODER)}
    rest = {name: value for name, value in tensors.items() if not name.startswith(ENCODER)}
    return {**rest, **{"encoder." + name: value for name, value in encoder_to_released(tower).items()}}
