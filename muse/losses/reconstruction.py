"""Pixel loss."""
import torch.nn.functional as F


def pixel_loss(images, reconstruction, kind="l2"):
    """Mean squared ("l2") or absolute ("l1") difference of images in [0,1], both B 3 H W; a float32 scalar.

    The reconstruction is clamped to [0,1] as the viewer will see it, so pixels beyond the range carry no gradient.
    """
    if kind not in ("l1", "l2"):
        raise ValueError(f"reconstruction_loss is '{kind}': choose l1 or l2")
    loss = F.mse_loss if kind == "l2" else F.l1_loss
    return loss(reconstruction.float().clamp(0, 1), images.float())
