"""Metrics against independent numpy computations; results must not depend on batch size, order or processes."""
import itertools

import numpy as np
import pytest
import torch
import torch.multiprocessing as multiprocessing

from muse.config.schema import EvaluationConfig
from muse.evaluation import evaluator as module
from muse.evaluation.evaluator import (Evaluator, GaussianSums, evaluate_reconstruction, frechet_distance, psnr,
                                       round_to_8_bits, ssim)


class Features(torch.nn.Module):
    """Six fixed features, a stand-in for a Frechet network."""

    def forward(self, images):
        parts = [images.mean((2, 3)), images.square().mean((2, 3)) - images[..., :8].mean((2, 3))]
        return torch.cat(parts, 1)


class Distance(torch.nn.Module):
    def forward(self, a, b):
        return (a - b).abs().flatten(1).mean(1)


@pytest.fixture
def fake_networks(monkeypatch):
    monkeypatch.setattr(module, "_frechet_network", lambda config, device: Features())
    monkeypatch.setattr(module, "_perceptual_network", lambda config, device: Distance())
    return EvaluationConfig(frechet="efficientnet_lite0", perceptual="st_lpips")


def pictures(count, seed=0, size=(24, 20)):
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 5, 5, generator=generator)
    images = torch.nn.functional.interpolate(small, size=size, mode="bicubic").clamp(0, 1)
    noise = 0.1 * torch.randn(count, 3, *size, generator=generator)
    return images, images + noise * torch.rand(count, 1, 1, 1, generator=generator)


def numpy_ssim(a, b):
    """Wang et al. 2004 by explicit windows, float64. 3 x H x W arrays -> float."""
    x = np.arange(11) - 5
    window = np.exp(-x**2 / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2
    values = []
    for channel, top, left in itertools.product(range(3), range(a.shape[1] - 10), range(a.shape[2] - 10)):
        p, q = (image[channel, top:top + 11, left:left + 11] for image in (a, b))
        mp, mq = (window * p).sum(), (window * q).sum()
        vp, vq, cov = (window * (p - mp)**2).sum(), (window * (q - mq)**2).sum(), (window * (p - mp) * (q - mq)).sum()
        values.append((2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    return np.mean(values)


def test_ssim_equals_explicit_windows():
    a, b = pictures(3)
    b = b.clamp(0, 1)
    expected = [numpy_ssim(*(image.double().numpy() for image in pair)) for pair in zip(a, b)]
    assert ssim(a, b).numpy() == pytest.approx(expected, abs=1e-5)
    assert ssim(a, a).numpy() == pytest.approx([1, 1, 1], abs=1e-6)


def test_ssim_data_range_is_one():
    """A data range of 2 on [0, 1] images would raise the score."""
    a, b = torch.full((1, 3, 16, 16), 0.02), torch.full((1, 3, 16, 16), 0.05)
    assert ssim(a, b).item() == pytest.approx((2 * 0.02 * 0.05 + 1e-4) / (0.02**2 + 0.05**2 + 1e-4), abs=1e-5)


def test_ssim_refuses_images_smaller_than_its_window():
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim(torch.zeros(1, 3, 10, 20), torch.zeros(1, 3, 10, 20))


def test_psnr_is_the_mean_over_images():
    a, b = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    b[0], b[1] = 0.1, 0.01
    assert psnr(a, b).tolist() == pytest.approx([20, 40], abs=1e-5)
    assert psnr(a, a).tolist() == [100, 100]


def test_rounding_hits_every_level():
    levels = torch.arange(256) / 255
    assert torch.equal(round_to_8_bits(levels), levels)
    assert torch.equal(round_to_8_bits(levels + 0.4 / 255), levels)
    assert (round_to_8_bits(torch.tensor([-0.2, 0.5 / 255, 1.3])) * 255).tolist() == [0, 1, 255]


def test_frechet_distance_against_sqrtm():
    scipy_linalg = pytest.importorskip("scipy.linalg")
    random = np.random.default_rng(0)
    x, y = random.normal(size=(200, 12)), random.normal(size=(150, 12)) @ random.normal(size=(12, 12)) + 0.3
    sums = [GaussianSums(12, "cpu") for _ in range(2)]
    for gaussian, data in zip(sums, (x, y)):
        for part in np.array_split(data, 7):
            gaussian.add(torch.from_numpy(part))
    moments = [gaussian.moments() for gaussian in sums]
    assert moments[1][1].numpy() == pytest.approx(np.cov(y.T), abs=1e-9)
    root = scipy_linalg.sqrtm(np.cov(x.T) @ np.cov(y.T)).real
    expected = ((x.mean(0) - y.mean(0))**2).sum() + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root)
    assert frechet_distance(*moments[0], *moments[1]) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_of_few_images_is_zero_to_itself():
    gaussian = GaussianSums(64, "cpu")
    gaussian.add(torch.randn(10, 64, generator=torch.Generator().manual_seed(0)))
    mean, covariance = gaussian.moments()
    assert frechet_distance(mean, covariance, mean, covariance) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(mean, covariance, mean + 1, covariance) == pytest.approx(64, rel=1e-9)


@pytest.mark.parametrize("batch_size, shuffled", [(1, False), (4, True), (40, False)])
def test_batches_and_order_change_nothing(fake_networks, batch_size, shuffled):
    images, reconstruction = pictures(40)
    reference = Evaluator(fake_networks, "cpu", mean_colour=True)
    reference.update(images, reconstruction)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1)) if shuffled else torch.arange(40)
    other = Evaluator(fake_networks, "cpu", mean_colour=True)
    for rows in order.split(batch_size):
        other.update(images[rows], reconstruction[rows])
    expected = reference.compute()
    assert set(expected) == {"images", "psnr", "ssim", "st_lpips", "fd_efficientnet_lite0", "psnr_mean_colour"}
    assert other.compute() == pytest.approx(expected, rel=1e-6)
    assert expected["fd_efficientnet_lite0"] > 0 and expected["st_lpips"] > 0


