"""Perceptual distances: LPIPS on VGG16 (Zhang et al., CVPR 2018) and its shift-tolerant relatives (Ghildyal and Liu,
ECCV 2022).

Both compare unit-normalised features of five stages under learned non-negative channel weights ("heads").
"""
import importlib.util
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from muse.models.tensor_files import read_tensors

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
TRUNK_NAME = re.compile(r"(?:features|net\.slice\d)\.(\d+)\.(weight|bias)")
HEAD_NAME = re.compile(r"lin(\d)\.model\.1\.weight")


class FeatureDistance(nn.Module):
    """(a, b), images [0,1] B 3 H W -> B distances, float32. Frozen; the gradient flows to b only."""

    def __init__(self, stages, widths):
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.heads = nn.ParameterList([torch.zeros(width) for width in widths])
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)

    def load(self, state):
        """Take the weights of a published state dict (torchvision's, lpips' or stlpips' names) or raise ValueError."""
        trunk, heads = {}, {}
        for name, tensor in state.items():
            if match := TRUNK_NAME.fullmatch(name):
                trunk.setdefault(int(match[1]), {})[match[2]] = tensor
            elif match := HEAD_NAME.fullmatch(name):
                heads[int(match[1])] = tensor.flatten()
        convs = [module for module in self.modules() if isinstance(module, nn.Conv2d)]
        trunk = [trunk[index] for index in sorted(trunk) if trunk[index].keys() == {"weight", "bias"}][:len(convs)]
        _copy([w for c in convs for w in (c.weight, c.bias)], [w for t in trunk for w in (t["weight"], t["bias"])],
              "trunk")
        _copy(self.heads, [heads[index] for index in sorted(heads)], "head")
        return self.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def train(self, mode=True):
        return super().train(False)  # frozen whatever the model around it does

    def features(self, images):
        """Unit vectors per position of each stage, float32: a list of B C h w."""
        x = (2 * images - 1 - self.shift) / self.scale
        x, found = x.contiguous(memory_format=torch.channels_last), []
        for stage in self.stages:
            x = stage(x)
            found.append(F.normalize(x.float(), dim=1, eps=1e-10))
        return found

    def forward(self, a, b):
        with torch.no_grad():
            reference = self.features(a)
        # sums, not einsum: autocast would run that in half precision
        return sum((((x - y) ** 2).mean((2, 3)) * head).sum(1)  # B C -> B
                   for x, y, head in zip(reference, self.features(b), self.heads))


class LPIPS(FeatureDistance):
    """LPIPS-VGG. `weights`: a file of the heads, or of heads and trunk; `trunk`: a file of torchvision's VGG16.

    What is not given is looked for where its library keeps it: heads in the installed `lpips` package or
    torch-fidelity's download, trunk in torchvision's. Nothing is downloaded; FileNotFoundError tells what to get.
    """

    def __init__(self, weights=None, trunk=None):
        super().__init__(_vgg_stages(lambda width: nn.MaxPool2d(2)), [widths[-1] for widths in VGG16])
        state = read_weights(weights or _lpips_heads())
        if not any(TRUNK_NAME.fullmatch(name) for name in state):
            state.update(read_weights(trunk or _vgg16_trunk()))
        self.load(state)


class ShiftTolerantLPIPS(FeatureDistance):
    """Shift-tolerant LPIPS from its published weight file; `net` is alex or vgg, None: as the file says."""

    def __init__(self, weights, net=None):
        if weights is None:
            raise FileNotFoundError("shift-tolerant LPIPS needs its weight file: scripts/prepare_backbones.py tiny "
                                    "writes st_lpips_alex.safetensors and st_lpips_vgg.safetensors")
        state = read_weights(weights)
        found = "alex" if state.get("net.slice1.0.weight", torch.empty(0)).shape[-1:] == (11,) else "vgg"
        if net not in (None, found):
            raise ValueError(f"{weights} holds the {found} variant of shift-tolerant LPIPS, not {net}")
        if found == "alex":
            super().__init__(_alex_stages(), [64, 192, 384, 256, 256])
        else:
            super().__init__(_vgg_stages(lambda width: nn.Sequential(nn.MaxPool2d(2, stride=1), ReflectedBlur(width))),
                             [widths[-1] for widths in VGG16])
        self.load(state)


