"""The pretrained ends of the tokenizer: InternViT in front, the DC-AE decoder behind. No remote code, no extra tensors.

Each is built from an explicit architecture (`config:`) or from a directory or hub id (`path:`).
"""
import json

import torch
import torch.nn as nn
import torch.nn.functional as F

from muse.models.names import encoder_from_released
from muse.models.tensor_files import load_strictly, read_tensors, resolve_directory, weight_files

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# keys of InternVL's original vision_config -> keys of transformers' InternVLVisionConfig
ORIGINAL_KEYS = {"qkv_bias": "attention_bias", "qk_normalization": "use_qk_norm", "initializer_factor":
                 "layer_scale_init_value"}
VISION_KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size",
               "image_size", "attention_bias", "use_qk_norm", "norm_type", "hidden_act", "layer_norm_eps",
               "layer_scale_init_value")


class ImageNetNormalise(nn.Module):
    """[0, 1] images -> ImageNet mean and standard deviation; holds no state that a checkpoint would carry."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, images):
        return (images - self.mean) / self.std


def read_config(path):
    """(directory, config.json as a dict) of a model directory or hub id. Raises ValueError without config.json."""
    directory = resolve_directory(path)
    if not (directory / "config.json").is_file():
        raise ValueError(f"{directory} has no config.json; give the directory of a pretrained model")
    return directory, json.loads((directory / "config.json").read_text())


def vision_architecture(config):
    """Arguments of transformers' InternVLVisionConfig from `EncoderConfig`: explicit, or read from its directory."""
    stored = config.config
    if stored is None:
        if config.path is None:
            raise ValueError("model.encoder needs a `path` (directory or hub id) or a `config` (architecture)")
        directory, stored = read_config(config.path)
        if "vision_config" not in stored and "patch_size" not in stored:
            raise ValueError(f"{directory} holds no vision tower (model_type {stored.get('model_type')}); "
                             "model.encoder needs InternVL or InternViT")
    stored = stored.get("vision_config", stored)
    stored = {ORIGINAL_KEYS.get(key, key): value for key, value in stored.items()}
    architecture = {key: stored[key] for key in VISION_KEYS if key in stored}
    if config.num_layers is not None:
        architecture["num_hidden_layers"] = config.num_layers
    return architecture


class VisionEncoder(nn.Module):
    """InternViT: [0, 1] images -> patch tokens B x N x C (CLS dropped, no final norm).

    The position table is resized bicubically to the input's grid; the patch embedding may be resampled to another
    patch size (`resample_kernel`). Weights: transformers' InternVLVisionModel.
    """

    def __init__(self, config):
        super().__init__()
        from transformers import InternVLVisionConfig, InternVLVisionModel
        self.architecture = vision_architecture(config)
        stored_patch = _side(self.architecture["patch_size"])
        self.patch_size = config.patch_size or stored_patch
        if config.patch_size:  # the position table keeps its own grid
            grid = _side(self.architecture["image_size"]) // stored_patch
            self.architecture.update(patch_size=self.patch_size, image_size=grid * self.patch_size)
        self.width = self.architecture["hidden_size"]
        self.normalise = ImageNetNormalise()
        self.vit = InternVLVisionModel(InternVLVisionConfig(
            **self.architecture, use_mean_pooling=True, hidden_dropout_prob=0.0, attn_implementation="sdpa"))

    def forward(self, images):
        return self.vit(self.normalise(images)).last_hidden_state[:, 1:]

    def load(self, path):
        """Load the vision tower's tensors, and only these, from a directory or hub id."""
        tensors = vision_tensors(path, self.architecture["num_hidden_layers"])
        kernel = "embeddings.patch_embeddings.projection.weight"
        if kernel in tensors and tensors[kernel].shape[-1] != self.patch_size:
            tensors[kernel] = resample_kernel(tensors[kernel], self.patch_size)
        load_strictly(self.vit, tensors, path)


def resample_kernel(kernel, size):
    """A patch embedding for `size` x `size` patches that equals the stored one on each patch resized to its own size.

    kernel: D x 3 x p x p. Resizing is linear, so its transpose moves from the picture to the kernel exactly.
    """
    stored = kernel.shape[-1]
    basis = torch.eye(size * size).view(-1, 1, size, size)
    resize = F.interpolate(basis, size=(stored, stored), mode="bilinear", align_corners=False, antialias=True)
    return (kernel.flatten(2) @ resize.flatten(1).t()).unflatten(2, (size, size))


def vision_tensors(path, layers):
    """The vision tower's tensors at `path` under transformers' names, the first `layers` layers.

    Understands InternVL's original layout (`vision_model.`), the `-hf` layout (`vision_tower.`) and a bare InternViT.
    """
    def wanted(name):
        for prefix in ("model.vision_tower.", "vision_tower.", "vision_model."):
            if name.startswith(prefix):
                name = name.removeprefix(prefix)
                break
        parts = name.split(".")
        if parts[0] not in ("embeddings", "encoder"):
            return None
        is_layer = parts[0] == "encoder" and len(parts) > 2 and parts[2].isdigit()
        return None if is_layer and int(parts[2]) >= layers else name

    directory = resolve_directory(path)
    tensors = read_tensors(weight_files(directory), wanted)
    if not tensors:
        raise ValueError(f"{directory} holds no vision tower's weights; model.encoder needs InternVL or InternViT")
    return encoder_from_released(tensors)


DECODER_KEYS = ("in_channels", "latent_channels", "attention_head_dim", "decoder_block_types",
                "decoder_block_out_channels", "decoder_layers_per_block", "decoder_qkv_multiscales",
                "decoder_norm_types", "decoder_act_fns", "upsample_block_type", "decoder_in_shortcut",
                "decoder_conv_act_fn")


def decoder_architecture(config):
    """The decoder's part of diffusers' AutoencoderDC arguments: explicit, or read from its directory."""
    stored = config.config
    if stored is None:
        if config.path is None:
            raise ValueError("model.decoder needs a `path` (directory or hub id) or a `config` (architecture)")
        directory, stored = read_config(config.path)
        if "decoder_block_out_channels" not in stored:
            raise ValueError(f"{directory} holds no DC-AE ({stored.get('_class_name')}); model.decoder needs AutoencoderDC")
    return {"in_channels": 3, "latent_channels": 32, **{key: stored[key] for key in DECODER_KEYS if key in stored}}


def build_decoder(config):
    """DC-AE decoder (diffusers): latent B x C x h x w -> pixels in [-1, 1] by training, upsampled 2^(levels - 1) times.

    Its parameters keep diffusers' names; `architecture` and `latent_channels` are set on it. Weights are random.
    """
    from diffusers.models.autoencoders.autoencoder_dc import Decoder
    architecture = decoder_architecture(config)
    rename = {"decoder_block_types": "block_type", "decoder_norm_types": "norm_type", "decoder_act_fns": "act_fn"}
    arguments = {rename.get(key, key.removeprefix("decoder_")): value for key, value in architecture.items()}
    decoder = Decoder(**arguments)
    decoder.architecture, decoder.latent_channels = architecture, architecture["latent_channels"]
    return decoder


def load_decoder(decoder, path):
    """Load the decoder's tensors, and only these, from an AutoencoderDC directory or hub id."""
    files = weight_files(resolve_directory(path))
    tensors = read_tensors(files, lambda name: name.removeprefix("decoder.") if name.startswith("decoder.") else None)
    load_strictly(decoder, tensors, path)


def _side(value):
    return value[0] if isinstance(value, (list, tuple)) else value
