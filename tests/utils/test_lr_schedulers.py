import pytest
import torch

from muse.config.schema import SchedulerConfig, SchedulerParams
from muse.utils.lr_schedulers import build_scheduler, factor_at

# measured on the public release: base 4e-4, end 1e-5, 20 warm-up steps of 100; beyond the end ours stays, its rises
COSINE = {0: 0.0, 1: 2e-05, 5: 1e-4, 10: 2e-4, 19: 3.8e-4, 20: 4e-4, 21: 0.000399849662066941,
          40: 0.0003428858223313768, 60: 0.000205, 80: 6.711417766862324e-05, 99: 1.0150337933059034e-05, 100: 1e-05,
          101: 1e-05, 130: 1e-05}
CONSTANT = {0: 0.0, 1: 2e-05, 10: 2e-4, 20: 4e-4, 60: 4e-4, 100: 4e-4, 130: 4e-4}
TWO_GROUPS = {0: (0.0, 0.0), 5: (2.5e-05, 1.25e-05), 10: (5e-05, 2.5e-05), 30: (2.55e-05, 1.275e-05),
              49: (1.0755253235383648e-06, 5.377626617691824e-07), 50: (1e-06, 5e-07)}


def rates(config, total_steps, lrs, steps):
    optimizer = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs])
    scheduler = build_scheduler(optimizer, config, total_steps, lrs[0])
    seen = {}
    for step in range(max(steps) + 1):
        seen[step] = tuple(group["lr"] for group in optimizer.param_groups)
        optimizer.step()
        scheduler.step()
    return {step: seen[step] for step in steps}


@pytest.mark.parametrize("kind, expected", [("cosine", COSINE), ("constant", CONSTANT)])
def test_rates_by_step(kind, expected):
    found = rates(SchedulerConfig(kind, SchedulerParams(20, 1e-5)), 100, [4e-4], expected)
    assert {step: lr for step, (lr,) in found.items()} == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_a_group_at_half_the_rate_stays_at_half():
    found = rates(SchedulerConfig("cosine", SchedulerParams(10, 1e-6)), 50, [5e-5, 2.5e-5], TWO_GROUPS)
    for step, expected in TWO_GROUPS.items():
        assert found[step] == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_no_warm_up_and_a_warm_up_as_long_as_the_run():
    assert factor_at(0, "cosine", 0, 10, 0.1) == 1.0
    assert factor_at(10, "cosine", 10, 10, 0.1) == 1.0 and factor_at(11, "cosine", 10, 10, 0.1) == pytest.approx(0.1)


def test_unknown_schedule_is_refused():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match="'linear': choose one of cosine, constant"):
        build_scheduler(optimizer, SchedulerConfig("linear"), 10, 1.0)
