import pytest
import torch

from muse.config.schema import OptimizerConfig, OptimizerParams
from muse.training.optimizers import build_optimizer, parameter_groups


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
        self.to_latent = torch.nn.Linear(2, 2)
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.0))
        self.frozen = torch.nn.Parameter(torch.zeros(2, 2), requires_grad=False)


def test_decay_and_rates_by_group():
    net = Net()
    names = {id(p): name for name, p in net.named_parameters()}
    groups = {g["name"]: g for g in parameter_groups(net.named_parameters(), 0.1, 0.5, 1e-4)}
    found = {key: ({names[id(p)] for p in g["params"]}, g["lr"], g["weight_decay"]) for key, g in groups.items()}
    assert found == {
        "encoder": ({"encoder.0.weight"}, 0.05, 1e-4),
        "encoder, no decay": ({"encoder.0.bias", "encoder.1.weight", "encoder.1.bias"}, 0.05, 0.0),
        "model": ({"to_latent.weight"}, 0.1, 1e-4),
        "model, no decay": ({"to_latent.bias", "logit_scale"}, 0.1, 0.0)}


def test_parameters_that_hear_no_loss_stay_as_they_are():
    net = Net()
    optimizer = build_optimizer(net.named_parameters(), OptimizerConfig(params=OptimizerParams(weight_decay=0.5)), 0.1)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    net.to_latent(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    changed = {name for name, p in net.named_parameters() if not torch.equal(before[name], p)}
    assert changed == {"to_latent.weight", "to_latent.bias"}


def test_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="'lion': only adamw"):
        build_optimizer(Net().named_parameters(), OptimizerConfig(name="lion"), 0.1)