def test_metrics_see_rounded_images(fake_networks):
    images = torch.full((12, 3, 16, 16), 100 / 255)
    evaluator = Evaluator(fake_networks, "cpu")
    evaluator.update(images, images + 0.4 / 255)
    result = evaluator.compute()
    assert result["psnr"] == 100 and result["st_lpips"] == 0


def test_mean_colour_is_each_images_own(fake_networks):
    images, _ = pictures(6)
    evaluator = Evaluator(fake_networks, "cpu", mean_colour=True)
    evaluator.update(images, images)
    rounded = np.floor(images.numpy().astype(np.float64) * 255 + 0.5) / 255
    mean = np.floor(rounded.mean((2, 3), keepdims=True) * 255 + 0.5) / 255
    expected = (-10 * np.log10(((rounded - mean)**2).mean((1, 2, 3)))).mean()
    assert evaluator.compute()["psnr_mean_colour"] == pytest.approx(expected, abs=1e-4)


def test_few_images_warn_with_the_numbers(fake_networks):
    evaluator = Evaluator(fake_networks, "cpu")
    evaluator.update(*pictures(4))
    with pytest.warns(UserWarning, match="4 images with 6 features"):
        evaluator.compute()


def test_frechet_needs_two_images(fake_networks):
    evaluator = Evaluator(fake_networks, "cpu")
    evaluator.update(*pictures(1))
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        evaluator.compute()


def test_no_image_is_an_error():
    with pytest.raises(ValueError, match="no image was evaluated"):
        Evaluator(EvaluationConfig(frechet="none", perceptual="none"), "cpu").compute()


@pytest.mark.parametrize("key", ["frechet", "perceptual"])
def test_unknown_network_names_the_choices(key):
    options = {"frechet": "none", "perceptual": "none", key: "vgg"}
    with pytest.raises(ValueError, match=f"evaluation.{key} is 'vgg'"):
        Evaluator(EvaluationConfig(**options), "cpu")


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="differ in shape"):
        Evaluator(EvaluationConfig(frechet="none", perceptual="none"), "cpu").update(
            torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 32))


def test_autocast_and_training_mode_do_not_leak_in():
    class Model(torch.nn.Module):
        def forward(self, images):
            assert not self.training and not torch.is_autocast_enabled("cpu")
            return type("Output", (), {"reconstruction": images * 0.5})()

    model = Model().train()
    seen = []
    loader = [{"image": torch.full((2, 3, 16, 16), 200, dtype=torch.uint8)}]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = evaluate_reconstruction(model, loader, EvaluationConfig(frechet="none", perceptual="none"), "cpu",
                                         observe=lambda images, reconstruction: seen.append(len(images)))
    assert model.training and seen == [2]
    assert result["psnr"] == pytest.approx(-20 * np.log10(100 / 255), abs=1e-5)


def _part_of_three(rank, path, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=3)
    module._frechet_network = lambda config, device: Features()
    images, reconstruction = pictures(9)
    rows = [slice(0, 5), slice(5, 9), slice(9, 9)][rank]  # the last process has nothing to do
    evaluator = Evaluator(EvaluationConfig(frechet="efficientnet_lite0", perceptual="none"), "cpu")
    if rank < 2:
        evaluator.update(images[rows], reconstruction[rows])
    results[rank] = evaluator.compute()
    torch.distributed.destroy_process_group()


def test_processes_add_up(tmp_path, fake_networks):
    with multiprocessing.Manager() as manager:
        results = manager.dict()
        multiprocessing.spawn(_part_of_three, args=(tmp_path / "store", results), nprocs=3)
        results = dict(results)
    single = Evaluator(EvaluationConfig(frechet="efficientnet_lite0", perceptual="none"), "cpu")
    single.update(*pictures(9))
    assert results[0] == results[1] == results[2] == pytest.approx(single.compute(), rel=1e-9)
