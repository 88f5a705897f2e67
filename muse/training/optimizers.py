"""AdamW over the parameters that train: weight decay where it belongs, the encoder at its own rate."""
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import AdamW

from muse.utils.lr_schedulers import build_scheduler


def decays(parameter):
    """Weight decay falls on matrices and kernels only: norms, biases and scales have at most one dimension."""
    return parameter.ndim > 1


def parameter_groups(named_parameters, learning_rate, encoder_factor, weight_decay):
    """Up to four groups {encoder, rest} x {decay, no decay} of what requires gradient; empty ones are left out.

    Names under `encoder.` train at `encoder_factor` x `learning_rate`. Each group carries its `name`.
    """
    groups = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        part = "encoder" if name.startswith("encoder.") else "model"
        decay = decays(parameter)
        group = groups.setdefault((part, decay), {
            "name": f"{part}{'' if decay else ', no decay'}", "params": [],
            "lr": learning_rate * (encoder_factor if part == "encoder" else 1.0),
            "weight_decay": weight_decay if decay else 0.0})
        group["params"].append(parameter)
    return list(groups.values())


def build_optimizer(named_parameters, config, learning_rate, encoder_factor=1.0):
    """AdamW (fused where torch has it) for `named_parameters`.

    config: OptimizerConfig, of which betas and weight decay are read here; ValueError for another name than adamw.
    """
    if config.name != "adamw":
        raise ValueError(f"optimizer.name is {config.name!r}: only adamw is available")
    params = config.params
    groups = parameter_groups(named_parameters, learning_rate, encoder_factor, params.weight_decay)
    kernel = "fused" if groups[0]["params"][0].device.type in ("cuda", "cpu") else "foreach"
    return AdamW(groups, lr=learning_rate, betas=(params.beta1, params.beta2), **{kernel: True})


@dataclass
class Learner:
    """An optimizer with its schedule: what the tokenizer has, and the discriminator of its own."""
    optimizer: Any
    scheduler: Any
    last_rates: dict = field(default_factory=dict)  # learning rates of the last update, see rates()

    @classmethod
    def build(cls, named_parameters, config, learning_rate, total_steps, encoder_factor=1.0):
        """config: MuseConfig; the schedule counts this optimizer's own steps, `total_steps` in all."""
        optimizer = build_optimizer(named_parameters, config.optimizer, learning_rate, encoder_factor)
        return cls(optimizer, build_scheduler(optimizer, config.lr_scheduler, total_steps, learning_rate))

    def clip(self, scaler, max_norm):
        """Unscale the gradients, clip their norm to `max_norm`, return the norm before clipping (scalar tensor)."""
        scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm)

    def update(self, scaler):
        """One optimizer step, one schedule step, gradients cleared."""
        self.last_rates = self.rates()
        scaler.step(self.optimizer)
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)

    def rates(self):
        """Current learning rates by group: {"lr": ..., "lr_encoder": ...} where the encoder trains."""
        rates = {group["name"].split(",")[0]: group["lr"] for group in self.optimizer.param_groups}
        return {{"model": "lr", "encoder": "lr_encoder"}[part]: rate for part, rate in rates.items()}

    def state_dict(self):
        """Moments of the optimizer and the number of its steps."""
        return {"moments": self.optimizer.state_dict()["state"], "steps": self.scheduler.last_epoch}

    def load_state_dict(self, state):
        """Continue from `state_dict()`. Rates, betas and decay stay the configuration's, which may have changed."""
        steps = state["steps"]
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state["moments"]})
        self.scheduler.load_state_dict({**self.scheduler.state_dict(), "last_epoch": steps, "_step_count": steps + 1})
        rates = zip(self.optimizer.param_groups, self.scheduler.base_lrs, self.scheduler.lr_lambdas)
        for group, base, factor in rates:
            group["lr"] = base * factor(steps)
