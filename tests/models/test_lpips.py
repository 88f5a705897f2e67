"""LPIPS and its shift-tolerant relatives against numbers from the published code (package stlpips_pytorch 0.0.2,
variants shift_tolerant and vanilla), run once with weights filled by the rule below."""
import zlib

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import vgg16

from muse.models.lpips import LPIPS, VGG16, BlurredConv, ReflectedBlur, ShiftTolerantLPIPS

ALEX = {"slice1.0": (64, 3, 11, 11), "slice2.5": (192, 64, 5, 5), "slice3.9": (384, 192, 3, 3),
        "slice4.11": (256, 384, 3, 3), "slice5.13": (256, 256, 3, 3)}
SIZES = ((64, 64), (57, 70))
DISTANCES = {
    "alex": ((0.030419431626796722, 0.03367916867136955), (0.030773548409342766, 0.035487592220306396)),
    "vgg": ((0.17832539975643158, 0.14807474613189697), (0.1744059920310974, 0.15015502274036407)),
    "lpips": ((0.20271670818328857, 0.179519921541214), (0.20358829200267792, 0.18009547889232635)),
}
GRADIENT_NORMS = {"alex": 0.020912090316414833, "vgg": 0.048812735825777054, "lpips": 0.06336811184883118}


def draw(name, shape):
    return torch.from_numpy(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)).float()


def image_pair(height, width):
    i, j = torch.arange(height)[:, None] / height, torch.arange(width)[None] / width
    a = torch.stack([torch.stack([
        0.5 + 0.25 * torch.sin(2 * np.pi * ((2 + b) * i + (1 + c) * j) + c)
        + 0.25 * torch.sin(2 * np.pi * (5 + 3 * c) * i * j * (1 + b)) for c in range(3)]) for b in range(2)])
    return a, (a + 0.1 * draw("noise", a.shape)).clamp(0, 1)


def vgg_shapes(blurs):
    """Convolution names inside VGG16's slices: a blur takes one index more at every pooling."""
    shapes, index, previous = {}, 0, 3
    for stage, widths in enumerate(VGG16, 1):
        index += (1 + blurs) * (stage > 1)
        for width in widths:
            shapes[f"slice{stage}.{index}"] = (width, previous, 3, 3)
            index, previous = index + 2, width
    return shapes


def write_filled(path, shapes, heads):
    state = {}
    for name, shape in shapes.items():
        state[f"net.{name}.weight"] = draw(f"net.{name}.weight", shape) * (2 / np.prod(shape[1:])) ** 0.5
        state[f"net.{name}.bias"] = 0.1 * draw(f"net.{name}.bias", shape[:1])
    for index, width in enumerate(heads):
        name = f"lin{index}.model.1.weight"
        state[name] = draw(name, (1, width, 1, 1)).abs()
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, vgg_heads = tmp_path_factory.mktemp("weights"), [widths[-1] for widths in VGG16]
    return {"alex": write_filled(folder / "alex.pth", ALEX, (64, 192, 384, 256, 256)),
            "vgg": write_filled(folder / "vgg.pth", vgg_shapes(blurs=1), vgg_heads),
            "lpips": write_filled(folder / "lpips.pth", vgg_shapes(blurs=0), vgg_heads)}


def build(name, files):
    return LPIPS(files[name]) if name == "lpips" else ShiftTolerantLPIPS(files[name], name)


@pytest.mark.parametrize("name", DISTANCES)
def test_matches_the_published_code(name, files):
    network = build(name, files)
    for size, expected in zip(SIZES, DISTANCES[name]):
        a, b = image_pair(*size)
        b.requires_grad_()
        distance = network(a, b)
        torch.testing.assert_close(distance, torch.tensor(expected), rtol=1e-5, atol=1e-6)
    distance.sum().backward()
    assert b.grad.norm().item() == pytest.approx(GRADIENT_NORMS[name], rel=1e-4)


def test_only_the_second_image_receives_gradient_and_no_weight_trains(files):
    network = ShiftTolerantLPIPS(files["alex"]).train()
    a, b = (x.requires_grad_() for x in image_pair(64, 64))
    network(a, b).sum().backward()
    assert a.grad is None and b.grad.abs().sum() > 0
    assert not network.training and not any(p.requires_grad for p in network.parameters())


def test_identical_and_black_images_give_finite_gradient(files):
    network = ShiftTolerantLPIPS(files["alex"])
    black = torch.zeros(1, 3, 64, 64)
    b = black.clone().requires_grad_()
    distance = network(black, b)
    distance.sum().backward()
    assert distance.item() == 0 and b.grad.isfinite().all()


def test_sums_are_float32_under_autocast(files):
    network, (a, b) = ShiftTolerantLPIPS(files["alex"]), image_pair(64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        distance = network(a, b)
    assert distance.dtype == torch.float32
    torch.testing.assert_close(distance, network(a, b), rtol=0.03, atol=0)


@pytest.mark.parametrize("size", [(20, 21), (21, 20), (33, 33), (24, 24)])
def test_one_convolution_equals_convolution_then_blur(size):
    torch.manual_seed(0)
    fused, plain = BlurredConv(3, 8, 5, padding=2), nn.Conv2d(3, 8, 5, padding=2)
    plain.load_state_dict(fused.state_dict())
    x = torch.randn(2, 3, *size)
    torch.testing.assert_close(fused(x), ReflectedBlur(8)(plain(x)), rtol=1e-5, atol=1e-6)


def test_heads_and_trunk_may_come_from_the_libraries_own_files(tmp_path):
    torch.manual_seed(0)
    trunk = vgg16().state_dict()
    heads = {f"lin{i}.model.1.weight": torch.rand(1, widths[-1], 1, 1) for i, widths in enumerate(VGG16)}
    names = [name for name in trunk if name.startswith("features")]
    torch.save({name: trunk[name] for name in names}, tmp_path / "trunk.pth")
    torch.save(heads, tmp_path / "heads.pth")
    torch.save({**heads, **{name: trunk[name] for name in names}}, tmp_path / "both.pth")
    a, b = image_pair(64, 64)
    apart, together = LPIPS(tmp_path / "heads.pth", tmp_path / "trunk.pth"), LPIPS(tmp_path / "both.pth")
    assert torch.equal(apart(a, b), together(a, b)) and apart(a, b).min() > 0


def test_missing_and_wrong_weights_are_named(tmp_path, files, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no weight file .*gone.pth"):
        ShiftTolerantLPIPS(tmp_path / "gone.pth")
    with pytest.raises(FileNotFoundError, match="prepare_backbones"):
        ShiftTolerantLPIPS(None)
    with pytest.raises(ValueError, match="holds the alex variant"):
        ShiftTolerantLPIPS(files["alex"], "vgg")
    torch.save({"lin0.model.1.weight": torch.zeros(1, 64, 1, 1)}, tmp_path / "heads.pth")
    with pytest.raises(FileNotFoundError, match="VGG16.*vgg16-397923af.pth"):
        LPIPS(tmp_path / "heads.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match="broken.safetensors is damaged"):
        ShiftTolerantLPIPS(tmp_path / "broken.safetensors")
    state = torch.load(files["alex"], weights_only=True)
    del state["net.slice5.13.bias"]
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(ValueError, match="trunk"):
        ShiftTolerantLPIPS(tmp_path / "short.pth")
