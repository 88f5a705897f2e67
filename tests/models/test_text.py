"""Text encoders from directories and explicit architectures."""
import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, BertTokenizerFast

from muse.config.schema import TextEncoderConfig
from muse.models.text import TextEncoder

TEXT = dict(context_length=16, vocab_size=49408, width=16, heads=2, layers=1)


@pytest.fixture
def sentence_directory(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "fox"]))
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    BertModel(BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
                         max_position_embeddings=12)).save_pretrained(tmp_path)
    return tmp_path


def test_sentence_encoder_ignores_padding_and_has_unit_length(sentence_directory):
    encoder = TextEncoder.from_config(TextEncoderConfig(path=str(sentence_directory), library="transformers"))
    alone, together = encoder.encode(["a fox"]), encoder.encode(["a fox", "a red red red fox a red"])
    assert encoder.dim == 8 and torch.allclose(alone[0], together[0], atol=1e-5)
    assert torch.allclose(together.norm(dim=-1), torch.ones(2), atol=1e-5) and not together.requires_grad
    assert encoder.encode(["fox " * 100]).shape == (1, 8)  # longer than the position table: truncated


def test_open_clip_directory_equals_the_librarys_own_embedding(tmp_path):
    torch.manual_seed(0)
    config = {"embed_dim": 8, "vision_cfg": dict(image_size=32, layers=1, width=16, patch_size=16, head_width=8), "text_cfg": TEXT}
    clip = open_clip.model.CLIP(**{**config, "vision_cfg": open_clip.CLIPVisionCfg(**config["vision_cfg"]),
                                   "text_cfg": open_clip.CLIPTextCfg(**TEXT)}).eval()
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    save_file({name: value.contiguous() for name, value in clip.state_dict().items()}, tmp_path / "open_clip_model.safetensors")
    encoder = TextEncoder.from_config(TextEncoderConfig(path=str(tmp_path)))
    texts = ["a photo of a fox", "a diagram"]
    with torch.no_grad():
        expected = clip.encode_text(open_clip.SimpleTokenizer()(texts, context_length=16), normalize=True)
    assert encoder.dim == 8 and torch.allclose(encoder.encode(texts), expected, atol=1e-6)


def test_open_clip_architecture_without_files():
    encoder = TextEncoder.from_config(TextEncoderConfig(config={"embed_dim": 8, "text_cfg": dict(TEXT)}))
    assert encoder.encode(["a fox"]).shape == (1, 8) and not any(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize("config, message", [
    (TextEncoderConfig(), "path.*config"), (TextEncoderConfig(path="/nowhere"), "/nowhere"),
    (TextEncoderConfig(config={}, library="spacy"), "spacy")])
def test_bad_text_encoders_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        TextEncoder.from_config(config)


def test_a_directory_of_another_kind_is_named(tmp_path):
    with pytest.raises(ValueError, match="open_clip_config.json"):
        TextEncoder.from_config(TextEncoderConfig(path=str(tmp_path)))
