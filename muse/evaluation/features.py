"""One pass over images -> the features that every probe reads."""
import torch
import torch.distributed as dist

from muse.evaluation.evaluator import evaluating, full_precision

FEATURES = {
    "pooled": lambda output: output.pooled,  # B D: mean over tokens of the last block's V_itc
    "semantic": lambda output: output.semantic,  # B semantic_dim, unit norm
    "encoder": lambda output: output.tokens.mean(1),  # B C: the vision encoder's own tokens, mean-pooled
}


@torch.no_grad()
def extract(model, loader, what=("pooled", "semantic", "encoder", "label"), device="cpu"):
    """Features of every image of a loader.

    Args:
        model: MUSE_ViT; read in eval mode and float32, put back into its mode afterwards.
        loader: batches with `image` (uint8 B x 3 x H x W), and with `label` when labels are wanted.
        what: names out of pooled, semantic, encoder, label.
        device: the model's device.

    Returns dict of CPU tensors, float32 N x F and, for `label`, int64 N; over several processes each one gets the
    images of all, in the order of the processes. Raises ValueError for an unknown name or when no image came.
    """
    unknown = [name for name in what if name not in (*FEATURES, "label")]
    if unknown:
        raise ValueError(f"unknown feature {unknown[0]!r}: use some of {', '.join(FEATURES)}, label")
    parts = {name: [] for name in what}
    with evaluating(model), full_precision(device):
        for batch in loader:
            output = model(batch["image"].to(device).float() / 255, decode=False)
            for name in what:
                value = batch["label"] if name == "label" else FEATURES[name](output).float()
                parts[name].append(value.cpu())
    if dist.is_available() and dist.is_initialized():
        everyone = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, parts)
        parts = {name: [part for theirs in everyone for part in theirs[name]] for name in what}
    if not all(parts.values()):
        raise ValueError("no image came out of the shards: check their path and evaluation.max_images")
    return {name: torch.cat(values) for name, values in parts.items()}
