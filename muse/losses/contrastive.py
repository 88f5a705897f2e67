"""Image-text contrastive loss (ITC): symmetric InfoNCE over the batches of all processes."""
import torch
import torch.distributed as dist
import torch.nn.functional as F

SAME_CAPTION = 0.9999  # cosine of two embeddings of one caption; padding moves the last digits


def gather_with_gradient(x):
    """Concatenate B x D over processes; gradients flow back to every process's own rows."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    from torch.distributed.nn.functional import all_gather
    return torch.cat(all_gather(x.contiguous()))


def itc_loss(image, text, logit_scale):
    """Symmetric InfoNCE at temperature exp(-logit_scale).

    Args: image, text: B x D unit-length embeddings; logit_scale: scalar, bounded at ln 100 as in CLIP. Pairs with the
    same caption are no negatives of each other. Every process returns the loss over the global batch, so that gradients
    averaged over processes are those of one large batch.
    """
    image, text = gather_with_gradient(image.float()), gather_with_gradient(text.float())
    logits = logit_scale.float().clamp(max=4.6052).exp() * image @ text.t()  # B B
    same = text @ text.t() > SAME_CAPTION
    same.fill_diagonal_(False)
    logits = logits.masked_fill(same, float("-inf"))
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2
