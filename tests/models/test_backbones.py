"""Backbone directories in each layout load through one path, and only what is needed is read."""
import json

import pytest
import torch
from diffusers import AutoencoderDC
from safetensors.torch import save_file
from transformers import InternVLVisionConfig, InternVLVisionModel

from muse.config.schema import BackboneConfig, EncoderConfig
from muse.models.backbones import VisionEncoder, build_decoder, load_decoder
from muse.models.names import encoder_to_released
from muse.models.tensor_files import read_tensors

HF = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, patch_size=4, image_size=32,
          attention_bias=True, use_qk_norm=False, layer_norm_eps=1e-6)
ORIGINAL = {**{key: value for key, value in HF.items() if key not in ("attention_bias", "use_qk_norm")},
            "qkv_bias": True, "qk_normalization": False, "norm_type": "layer_norm"}


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    model = InternVLVisionModel(InternVLVisionConfig(**HF, use_mean_pooling=True)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def write(directory, layout, tower):
    tensors = {name: value.detach().contiguous() for name, value in tower.state_dict().items()}
    config, prefix = HF, ""
    if layout.startswith("original"):
        tensors = {name: value.contiguous() for name, value in encoder_to_released(tensors).items()}
        config, prefix = ORIGINAL, "vision_model." if "language" in layout else ""
    elif layout == "hf":
        prefix = "model.vision_tower."
    tensors = {prefix + name: value for name, value in tensors.items()}
    if prefix:
        config = {"model_type": "internvl_chat", "vision_config": config}
        tensors["language_model.embed"] = torch.zeros(4, 4)
    (directory / "config.json").write_text(json.dumps(config))
    if "bin" in layout:
        torch.save(tensors, directory / "pytorch_model.bin")
    elif "sharded" in layout:
        names = sorted(tensors)
        halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        for file, part in halves.items():
            save_file({name: tensors[name] for name in part}, directory / file)
        weight_map = {name: file for file, part in halves.items() for name in part}
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        save_file(tensors, directory / "model.safetensors")
    return EncoderConfig(path=str(directory))


@pytest.mark.parametrize("layout", ["hf", "bare", "original", "original language", "original language sharded",
                                    "original language bin"])
def test_every_layout_gives_the_same_tokens(layout, tower, tmp_path):
    config = write(tmp_path, layout, tower)
    encoder = VisionEncoder(config).eval()
    encoder.load(config.path)
    images = torch.rand(1, 3, 24, 16)
    with torch.no_grad():
        expected = tower(encoder.normalise(images)).last_hidden_state[:, 1:]
        assert torch.allclose(encoder(images), expected, atol=1e-5)


def test_first_layers_and_another_patch_size(tower, tmp_path):
    config = write(tmp_path, "bare", tower)
    config.num_layers, config.patch_size = 2, 2
    encoder = VisionEncoder(config).eval()
    encoder.load(config.path)
    assert len(encoder.vit.encoder.layer) == 2 and encoder(torch.rand(1, 3, 16, 16)).shape == (1, 64, 16)
    patch, kernel = torch.rand(1, 3, 2, 2), tower.embeddings.patch_embeddings.projection
    enlarged = torch.nn.functional.interpolate(patch, size=(4, 4), mode="bilinear", align_corners=False)
    with torch.no_grad():
        ours = encoder.vit.embeddings.patch_embeddings.projection(patch)
        assert torch.allclose(ours, kernel(enlarged), atol=1e-5)


def test_only_the_towers_tensors_are_read(tower, tmp_path):
    write(tmp_path, "original language", tower)
    kept = read_tensors([tmp_path / "model.safetensors"], lambda name: name if name.startswith("vision_model.") else None)
    assert kept and not any(name.startswith("language_model") for name in kept)


def test_decoder_alone_from_an_autoencoder_directory(tmp_path):
    torch.manual_seed(0)
    levels = dict(decoder_block_out_channels=[8, 8], decoder_layers_per_block=[1, 1], decoder_qkv_multiscales=[[], []],
                  encoder_block_out_channels=[8, 8], encoder_layers_per_block=[1, 1], encoder_qkv_multiscales=[[], []])
    whole = AutoencoderDC(latent_channels=8, upsample_block_type="interpolate", downsample_block_type="Conv", **levels)
    whole.save_pretrained(tmp_path)
    decoder = build_decoder(BackboneConfig(path=str(tmp_path)))
    load_decoder(decoder, str(tmp_path))
    latent = torch.randn(1, 8, 3, 5)
    with torch.no_grad():
        assert torch.equal(decoder(latent), whole.decoder(latent))


class Malicious:
    def __reduce__(self):
        return print, ("code ran",)


def test_a_pickle_with_code_is_refused(tmp_path, capsys):
    torch.save({"weight": torch.zeros(1), "payload": Malicious()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pytorch_model.bin is not a plain tensor file"):
        read_tensors([tmp_path / "pytorch_model.bin"])
    assert "code ran" not in capsys.readouterr().out


def test_bad_directories_are_named(tmp_path, tower):
    with pytest.raises(ValueError, match="no directory /nowhere"):
        VisionEncoder(EncoderConfig(path="/nowhere"))
    with pytest.raises(ValueError, match="config.json"):
        VisionEncoder(EncoderConfig(path=str(tmp_path)))
    (tmp_path / "config.json").write_text('{"model_type": "qwen2", "hidden_size": 8}')
    with pytest.raises(ValueError, match="no vision tower.*qwen2"):
        VisionEncoder(EncoderConfig(path=str(tmp_path)))
    config = write(tmp_path, "original language sharded", tower)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ValueError, match="b.safetensors, which is missing"):
        VisionEncoder(config).load(config.path)
