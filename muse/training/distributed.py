"""Processes and precision: the Accelerator, and the module that DistributedDataParallel wraps."""
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from torch.nn.parallel import DistributedDataParallel

from muse.training.tracking import check_trackers


def build_accelerator(config):
    """Accelerator for the processes and precision that a MuseConfig asks for.

    ValueError where a tracker is not installed or the device cannot compute in training.mixed_precision.
    """
    check_trackers(config.experiment.trackers)
    output_dir, precision = Path(config.experiment.output_dir), config.training.mixed_precision
    accelerator = Accelerator(
        cpu=_no_accelerator(),  # said explicitly: else accelerate forms no group of CPU processes
        mixed_precision=precision, log_with=config.experiment.trackers or None,
        project_config=ProjectConfiguration(str(output_dir), logging_dir=str(output_dir / "tensorboard")))
    if precision == "fp16" and accelerator.device.type == "cpu":  # accelerate would compute in float32 and say nothing
        raise ValueError("training.mixed_precision=fp16 needs a GPU, and this run is on the CPU: use bf16 or no")
    if config.training.enable_tf32:
        torch.set_float32_matmul_precision("high")
    return accelerator


def _no_accelerator():
    return not any(getattr(torch, kind).is_available() for kind in ("cuda", "mps", "xpu"))


def distribute(accelerator, module, find_unused=False):
    """`module` under the run's autocast, and in DistributedDataParallel where there are several processes.

    find_unused: some trainable parameters may hear no loss; costs a walk over the graph each step.
    """
    module = accelerator.prepare_model(module, evaluation_mode=True)  # autocast alone
    if accelerator.num_processes == 1:
        return module
    devices = None if accelerator.device.type == "cpu" else [accelerator.device]
    return DistributedDataParallel(module, device_ids=devices, find_unused_parameters=find_unused)


@contextmanager
def local_gradients(accelerator, modules, local):
    """Inside, gradients of `modules` stay in their process where `local`: only a step's last batch needs all-reduce."""
    with ExitStack() as stack:
        for module in modules:
            if local and module is not None:
                stack.enter_context(accelerator.no_sync(module))
        yield


class LossGraph(torch.nn.Module):
    """The tokenizer and its loss as one forward pass: inputs -> (total, report, reconstruction), the last two detached.

    DistributedDataParallel wraps this, not the tokenizer alone. Some parameters hear no loss by design (the routes in
    tests/models/test_muse_vit.py), and DDP finds them by walking back from what forward returns: that must be the
    loss, since outputs that no loss reads would count as used and be waited for.
    """

    def __init__(self, model, loss):
        super().__init__()
        self.model = model
        self.logvar = loss.logvar  # the one trained parameter of the loss, None unless losses.learn_logvar
        self.loss = loss.forward   # a bound method: the loss's own networks stay out of this module

    def forward(self, images, step, tokens=None, teacher=None, text=None):
        """images: B 3 H W; tokens: B N C or None; teacher: (map, grid) or None; text: B D or None; step from 0."""
        output = self.model(images, tokens=tokens, attention=teacher is not None)
        scale = self.model.logit_scale
        total, report = self.loss(output, images, teacher=teacher, text=text, logit_scale=scale, step=step)
        return total, report, output.reconstruction.detach()

    def trained(self):
        """(name, parameter) pairs as the tokenizer names them, the loss's own parameter last."""
        return ((name.removeprefix("model."), p) for name, p in self.named_parameters())
