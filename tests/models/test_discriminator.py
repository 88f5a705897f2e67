"""PatchGAN against outputs and names of the public release (tests/golden)."""
import zlib

import numpy as np
import pytest
import torch

from muse.models.discriminator import BlurDownsample, PatchDiscriminator


def fill(module):
    """The golden fill rule (tests/golden/README.md) on parameters; buffers stay."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(p.shape))
            if p.dim() >= 2:
                values = values / np.sqrt(p[0].numel())
            else:
                values = 1 + 0.1 * values if name.endswith("weight") else 0.1 * values
            p.copy_(torch.from_numpy(values))
    return module


def test_outputs_of_the_release(golden, golden_images, golden_model):
    network = fill(PatchDiscriminator())
    with torch.no_grad():
        real, fake = network(golden_images), network(golden_model(golden_images).reconstruction.clamp(0, 1))
    torch.testing.assert_close(real, golden["discriminator_real"], rtol=0, atol=1e-5)
    torch.testing.assert_close(fake, golden["discriminator_fake"], rtol=0, atol=1e-5)


def test_names_of_the_release(golden_json):
    expected = golden_json("discriminator_names.json")
    assert {name: list(t.shape) for name, t in PatchDiscriminator().state_dict().items()} == expected


@pytest.mark.parametrize("size", [(112, 112), (75, 98), (448, 224)])
def test_any_size_gives_16_by_16_logits_and_gradient(size):
    images = torch.rand(2, 3, *size, requires_grad=True)
    logits = PatchDiscriminator(base_channels=32)(images)
    logits.sum().backward()
    assert logits.shape == (2, 1, 16, 16) and images.grad.abs().sum() > 0


def test_blur_is_same_padded_and_keeps_constants_inside():
    for side in (8, 9):
        out = BlurDownsample()(torch.ones(1, 2, side, side))
        assert out.shape == (1, 2, (side + 1) // 2, (side + 1) // 2)
        torch.testing.assert_close(out[:, :, 1:-1, 1:-1], torch.ones_like(out[:, :, 1:-1, 1:-1]))
        assert out[0, 0, 0, 0] == pytest.approx((7 / 8) ** 2)  # per axis, one of eight weights meets the padding


def test_real_and_fake_in_one_pass_equal_two_passes():
    network, real, fake = fill(PatchDiscriminator(base_channels=32)), torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        together = network(torch.cat([real, fake]))
        torch.testing.assert_close(together, torch.cat([network(real), network(fake)]), rtol=1e-4, atol=1e-5)
