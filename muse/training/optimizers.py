"""AdamW over the parameters that train: weight decay where it belongs, the encoder at its own rate."""
from torch.optim import AdamW


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
    if not groups:
        raise ValueError("no parameter requires gradient: the stage freezes everything")
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
