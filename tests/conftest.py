"""Shared fixtures: the golden instance of the public release, rebuilt from its fill rule."""
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from muse.config.schema import BackboneConfig, EncoderConfig, ModelConfig

GOLDEN = Path(__file__).parent / "golden"


def fill(name, shape):
    """The golden fill rule (tests/golden/README.md): weights by name, nothing stored."""
    if name == "logit_scale":
        return torch.tensor(2.6592)
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape)).astype(np.float32)
    if len(shape) >= 2:
        tokens = ("class_embedding", "position_embedding", "cls_token", "mask_token", "register_tokens")
        draw = draw * 0.5 if name.endswith(tokens) else draw / np.float32(np.sqrt(np.prod(shape[1:])))
    elif name.endswith("weight") or any(part in name for part in (".ls", "lambda", "scale")):
        draw = 1 + 0.1 * draw
    else:
        draw = 0.1 * draw
    if name.startswith("dino_teacher") and ("q_proj.weight" in name or "k_proj.weight" in name):
        draw = draw * 2
    return torch.from_numpy(draw.astype(np.float32))


@pytest.fixture(scope="session")
def golden():
    return load_file(GOLDEN / "outputs.safetensors")


@pytest.fixture(scope="session")
def golden_json():
    return lambda name: json.loads((GOLDEN / name).read_text())


@pytest.fixture(scope="session")
def golden_images():
    i = torch.arange(224, dtype=torch.float64).view(1, 1, 224, 1) / 224
    j, b = i.transpose(2, 3), torch.arange(2, dtype=torch.float64).view(2, 1, 1, 1)
    c, pi2 = torch.arange(3, dtype=torch.float64).view(1, 3, 1, 1), 2 * torch.pi
    images = 0.5 + 0.25 * torch.sin(pi2 * ((2 + b) * i + (1 + c) * j) + c) \
        + 0.25 * torch.sin(pi2 * (5 + 3 * c) * i * j * (1 + b))
    return images.float()


@pytest.fixture(scope="session")
def golden_config(golden_json):
    stored = golden_json("configs.json")
    return ModelConfig(encoder=EncoderConfig(config=stored["intern_vit"]), decoder=BackboneConfig(config=stored["dc_ae"]),
                       **stored["muse"])


@pytest.fixture(scope="session")
def golden_model(golden_config):
    from muse.models import MUSE_ViT
    from muse.models.names import from_released, to_released
    model = MUSE_ViT(golden_config)
    names = {name: fill(name, value.shape) for name, value in to_released(model.state_dict()).items()}
    model.load_state_dict(from_released(names))
    return model.eval()
