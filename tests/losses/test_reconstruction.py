import pytest
import torch

from muse.losses.reconstruction import pixel_loss


def test_values_by_hand():
    images, reconstruction = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.8]])
    assert pixel_loss(images, reconstruction, "l2").item() == pytest.approx((0.25 + 0.04) / 2)
    assert pixel_loss(images, reconstruction, "l1").item() == pytest.approx((0.5 + 0.2) / 2)


def test_values_beyond_the_range_count_as_clamped_and_have_no_gradient():
    images, reconstruction = torch.tensor([1.0, 0.0, 0.5]), torch.tensor([1.7, -0.3, 0.75], requires_grad=True)
    loss = pixel_loss(images, reconstruction)
    loss.backward()
    assert loss.item() == pytest.approx(0.25 ** 2 / 3)
    assert reconstruction.grad.tolist() == pytest.approx([0, 0, 2 * 0.25 / 3])


def test_half_precision_is_compared_in_float32():
    images = torch.full((1, 3, 8, 8), 0.5)
    assert pixel_loss(images, images.bfloat16()).dtype == torch.float32


def test_unknown_kind_is_named():
    with pytest.raises(ValueError, match="'huber': choose l1 or l2"):
        pixel_loss(torch.zeros(1), torch.zeros(1), "huber")
