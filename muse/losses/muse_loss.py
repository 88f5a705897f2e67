"""The weighted sum of all losses and its report: the only place where weights meet losses."""
import torch
import torch.nn as nn

from muse.losses.adversarial import LeCam, generator_loss, hinge_loss
from muse.losses.contrastive import itc_loss
from muse.losses.reconstruction import pixel_loss
from muse.losses.topology import topology_loss


class MUSE_Loss(nn.Module):
    """Pixel + perceptual + GAN + topology + ITC; each term is defined in its own file.

    Args: config: LossesConfig; max_train_steps: the discriminator is built only if it starts before this step.
    """

    def __init__(self, config, max_train_steps=float("inf")):
        super().__init__()
        from muse.models.discriminator import PatchDiscriminator
        from muse.models.perceptual_loss import PerceptualLoss
        self.config = config
        self.perceptual = (PerceptualLoss(config.perceptual_loss, config.perceptual_weights)
                           if config.perceptual_weight > 0 else None)
        adversarial = config.discriminator_weight > 0 and config.discriminator_start < max_train_steps
        self.discriminator = PatchDiscriminator(config.discriminator_channels) if adversarial else None
        self.lecam = LeCam(config.lecam_decay)
        self.logvar = nn.Parameter(torch.zeros(())) if config.learn_logvar else None

    @property
    def needs_teacher(self):
        return self.config.topology_weight > 0

    @property
    def needs_text(self):
        return self.config.itc_weight > 0

    def adversarial_at(self, step):
        """Whether GAN terms are active at `step`."""
        return self.discriminator is not None and step >= self.config.discriminator_start

    def forward(self, output, images, teacher=None, text=None, logit_scale=None, step=0):
        """(total, report) for one batch.

        Args: output: MuseOutput; images: B 3 H W in [0, 1]; teacher: (map, grid) where L_topo has weight; text: B D
        unit-length embeddings and the model's logit_scale where L_ITC has weight. Report: the unweighted terms, detached.
        """
        c, terms = self.config, {}
        reconstruction = output.reconstruction.clamp(0, 1)
        pixel = pixel_loss(images, reconstruction, c.reconstruction_loss)
        terms["pixel"] = pixel
        total = c.reconstruction_weight * self._adapt(pixel)
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(images, reconstruction)
            total = total + c.perceptual_weight * terms["perceptual"]
        if self.adversarial_at(step):
            terms["gan"] = self._generator(reconstruction)
            total = total + c.discriminator_weight * terms["gan"]
        if self.needs_teacher:
            terms["topology"] = topology_loss(output.attention, *teacher, output.latent.shape[-2:])
            total = total + c.topology_weight * terms["topology"]
        if self.needs_text:
            terms["itc"] = itc_loss(output.semantic, text, logit_scale)
            total = total + c.itc_weight * terms["itc"]
        return total, {"total": total.detach(), **{name: term.detach() for name, term in terms.items()}}

    def _adapt(self, pixel):
        return pixel if self.logvar is None else pixel / self.logvar.exp() + self.logvar

    def _generator(self, reconstruction):
        self.discriminator.requires_grad_(False)  # its own step trains it
        loss = generator_loss(self.discriminator(reconstruction))
        self.discriminator.requires_grad_(True)
        return loss

    def discriminator_loss(self, images, reconstruction, discriminator=None):
        """(loss, report) of the discriminator's own step; `discriminator`: its distributed wrapper, where there is one."""
        discriminator = discriminator or self.discriminator
        both = torch.cat((images, reconstruction.detach().clamp(0, 1)))
        real, fake = discriminator(both).float().chunk(2)
        hinge, lecam = hinge_loss(real, fake), self.lecam(real, fake)
        loss = hinge + self.config.lecam_weight * lecam
        return loss, {"d_loss": loss.detach(), "d_real": real.detach().mean(), "d_fake": fake.detach().mean(),
                      "lecam": lecam.detach()}