class ReflectedBlur(nn.Module):
    """[1, 2, 1] blur at stride 2 after reflecting 2 pixels on every side: B C H W -> B C H//2+1 W//2+1."""

    def __init__(self, channels):
        super().__init__()
        taps = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("kernel", torch.outer(taps, taps).expand(channels, 1, 3, 3).clone(), persistent=False)

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):  # which would pad in float32
            x = F.pad(x, (2, 2, 2, 2), mode="reflect")
            return F.conv2d(x, self.kernel.to(x.dtype), stride=2, groups=x.shape[1])


class BlurredConv(nn.Conv2d):
    """ReflectedBlur after a convolution of stride 1, as one convolution of stride 2: both are linear, and the large
    map between them is never made (a third of AlexNet's cost at 112 pixels). Exact at the borders, up to rounding."""

    def forward(self, x):
        x = F.pad(x, (self.padding[1],) * 2 + (self.padding[0],) * 2)
        down, right = (_windows(size, kernel) for size, kernel in zip(x.shape[2:], self.kernel_size))
        x = torch.cat([torch.cat([F.conv2d(x[..., rows, columns], self._blurred(taps_y, taps_x), self.bias, stride=2)
                                  for taps_x, columns in right], 3) for taps_y, rows in down], 2)
        # the first window, and the last one of an odd size, weighs the same three values as its neighbour
        with torch.autocast(x.device.type, enabled=False):
            return F.pad(x, (1, 2 - len(right), 1, 2 - len(down)), mode="replicate")

    def _blurred(self, taps_y, taps_x):
        taps = torch.outer(self.weight.new_tensor(taps_y), self.weight.new_tensor(taps_x))
        kernels = F.conv2d(self.weight.flatten(0, 1)[:, None], taps[None, None], padding=[n - 1 for n in taps.shape])
        return kernels.view(self.out_channels, self.in_channels, *kernels.shape[2:])


def _windows(size, kernel):
    """Blur taps and input span of the windows inside a padded axis, and of the last one of an even size, which
    reflection makes the mean of two outputs."""
    inner = ((0.25, 0.5, 0.25), slice(None))
    return [inner] if (size - kernel + 1) % 2 else [inner, ((0.5, 0.5), slice(size - kernel - 1, None))]


def _vgg_stages(pool):
    stages, previous = [], 3
    for widths in VGG16:
        layers = [pool(previous)] if stages else []
        for width in widths:
            layers += [nn.Conv2d(previous, width, 3, padding=1), nn.ReLU()]
            previous = width
        stages.append(nn.Sequential(*layers))
    return stages


def _alex_stages():
    def pool(width):
        return nn.MaxPool2d(3, stride=1), ReflectedBlur(width)
    return (nn.Sequential(BlurredConv(3, 64, 11, padding=2), nn.ReLU()),
            nn.Sequential(*pool(64), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()),
            nn.Sequential(*pool(192), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()))


def read_weights(path):
    """State dict of a .safetensors or torch file, on the CPU; FileNotFoundError or ValueError naming it."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weight file {path}")
    return read_tensors([path])


def torch_cache(name):
    """Where torch.hub keeps the file of that name."""
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def find_weights(places, remedy):
    """The first of the files that exists; FileNotFoundError saying what to get."""
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"no {remedy} (looked at {', '.join(map(str, places))})")


def _lpips_heads():
    package = importlib.util.find_spec("lpips")
    places = [Path(package.origin).parent / "weights/v0.1/vgg.pth"] if package else []
    places.append(torch_cache("weights-vgg16-lpips.pth"))
    return find_weights(places, "LPIPS heads: pip install lpips, or name a weight file of `lpips`")


def _vgg16_trunk():
    return find_weights([torch_cache("vgg16-397923af.pth")],
                        "VGG16 weights for LPIPS: let torchvision download VGG16_Weights.IMAGENET1K_V1, "
                        "or name a file of `vgg16`")


def _copy(targets, tensors, what):
    if [t.shape for t in targets] != [t.shape for t in tensors]:
        raise ValueError(f"the weight file's {what} has {len(tensors)} tensors that do not fit this network's "
                         f"{len(targets)} {what} tensors")
    with torch.no_grad():
        for target, tensor in zip(targets, tensors):
            target.copy_(tensor)
