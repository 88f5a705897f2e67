"""The weighted sum: its arithmetic, what is built, when GAN terms begin, and who hears them."""
import pytest
import torch
import torch.nn.functional as F

from muse.config.schema import LossesConfig
from muse.losses.contrastive import itc_loss
from muse.losses.muse_loss import MUSE_Loss
from muse.losses.topology import topology_loss
from muse.models.muse_vit import MuseOutput


def config(**changes):
    return LossesConfig(**{**dict(perceptual_weight=0.0, topology_weight=0.0, itc_weight=0.0, discriminator_weight=0.0,
                                  discriminator_channels=32), **changes})


@pytest.fixture
def batch():
    torch.manual_seed(0)
    images = torch.rand(2, 3, 32, 32)
    output = MuseOutput(torch.zeros(2, 4, 2, 2), (torch.rand(2, 3, 32, 32) * 1.4 - 0.2).requires_grad_(),
                        (torch.softmax(torch.randn(2, 1, 4, 4), -1),), F.normalize(torch.randn(2, 8), dim=-1), None, None)
    teacher = torch.softmax(torch.randn(2, 4, 4), -1), (2, 2)
    return output, images, teacher, F.normalize(torch.randn(2, 8), dim=-1), torch.tensor(2.0)


def test_total_is_the_weighted_sum_of_the_reported_terms(batch):
    output, images, teacher, text, scale = batch
    loss = MUSE_Loss(config(reconstruction_weight=0.1, topology_weight=5.0, itc_weight=0.2))
    total, report = loss(output, images, teacher, text, scale)
    assert report["pixel"].item() == pytest.approx(F.mse_loss(output.reconstruction.clamp(0, 1), images).item())
    assert report["topology"] == topology_loss(output.attention, *teacher, (2, 2))
    assert report["itc"] == itc_loss(output.semantic, text, scale)
    assert total.item() == pytest.approx((0.1 * report["pixel"] + 5 * report["topology"] + 0.2 * report["itc"]).item())
    assert loss.needs_teacher and loss.needs_text and "perceptual" not in report


def test_l1_and_the_adaptive_variance(batch):
    output, images, *_ = batch
    loss = MUSE_Loss(config(reconstruction_loss="l1", learn_logvar=True))
    loss.logvar.data.fill_(0.5)
    total, report = loss(output, images)
    assert report["pixel"].item() == pytest.approx((output.reconstruction.clamp(0, 1) - images).abs().mean().item())
    assert total.item() == pytest.approx(report["pixel"].item() / torch.tensor(0.5).exp().item() + 0.5)
    total.backward()
    assert loss.logvar.grad is not None


def test_a_discriminator_that_never_starts_is_not_built():
    assert MUSE_Loss(config(discriminator_weight=0.1, discriminator_start=1000), max_train_steps=500).discriminator is None
    assert MUSE_Loss(config(discriminator_weight=0.1, discriminator_start=0), max_train_steps=500).discriminator is not None


def test_gan_terms_begin_at_their_step_and_leave_the_discriminators_weights_alone(batch):
    output, images, *_ = batch
    loss = MUSE_Loss(config(discriminator_weight=0.5, discriminator_start=10))
    assert "gan" not in loss(output, images, step=9)[1]
    total, report = loss(output, images, step=10)
    assert total.item() == pytest.approx((report["pixel"] + 0.5 * report["gan"]).item(), rel=1e-5)
    total.backward()
    assert output.reconstruction.grad.norm() > 0
    assert all(p.grad is None and p.requires_grad for p in loss.discriminator.parameters())


def test_the_discriminators_step_leaves_the_generator_alone(batch):
    output, images, *_ = batch
    loss = MUSE_Loss(config(discriminator_weight=0.5, discriminator_start=0))
    value, report = loss.discriminator_loss(images, output.reconstruction)
    value.backward()
    assert output.reconstruction.grad is None and all(p.grad is not None for p in loss.discriminator.parameters())
    assert value.item() == pytest.approx(report["d_loss"].item()) and {"d_real", "d_fake", "lecam"} <= set(report)
