"""Learning rate by optimizer step: linear warm-up, then cosine or constant."""
import math

from torch.optim.lr_scheduler import LambdaLR

SCHEDULES = ("cosine", "constant")


def factor_at(step, kind, warmup_steps, total_steps, end_factor):
    """Learning rate at `step` (from 0) as a fraction of the base rate.

    Warm-up is linear from 0 to 1 over `warmup_steps`. `cosine` then falls to `end_factor` at `total_steps` and stays
    there: steps beyond the end are clamped (the public release's rate rises again).
    """
    if step < warmup_steps:
        return step / warmup_steps
    if kind == "constant":
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return end_factor + (1.0 - end_factor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def build_scheduler(optimizer, config, total_steps, base_lr):
    """LambdaLR for `optimizer`; step it after each of this optimizer's own steps.

    config: SchedulerConfig; its `end_lr` is reached by groups at `base_lr`. A group at a fraction of `base_lr` (the
    encoder) keeps that fraction throughout, its end included.
    """
    kind, warmup_steps = config.scheduler, config.params.warmup_steps
    if kind not in SCHEDULES:
        raise ValueError(f"lr_scheduler.scheduler is {kind!r}: choose one of {', '.join(SCHEDULES)}")
    end_factor = config.params.end_lr / base_lr if base_lr else 1.0
    return LambdaLR(optimizer, lambda step: factor_at(step, kind, warmup_steps, total_steps, end_factor))
