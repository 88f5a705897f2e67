import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.models import convnext_small as torchvision_convnext_small

from muse.models.lpips import ShiftTolerantLPIPS
from muse.models.perceptual_loss import PerceptualLoss, efficientnet_lite0, parse_spec


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weight files of the miniature's two networks."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    trunk = {"slice1.0": (64, 3, 11, 11), "slice2.5": (192, 64, 5, 5), "slice3.9": (384, 192, 3, 3),
             "slice4.11": (256, 384, 3, 3), "slice5.13": (256, 256, 3, 3)}
    state = {f"lin{i}.model.1.weight": torch.rand(1, shape[0], 1, 1) for i, shape in enumerate(trunk.values())}
    for name, shape in trunk.items():
        state |= {f"net.{name}.weight": 0.05 * torch.randn(shape), f"net.{name}.bias": 0.1 * torch.randn(shape[0])}
    save_file(state, folder / "alex.safetensors")
    save_file(timm.create_model("tf_efficientnet_lite0").state_dict(), folder / "lite.safetensors")
    return {"st_lpips_alex": str(folder / "alex.safetensors"), "efficientnet_lite0": str(folder / "lite.safetensors")}


@pytest.fixture
def pair():
    torch.manual_seed(1)
    return torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)


def test_spelling():
    assert parse_spec("lpips-convnext_s-1.0-0.1") == {"lpips": 1.0, "convnext_s": 0.1}
    assert parse_spec("convnext_s") == {"convnext_s": 1.0}
    assert parse_spec("st_lpips_alex-1.0") == {"st_lpips_alex": 1.0}
    assert list(parse_spec("lpips-convnext_s-efficientnet_lite0").values()) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("spec", ["", "vgg", "lpips-1.0-0.1", "lpips-convnext_s-1.0", "1.0-lpips", "lpips-lpips-1-1",
                                  "lpips-0", "lpips-one", "lpips--1.0"])
def test_unreadable_spelling_is_quoted(spec):
    with pytest.raises(ValueError, match=f"perceptual_loss is '{spec}'"):
        parse_spec(spec)


def test_weighted_mean_of_the_parts(weights, pair):
    both = PerceptualLoss("st_lpips_alex-efficientnet_lite0-1.0-0.1", weights)(*pair)
    distance = ShiftTolerantLPIPS(weights["st_lpips_alex"])(*pair).mean()
    classifier = efficientnet_lite0(weights["efficientnet_lite0"], enlarge=False)
    logits = torch.nn.functional.mse_loss(classifier(pair[0]), classifier(pair[1]))
    torch.testing.assert_close(both, (distance + 0.1 * logits) / 1.1)
    assert distance > 0 and logits > 0


def test_gradient_reaches_only_the_reconstruction_in_eval_mode(weights, pair):
    images, reconstruction = (x.requires_grad_() for x in pair)
    loss = PerceptualLoss("st_lpips_alex-efficientnet_lite0", weights).train()
    loss(images, reconstruction).backward()
    assert images.grad is None and reconstruction.grad.abs().sum() > 0
    assert not any(module.training for module in loss.modules())
    assert not any(p.requires_grad for p in loss.parameters())


def test_result_is_float32_under_autocast(weights, pair):
    loss = PerceptualLoss("st_lpips_alex-efficientnet_lite0-1.0-0.1", weights)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(*pair)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(*pair).item(), rel=0.05)


def test_efficientnet_sees_pixels_minus_127_over_128(weights):
    classifier = efficientnet_lite0(weights["efficientnet_lite0"])
    values = torch.tensor([0.0, 127 / 255, 1.0])[:, None, None, None].expand(3, 3, 224, 224)
    assert classifier.prepare(values)[:, 0, 0, 0].tolist() == pytest.approx([-127 / 128, 0, 1], abs=1e-6)
    assert classifier.prepare(values[..., :100, :50]).shape == (3, 3, 224, 224)


def test_convnext_logits_at_224_from_a_file(tmp_path, pair):
    torch.manual_seed(0)
    network = torchvision_convnext_small().eval()
    torch.save(network.state_dict(), tmp_path / "convnext.pth")
    with torch.no_grad():
        value = PerceptualLoss("convnext_s", {"convnext_s": tmp_path / "convnext.pth"})(*pair)
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        a, b = (network((torch.nn.functional.interpolate(x, (224, 224), mode="bilinear", antialias=True)
                         - mean[:, None, None]) / std[:, None, None]) for x in pair)
    assert value.item() == pytest.approx((a - b).square().mean().item(), rel=1e-3)


def test_missing_weights_say_what_to_get(tmp_path, weights, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="ConvNeXt-S weights: .*convnext_small-0c510722.pth"):
        PerceptualLoss("convnext_s", {})
    with pytest.raises(FileNotFoundError, match="efficientnet_lite0.safetensors"):
        PerceptualLoss("efficientnet_lite0", {})
    with pytest.raises(ValueError, match="perceptual_weights names resnet"):
        PerceptualLoss("lpips", {"resnet": "file"})
    with pytest.raises(ValueError, match="does not fit this model"):
        PerceptualLoss("efficientnet_lite0", {"efficientnet_lite0": weights["st_lpips_alex"]})
