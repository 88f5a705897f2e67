"""Perceptual loss: a weighted mean of feature distances, spelled in one word."""
import torch
import torch.nn.functional as F
from torch import nn

from muse.models.lpips import LPIPS, ShiftTolerantLPIPS, find_weights, read_weights, torch_cache
from muse.models.tensor_files import load_strictly


class PerceptualLoss(nn.Module):
    """Weighted mean of the named networks' distances: (images, reconstruction), both [0,1] B 3 H W -> float32 scalar.

    `spec` is names, then as many weights, joined by '-': `lpips-convnext_s-1.0-0.1`; without weights all count alike.
    `weights` maps a network's name to its weight file (`vgg16`: the trunk of `lpips`, where its own file lacks it); a
    name that is absent stands for its library's cache. Nothing trains, and only the reconstruction receives gradient.
    Raises ValueError for a spec that cannot be read, FileNotFoundError for missing weights.
    """

    def __init__(self, spec, weights=None):
        super().__init__()
        weights = dict(weights or {})
        if unknown := set(weights) - {*NETWORKS, "vgg16"}:
            raise ValueError(f"perceptual_weights names {', '.join(sorted(unknown))}: known are "
                             f"{', '.join([*NETWORKS, 'vgg16'])}")
        self.factors = parse_spec(spec)
        self.networks = nn.ModuleDict({name: NETWORKS[name](weights) for name in self.factors})

    def train(self, mode=True):
        return super().train(False)  # frozen whatever the model around it does

    def forward(self, images, reconstruction):
        total = sum(factor * self.networks[name](images, reconstruction).mean()
                    for name, factor in self.factors.items())
        return total / sum(self.factors.values())


def parse_spec(spec):
    """{network name: weight} of a spelled perceptual loss. Raises ValueError naming what cannot be read."""
    words = spec.split("-")
    names = [word for word in words if word in NETWORKS]
    try:
        factors = [float(word) for word in words[len(names):]] or [1.0] * len(names)
    except ValueError:
        factors = []
    if not names or words[:len(names)] != names or len(factors) != len(set(names)) or min(factors) <= 0:
        raise ValueError(f"perceptual_loss is '{spec}': write different names, then as many positive weights, joined "
                         f"by '-', such as lpips-convnext_s-1.0-0.1; names are {', '.join(NETWORKS)}")
    return dict(zip(names, factors))


class Classifier(nn.Module):
    """A frozen ImageNet classifier that normalises inside: images [0,1] B 3 H W -> logits, B classes, float32.

    `size`: the side that images are resized to (bilinear, antialias); `enlarge` False leaves smaller ones alone.
    """

    def __init__(self, network, mean, std, size=224, enlarge=True):
        super().__init__()
        self.network, self.size, self.enlarge = network, size, enlarge
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def train(self, mode=True):
        return super().train(False)

    def prepare(self, images):
        """Resized and normalised, channels_last."""
        if self.enlarge or max(images.shape[2:]) > self.size:
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", align_corners=False, antialias=True)
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def forward(self, images):
        return self.network(self.prepare(images)).float()


class LogitsDistance(nn.Module):
    """Squared difference of a classifier's logits, averaged over classes: two batches -> B; gradient to the second."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, images, reconstruction):
        with torch.no_grad():
            reference = self.classifier(images)
        return (reference - self.classifier(reconstruction)).square().mean(1)


def convnext_small(weights=None):
    """torchvision's ConvNeXt-S at 224 pixels; `weights` None: torchvision's downloaded file."""
    from torchvision.models import ConvNeXt_Small_Weights, convnext_small as build
    weights = weights or find_weights(
        [torch_cache(ConvNeXt_Small_Weights.DEFAULT.url.rsplit("/", 1)[1])],
        "ConvNeXt-S weights: let torchvision download ConvNeXt_Small_Weights.DEFAULT, or name a file of `convnext_s`")
    network = build()
    load_strictly(network, read_weights(weights), weights)
    return Classifier(network, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def efficientnet_lite0(weights, enlarge=True):
    """EfficientNet-Lite0 under timm's names (scripts/prepare_backbones.py tiny), input (x - 127) / 128 of 8-bit x."""
    import timm
    if weights is None:
        raise FileNotFoundError("EfficientNet-Lite0 needs its weight file: scripts/prepare_backbones.py tiny writes "
                                "efficientnet_lite0.safetensors")
    network = timm.create_model("tf_efficientnet_lite0")
    load_strictly(network, read_weights(weights), weights)
    return Classifier(network, (127 / 255,) * 3, (128 / 255,) * 3, enlarge=enlarge)


NETWORKS = {
    "lpips": lambda weights: LPIPS(weights.get("lpips"), weights.get("vgg16")),
    "st_lpips_alex": lambda weights: ShiftTolerantLPIPS(weights.get("st_lpips_alex"), "alex"),
    "st_lpips_vgg": lambda weights: ShiftTolerantLPIPS(weights.get("st_lpips_vgg"), "vgg"),
    "convnext_s": lambda weights: LogitsDistance(convnext_small(weights.get("convnext_s"))),
    "efficientnet_lite0": lambda weights: LogitsDistance(efficientnet_lite0(weights.get("efficientnet_lite0"), False)),
}
