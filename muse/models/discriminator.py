"""PatchGAN discriminator with blurred down-sampling, as in the public release."""
import torch
import torch.nn.functional as F
from torch import nn


class BlurDownsample(nn.Module):
    """[1, 3, 3, 1] blur of every channel at stride 2, zero SAME padding: B C H W -> B C ceil(H/2) ceil(W/2)."""

    def __init__(self):
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", torch.outer(taps, taps)[None, None])  # 1 1 4 4

    def forward(self, x):
        channels, (height, width) = x.shape[1], x.shape[2:]
        x = F.pad(x, (1, 1 + width % 2, 1, 1 + height % 2))
        return F.conv2d(x, self.kernel.to(x.dtype).expand(channels, 1, 4, 4), stride=2, groups=channels)


class PatchDiscriminator(nn.Module):
    """Real-or-fake logits of patches: images [0,1] B 3 H W -> B 1 16 16, for any H and W."""

    def __init__(self, base_channels=128, stages=3, groups=32, logits_size=16):
        super().__init__()
        self.logits_size = logits_size
        self.block_in = nn.Sequential(nn.Conv2d(3, base_channels, 5, padding=2), nn.LeakyReLU(0.1))
        self.blocks = nn.ModuleList()
        channels = base_channels
        for stage in range(stages):
            wider = base_channels * 2 ** stage
            self.blocks.append(nn.Sequential(nn.Conv2d(channels, wider, 3, padding=1), BlurDownsample(),
                                             nn.GroupNorm(groups, wider), nn.LeakyReLU(0.1)))
            channels = wider
        self.to_logits = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.LeakyReLU(0.1),
                                       nn.Conv2d(channels, 1, 5, padding=2))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.to(memory_format=torch.channels_last)

    def forward(self, images):
        x = self.block_in(images.contiguous(memory_format=torch.channels_last))  # B C H W
        for block in self.blocks:
            x = block(x)  # B C H/2 W/2
        return self.to_logits(F.adaptive_max_pool2d(x, self.logits_size))  # B 1 16 16
