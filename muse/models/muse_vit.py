"""MUSE_ViT and its SynergisticBlock: structure in the attention topology, meaning in the values.

Images are float [0, 1], B x 3 x H x W. Reference: MUSE, ICML 2026 (arXiv 2605.05646).
"""
import math
from dataclasses import dataclass, fields, replace
from typing import Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from muse.config.schema import ModelConfig
from muse.models.backbones import VisionEncoder, build_decoder
from muse.models.base_model import BaseModel
from muse.models.layers import (MAX_LOGIT_SCALE, RMSNorm, SwiGLU, attention_map, rotary_table, rotate,
                                scale_gradient, space_to_depth)


@dataclass(frozen=True)
class Switches:
    """What distinguishes the block variants; see `block_switches`."""
    detach_attention: bool      # values are gathered through sg(A)
    semantic_anchor: str        # V_itc joins the values: none | detached | through | shared (one projection for both)
    isolate_trunk: bool         # L_topo and L_ITC stop at the block's own projections
    topology_from: str          # last_block_mean | every_head


def block_switches(variant, stage, overrides=None):
    """The switches of a variant (`released`, `paper`, `coupled`) at a stage; `overrides` (BlockConfig) win where set."""
    tuning = stage == 3
    preset = {
        "released": Switches(True, "none", False, "last_block_mean"),
        "paper": Switches(not tuning, {1: "none", 2: "detached", 3: "through"}[stage], not tuning, "every_head"),
        "coupled": Switches(False, "shared", False, "every_head"),
    }[variant]
    given = {f.name: getattr(overrides, f.name) for f in fields(Switches)} if overrides else {}
    return replace(preset, **{name: value for name, value in given.items() if value is not None})


