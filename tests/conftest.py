"""Shared fixtures: the golden instance of the public release, rebuilt from its fill rule."""
import json

import pytest
import torch
from safetensors.torch import load_file

from golden_instance import GOLDEN, fill
from muse.config.schema import BackboneConfig, EncoderConfig, ModelConfig


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
