"""Frozen text encoders: captions -> unit-length embeddings. OpenCLIP as in the paper, or a sentence encoder."""
import json

import torch
import torch.nn as nn
import torch.nn.functional as F

from muse.models.tensor_files import quiet_loading, resolve_directory


class TextEncoder(nn.Module):
    """`encode(texts)` -> B x `dim`, float32, unit length, without gradient.

    Args: model: token ids and mask -> embeddings; tokenize: list of str -> dict of tensors; dim: embedding width.
    """

    def __init__(self, model, tokenize, dim):
        super().__init__()
        self.model, self.tokenize, self.dim = model, tokenize, dim
        self.requires_grad_(False).eval()

    def train(self, mode=True):
        return super().train(False)

    @torch.no_grad()
    def encode(self, texts):
        device = next(self.model.parameters()).device
        batch = {name: value.to(device) for name, value in self.tokenize(list(texts)).items()}
        return F.normalize(self.model(**batch).float(), dim=-1)

    @classmethod
    def from_config(cls, config):
        """Build from TextEncoderConfig. Raises ValueError on an unknown library or an unreadable directory."""
        if config.path is None and config.config is None:
            raise ValueError("model.text_encoder needs a `path` (directory or hub id) or a `config` (architecture)")
        build = {"open_clip": _open_clip, "transformers": _sentence_encoder}.get(config.library)
        if build is None:
            raise ValueError(f"model.text_encoder.library {config.library} is unknown; use open_clip or transformers")
        return build(cls, config)


class _MeanPooled(nn.Module):
    """A transformer whose sentence embedding is the mean over tokens that are not padding."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, **kwargs):
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state  # B T D
        mask = attention_mask.unsqueeze(-1)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def _sentence_encoder(cls, config):
    from transformers import AutoModel, AutoTokenizer
    quiet_loading()
    if config.path is None:
        raise ValueError("model.text_encoder with library transformers needs a `path`: its tokenizer is stored there")
    directory = resolve_directory(config.path)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModel.from_pretrained(directory)
    length = config.context_length or min(tokenizer.model_max_length, model.config.max_position_embeddings)

    def tokenize(texts):
        return tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")

    return cls(_MeanPooled(model), tokenize, model.config.hidden_size)


def _open_clip(cls, config):
    import open_clip
    if config.config is not None:
        arguments = dict(config.config)
        tower = open_clip.model._build_text_tower(arguments["embed_dim"], arguments["text_cfg"])
        tokenizer, dim = open_clip.SimpleTokenizer(), arguments["embed_dim"]
    else:
        directory = resolve_directory(config.path)
        if not (directory / "open_clip_config.json").is_file():
            raise ValueError(f"{directory} has no open_clip_config.json; give an OpenCLIP model directory")
        name = f"local-dir:{directory}"
        clip = open_clip.create_model(name, force_custom_text=True)
        tower, tokenizer = clip.text, open_clip.get_tokenizer(name)
        dim = json.loads((directory / "open_clip_config.json").read_text())["model_cfg"]["embed_dim"]
    length = config.context_length or getattr(tower, "context_length", 77)
    return cls(tower, lambda texts: {"text": tokenizer(texts, context_length=length)}, dim)