class SynergisticBlock(nn.Module):
    """One block of the connector (paper, figure 2 right).

    Topology stream: A = softmax(Q K^T / sqrt(d)) from the normalised input X. Values X Wv are gathered through A, by
    default behind a stop-gradient, so that pixels train the values and L_topo trains the routing. Semantic stream:
    V_itc = H Witc reads the block's un-normalised input.
    """

    def __init__(self, width, heads, switches):
        super().__init__()
        self.heads, self.switches = heads, switches
        head_dim = width // heads
        self.norm1 = RMSNorm(width, eps=1e-6)
        self.q_topo = nn.Linear(width, width, bias=False)
        self.k_topo = nn.Linear(width, width, bias=False)
        self.q_norm = RMSNorm(head_dim, eps=1e-6)
        self.k_norm = RMSNorm(head_dim, eps=1e-6)
        self.v_sem = nn.Linear(width, width, bias=False)
        self.v_itc = nn.Linear(width, width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.norm2 = RMSNorm(width, eps=1e-6)
        self.mlp = SwiGLU(width)

    def _split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # B H N d

    def topology(self, x, rotary):
        """Queries and keys of the topology stream: two tensors B x H x N x d."""
        x = x.detach() if self.switches.isolate_trunk else x
        q = rotate(self.q_norm(self._split(self.q_topo(x))), rotary)
        k = rotate(self.k_norm(self._split(self.k_topo(x))), rotary)
        return q, k

    def values(self, h, x, semantic):
        """Values to gather (B N D) and V_itc (B N D, or None where nothing reads it)."""
        anchor, values = self.switches.semantic_anchor, self.v_sem(x)
        if anchor == "shared":
            return values, values
        if anchor == "none" and not semantic:
            return values, None
        v_itc = self.v_itc(h.detach() if self.switches.isolate_trunk else h)
        joined = {"none": 0, "detached": v_itc.detach(), "through": v_itc}[anchor]
        return values + joined, v_itc

    def forward(self, h, rotary, *, with_map=False, semantic=False):
        """h: B N D -> (B N D, V_itc or None, attention map B H N N float32 or None)."""
        x = self.norm1(h)
        q, k = self.topology(x, rotary)
        values, v_itc = self.values(h, x, semantic)
        attention = None
        if with_map:
            attention = attention_map(q, k, 1 / math.sqrt(q.shape[-1]))
            routing = attention.detach() if self.switches.detach_attention else attention
            gathered = routing.type_as(values) @ self._split(values)
        else:
            if self.switches.detach_attention:
                q, k = q.detach(), k.detach()
            gathered = F.scaled_dot_product_attention(q, k, self._split(values))
        h = h + self.proj(gathered.transpose(1, 2).flatten(2))
        return h + self.mlp(self.norm2(h)), v_itc, attention


@dataclass
class MuseOutput:
    """What one forward pass gives; fields nobody asked for are None or empty."""
    latent: torch.Tensor                        # B C h w
    reconstruction: Optional[torch.Tensor]      # B 3 H W, trained towards [0, 1], not clamped
    attention: Tuple[torch.Tensor, ...]         # maps L_topo reads: B M N N each; M = 1 (head mean) or all heads
    semantic: torch.Tensor                      # B semantic_dim, unit length: the image embedding of L_ITC
    pooled: torch.Tensor                        # B D, mean of the last block's V_itc: the feature to probe
    tokens: torch.Tensor                        # B N C, the encoder's patch tokens


@dataclass
class Encoding:
    latent: torch.Tensor                        # B C h w


@dataclass
class Decoding:
    sample: torch.Tensor                        # B 3 H W, trained towards [0, 1], not clamped


class MUSE_ViT(BaseModel):
    """Encoder -> space-to-depth adapter -> Synergistic Blocks -> latent -> pixel decoder, and a semantic head.

    Args: config: sizes and backbones; stage: 1, 2 or 3, selects the variant's switches.
    Raises ValueError where the sizes contradict each other.
    """

    def __init__(self, config: ModelConfig, stage: int = 1):
        super().__init__()
        if config.width % config.heads:
            raise ValueError(f"model.width {config.width} must be divisible by model.heads {config.heads}")
        self.config, self.frozen = config, ()
        width = config.width
        self.encoder = VisionEncoder(config.encoder)
        self.decoder = build_decoder(config.decoder) if config.decoder is not None else None
        merged = 4 * self.encoder.width
        self.adapter_mlp = nn.Sequential(RMSNorm(merged, eps=1e-6), nn.Linear(merged, width, bias=False), nn.GELU())
        switches = block_switches(config.variant, stage, config.block)
        self.muse_blocks = nn.ModuleList(SynergisticBlock(width, config.heads, switches)
                                         for _ in range(config.muse_layers))
        self.to_latent = nn.Linear(width, config.latent_dim)
        if self.decoder is not None and self.decoder.latent_channels != config.latent_dim:
            self.decoder_adapter = nn.Conv2d(config.latent_dim, self.decoder.latent_channels, 1)
        self.semantic_projector = nn.Sequential(nn.Linear(width, width, bias=False), nn.GELU(),
                                                nn.Linear(width, config.semantic_dim, bias=False))
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))
        for part in (self.adapter_mlp, self.muse_blocks, self.to_latent, self.semantic_projector,
                     getattr(self, "decoder_adapter", None)):
            if part is not None:
                part.apply(_initialise)
        self.set_stage(stage)

    def set_stage(self, stage):
        """Switch the blocks and the gradient scale's meaning to `stage` (1, 2 or 3)."""
        self.stage = stage
        self.switches = block_switches(self.config.variant, stage, self.config.block)
        for block in self.muse_blocks:
            block.switches = self.switches

    @property
    def size_divisor(self):
        """Sides of an image must be multiples of this many pixels (encoder patch x 2)."""
        return 2 * self.encoder.patch_size

    def freeze(self, names):
        """Freeze the named parts: no gradients, and evaluation mode that survives `train()`."""
        self.frozen = tuple(names)
        for name in self.frozen:
            part = getattr(self, name)
            part.requires_grad_(False)
        return self.train(self.training)

    def train(self, mode=True):
        super().train(mode)
        for name in self.frozen:
            part = getattr(self, name)
            if isinstance(part, nn.Module):
                part.eval()
        return self

    def encode_tokens(self, images):
        """Images -> the encoder's patch tokens, B N C (no CLS, no final norm)."""
        h, w = images.shape[-2:]
        if h % self.size_divisor or w % self.size_divisor:
            raise ValueError(f"image size {h} x {w}: both sides must be multiples of {self.size_divisor}; "
                             "crop, resize or pad (muse.data.transforms.pad_to_multiple)")
        with torch.set_grad_enabled(torch.is_grad_enabled() and "encoder" not in self.frozen):
            return self.encoder(images)

    def _connect(self, tokens, grid, with_maps):
        """Encoder tokens -> (h: B N D, V_itc of the last block, maps for L_topo, grid)."""
        x, grid = space_to_depth(tokens, grid)
        h = self.adapter_mlp(x).float()  # the residual stream stays float32 under autocast
        rotary = rotary_table(h.shape[1], self.config.width // self.config.heads, h.device)
        maps, v_itc, every = [], None, self.switches.topology_from == "every_head"
        for i, block in enumerate(self.muse_blocks):
            last = i == len(self.muse_blocks) - 1
            h, v_itc, attention = block(h, rotary, with_map=with_maps and (every or last), semantic=last)
            if attention is not None:
                maps.append(attention if every else attention.mean(dim=1, keepdim=True))
        return h, v_itc, tuple(maps), grid

    def forward(self, images, tokens=None, *, attention=False, decode=True):
        """images: B 3 H W; tokens: their encoder tokens where already known (frozen encoder). Returns MuseOutput."""
        size = images.shape[-2:]
        tokens = self.encode_tokens(images) if tokens is None else tokens
        h, v_itc, maps, grid = self._connect(tokens, [side // self.encoder.patch_size for side in size], attention)
        latent = self.to_latent(scale_gradient(h, self.config.grad_scale))
        latent = latent.transpose(1, 2).unflatten(2, grid)  # B C h w
        pooled = v_itc.float().mean(dim=1)
        semantic = F.normalize(self.semantic_projector(pooled).float(), dim=-1)
        reconstruction = self.decode(latent, size).sample if decode else None
        return MuseOutput(latent, reconstruction, maps, semantic, pooled, tokens)

    def encode(self, images):
        """Images B 3 H W -> Encoding with `latent`, B x latent_dim x H/divisor x W/divisor; deterministic."""
        return Encoding(self(images, decode=False).latent)

    def decode(self, latent, size=None):
        """Latent -> Decoding with `sample` of `size` (H, W); None: the latent's grid times `size_divisor`."""
        if self.decoder is None:
            raise ValueError("this model was loaded with encoder_only=True; load it whole to decode")
        size = size or [side * self.size_divisor for side in latent.shape[-2:]]
        if hasattr(self, "decoder_adapter"):
            latent = self.decoder_adapter(latent)
        pixels = self.decoder(latent).float()
        if pixels.shape[-2:] != torch.Size(size):
            pixels = F.interpolate(pixels, size=tuple(size), mode="bilinear", align_corners=False)
        return Decoding((pixels + 1) / 2)

    @torch.no_grad()
    def attention_maps(self, images):
        """Attention maps of all blocks, each B x H x N x N, and their grid (h, w)."""
        kept, self.switches = self.switches, replace(self.switches, topology_from="every_head")
        try:
            grid = [side // self.encoder.patch_size for side in images.shape[-2:]]
            _, _, maps, grid = self._connect(self.encode_tokens(images), grid, True)
        finally:
            self.switches = kept
        return maps, grid

    def clamp_logit_scale(self):
        """Keep exp(logit_scale) at or below 100; call after each optimizer step."""
        self.logit_scale.data.clamp_(max=MAX_LOGIT_SCALE)


def _initialise(module):
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
