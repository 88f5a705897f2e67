"""Processes and precision: the Accelerator, and the module that DistributedDataParallel wraps."""
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import ProjectConfiguration

from muse.training.tracking import check_trackers


def build_accelerator(config):
    """Accelerator for the processes and precision that a MuseConfig asks for.

    ValueError where a tracker is not installed or the device cannot compute in training.mixed_precision.
    """
    check_trackers(config.experiment.trackers)
    output_dir, precision = Path(config.experiment.output_dir), config.training.mixed_precision
    try:
        accelerator = Accelerator(
            mixed_precision=precision, log_with=config.experiment.trackers or None,
            project_config=ProjectConfiguration(str(output_dir), logging_dir=str(output_dir / "tensorboard")),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)])
    except ValueError as error:
        raise ValueError(f"training.mixed_precision={precision} is not possible on this device ({error}): use bf16 or "
                         f"no") from error
    if config.training.enable_tf32:
        torch.set_float32_matmul_precision("high")
    return accelerator


class LossGraph(torch.nn.Module):
    """The tokenizer and its loss as one forward pass: inputs -> (total, report, reconstruction), the last two detached.

    DistributedDataParallel wraps this, not the tokenizer alone. Some parameters hear no loss by design (FACTS,
    gradient routes), and DDP finds them by walking back from what forward returns: that must be the loss, since
    outputs that no loss reads would count as used and be waited for.
    """

    def __init__(self, model, loss):
        super().__init__()
        self.model = model
        self.logvar = loss.logvar  # the one trained parameter of the loss, None unless losses.learn_logvar
        self.loss = loss.forward   # a bound method: the loss's own networks stay out of this module

    def forward(self, images, step, tokens=None, teacher=None, text=None):
        """images: B 3 H W; tokens: B N C or None; teacher: (map, grid) or None; text: B D or None; step from 0."""
        output = self.model(images, tokens=tokens, attention=teacher is not None)
        total, report = self.loss(output, images, teacher=teacher, text=text, logit_scale=self.model.logit_scale, step=step)
        return total, report, output.reconstruction.detach()

    def trained(self):
        """(name, parameter) pairs as the tokenizer names them, the loss's own parameter last."""
        return ((name.removeprefix("model."), p) for name, p in self.named_parameters())
