"""Image-text contrastive loss (ITC): symmetric InfoNCE over the batches of all processes."""
import torch
import torch.distributed as dist
import torch.nn.functional as F

from muse.models.layers import MAX_LOGIT_SCALE, scale_gradient

SAME_CAPTION = 0.9999  # cosine of two embeddings of one caption; padding moves the last digits


def gather_with_gradient(x):
    """Concatenate B x D over processes, so that a loss over the result, averaged over processes, trains as one batch.

    Each process sees the whole loss but only its own rows' gradient; scaled by the number of processes, the average
    over them is the sum.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    parts[dist.get_rank()] = scale_gradient(x, len(parts))
    return torch.cat(parts)


def itc_loss(image, text, logit_scale):
    """Symmetric InfoNCE at temperature exp(-logit_scale).

    Args: image, text: B x D unit-length embeddings; logit_scale: scalar, bounded at ln 100 as in CLIP. Pairs with the
    same caption are no negatives of each other. Every process returns the loss over the global batch, so that gradients
    averaged over processes are those of one large batch.
    """
    with torch.autocast(image.device.type, enabled=False):  # bf16 could tell neither captions nor logits apart
        image, text = gather_with_gradient(image.float()), gather_with_gradient(text.float())
        logits = logit_scale.float().clamp(max=MAX_LOGIT_SCALE).exp() * image @ text.t()  # B B
        same = text.double() @ text.double().t() > SAME_CAPTION
        same.fill_diagonal_(False)
        logits = logits.masked_fill(same, float("-inf"))
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2
