"""Topology teachers: a frozen ViT's attention over patches, and the 4-D resize Psi to the student's grid.

Paper section 3.2: W_Q and W_K are taught by the teacher's map; CLS and register tokens are dropped, rows renormalised.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from muse.models.backbones import ImageNetNormalise
from muse.models.layers import attention_map
from muse.models.tensor_files import quiet_loading, resolve_directory


def resize_map(attention, grid, target):
    """Psi: B x Ns x Ns over `grid` -> B x N x N over `target` (each (h, w)); rows sum to 1.

    Bilinear (align_corners False) over the key grid, then over the query grid; renormalised with eps 1e-6.
    """
    (h, w), (h2, w2), b = grid, target, attention.shape[0]
    if (h, w) != (h2, w2):
        keys = attention.reshape(b, h * w, h, w)
        keys = F.interpolate(keys, size=(h2, w2), mode="bilinear", align_corners=False)  # B hw h2 w2
        queries = keys.flatten(2).transpose(1, 2).reshape(b, h2 * w2, h, w)
        queries = F.interpolate(queries, size=(h2, w2), mode="bilinear", align_corners=False)
        attention = queries.flatten(2).transpose(1, 2)  # B N N
    return attention / (attention.sum(dim=-1, keepdim=True) + 1e-6)


class _Done(Exception):
    """Raised inside a teacher once its last needed map is known: the rest of the network is never run."""


class TopologyTeacher(nn.Module):
    """Frozen teacher: `teacher(images)` -> (map B x Ns x Ns, (h, w)), averaged over heads and over `layers`.

    Args: model: a vision transformer; attentions: its attention modules in order; layers: which maps are averaged;
    image_size: shorter edge given to the teacher, None for the images' own size. Images are [0, 1].
    """

    def __init__(self, model, attentions, patch_size, *, layers=None, image_size=None):
        super().__init__()
        self.layers = sorted(layers) if layers else [len(attentions) - 1]
        if not all(0 <= layer < len(attentions) for layer in self.layers):
            raise ValueError(f"model.teacher.layers {self.layers} names a layer outside 0..{len(attentions) - 1}")
        self.model, self.patch_size, self.image_size = model, patch_size, image_size
        self.normalise = ImageNetNormalise()
        self._maps = []
        self.requires_grad_(False).eval()

    def train(self, mode=True):
        return super().train(False)  # a teacher never trains: no drop path, no random position rescale

    def record(self, attention):
        """Take one layer's attention, B x H x T x T; stop the forward pass after the last needed one."""
        self._maps.append(attention.float().mean(dim=1))
        if len(self._maps) == len(self.layers):
            raise _Done

    def fit(self, images):
        """Resize images so that both sides are multiples of the teacher's patch."""
        scale = self.image_size / min(images.shape[-2:]) if self.image_size else 1
        size = [max(1, round(side * scale / self.patch_size)) * self.patch_size for side in images.shape[-2:]]
        if size != list(images.shape[-2:]):
            images = F.interpolate(images, size=size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
        return images

    @torch.no_grad()
    def forward(self, images):
        images = self.fit(images)
        h, w = (side // self.patch_size for side in images.shape[-2:])
        self._maps = []
        try:
            self.model(self.normalise(images))
        except _Done:
            pass  # every map asked for is there
        attention, self._maps = torch.stack(self._maps).mean(dim=0)[:, -h * w:, -h * w:], []
        return attention / attention.sum(dim=-1, keepdim=True), (h, w)

    @classmethod
    def from_config(cls, config):
        """Build from TeacherConfig: transformers DINOv2/DINOv3/ViT directories or hub ids, or timm ViTs."""
        if config.path is None and config.config is None:
            raise ValueError("model.teacher needs a `path` (directory or hub id) or a `config` (architecture)")
        build = {"transformers": _transformers_teacher, "timm": _timm_teacher}.get(config.library)
        if build is None:
            raise ValueError(f"model.teacher.library {config.library} is unknown; use transformers or timm")
        return build(cls, config)


def _recording_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Attention for transformers' AttentionInterface: the layers wanted give their map, the others run as sdpa."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    record = getattr(module, "record_topology", None)
    if record is not None:
        record(attention_map(query, key, scaling or 1 / math.sqrt(query.shape[-1])))
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


def _transformers_teacher(cls, config):
    from transformers import AttentionInterface, AutoConfig, AutoModel
    quiet_loading()
    AttentionInterface.register("muse_topology", _recording_attention)
    if config.config is not None:
        arguments = dict(config.config)
        if "model_type" not in arguments:
            raise ValueError("model.teacher.config needs `model_type` (for example dinov2 or dinov3_vit)")
        architecture = AutoConfig.for_model(arguments.pop("model_type"), **arguments)
        model = AutoModel.from_config(architecture, attn_implementation="muse_topology")
    else:
        model = AutoModel.from_pretrained(resolve_directory(config.path), attn_implementation="muse_topology",
                                          use_safetensors=None, trust_remote_code=False)
    attentions = [module for module in model.modules() if hasattr(module, "q_proj") and hasattr(module, "k_proj")]
    if not attentions:
        raise ValueError(f"no attention layers found in a {type(model).__name__}; use a ViT, DINOv2 or DINOv3 and "
                         "transformers 5 or newer")
    teacher = cls(model, attentions, _patch_size(model.config), layers=config.layers, image_size=config.image_size)
    for layer in teacher.layers:
        attentions[layer].record_topology = teacher.record
    attentions[teacher.layers[-1]].v_proj = nn.Identity()  # only Q and K are computed there
    return teacher


def _timm_teacher(cls, config):
    import timm
    if config.config is not None:
        arguments = dict(config.config)
        model = timm.create_model(arguments.pop("architecture"), pretrained=False, num_classes=0, **arguments)
    else:
        name = config.path if "/" not in str(config.path) else f"local-dir:{resolve_directory(config.path)}"
        model = timm.create_model(name, pretrained=True, num_classes=0, dynamic_img_size=True)
    attentions = [block.attn for block in model.blocks]
    teacher = cls(model, attentions, model.patch_embed.patch_size[0], layers=config.layers,
                  image_size=config.image_size)
    for layer in teacher.layers:
        attentions[layer].fused_attn = False  # the map exists only in the unfused path
        attentions[layer].attn_drop.register_forward_hook(lambda module, inputs, output: teacher.record(inputs[0]))
    return teacher


def _patch_size(config):
    size = config.patch_size
    return size[0] if isinstance(size, (list, tuple)) else size
