"""Adversarial losses (hinge and LeCam, as in the public release). Logits of any shape, in and out of float32 by the caller's autocast."""
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn


def generator_loss(fake):
    """-mean D(fake): what the tokenizer minimises."""
    return -fake.float().mean()


def hinge_loss(real, fake):
    """Half the sum of mean relu(1 - D(real)) and mean relu(1 + D(fake)); a float32 scalar."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


def lecam(real, fake, ema_real, ema_fake):
    """LeCam regularisation (Tseng et al., CVPR 2021): squared excess of the mean logits over the other side's EMA."""
    return F.relu(real.float().mean() - ema_fake) ** 2 + F.relu(ema_real - fake.float().mean()) ** 2


class LeCam(nn.Module):
    """`lecam` against running means of the logits over steps and processes; its state belongs in a checkpoint."""

    def __init__(self, decay=0.999):
        super().__init__()
        self.decay = decay
        self.register_buffer("ema_real", torch.zeros(()))
        self.register_buffer("ema_fake", torch.zeros(()))

    def forward(self, real, fake):
        """The scalar for this step, from the means of the steps before; then the means move on."""
        loss = lecam(real, fake, self.ema_real.clone(), self.ema_fake.clone())
        self.update(real, fake)
        return loss

    @torch.no_grad()
    def update(self, real, fake):
        """Move both running means towards this step's, averaged over processes; no host synchronisation."""
        means = torch.stack([real.float().mean(), fake.float().mean()])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(means)
            means /= dist.get_world_size()
        self.ema_real.lerp_(means[0], 1 - self.decay)
        self.ema_fake.lerp_(means[1], 1 - self.decay)
