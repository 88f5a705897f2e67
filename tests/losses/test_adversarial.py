"""Hinge, LeCam and generator losses against the public release's values and by hand."""
import pytest
import torch

from muse.losses.adversarial import LeCam, generator_loss, hinge_loss, lecam


def test_hinge_and_lecam_of_the_release(golden, golden_json):
    real, fake, scalars = golden["discriminator_real"], golden["discriminator_fake"], golden_json("scalars.json")
    assert hinge_loss(real, fake).item() == pytest.approx(scalars["hinge"], abs=1e-6)
    value = lecam(real, fake, torch.tensor(0.3), torch.tensor(-0.2))
    assert value.item() == pytest.approx(scalars["lecam(ema_real=.3,ema_fake=-.2)"], abs=1e-6)


def test_hinge_is_zero_beyond_the_margins_and_has_slopes_inside():
    real, fake = torch.tensor([2.0, 0.0], requires_grad=True), torch.tensor([-2.0, 0.0], requires_grad=True)
    loss = hinge_loss(real, fake)
    loss.backward()
    assert loss.item() == 0.5
    assert real.grad.tolist() == [0, -0.25] and fake.grad.tolist() == [0, 0.25]


def test_generator_raises_the_fake_logits():
    fake = torch.tensor([1.0, -3.0], requires_grad=True)
    generator_loss(fake).backward()
    assert fake.grad.tolist() == [-0.5, -0.5]


def test_lecam_uses_the_means_of_earlier_steps_then_moves_them():
    module = LeCam(decay=0.9)
    real, fake = torch.full((4,), 2.0, requires_grad=True), torch.full((4,), -1.0, requires_grad=True)
    first = module(real, fake)
    assert first.item() == 2.0 ** 2 + 1.0 ** 2  # against means of zero
    assert module.ema_real.item() == pytest.approx(0.2) and module.ema_fake.item() == pytest.approx(-0.1)
    second = module(real, fake)
    assert second.item() == pytest.approx(2.1 ** 2 + 1.2 ** 2)
    (first + second).backward()  # the moved means must not break the first step's graph
    assert real.grad.sum().item() == pytest.approx(2 * 2.0 + 2 * 2.1)
    assert set(module.state_dict()) == {"ema_real", "ema_fake"}


def test_half_precision_logits_are_reduced_in_float32():
    real, fake = torch.full((3000,), 0.501, dtype=torch.bfloat16), torch.zeros(3000, dtype=torch.bfloat16)
    for loss in (hinge_loss(real, fake), generator_loss(fake), LeCam()(real, fake)):
        assert loss.dtype == torch.float32
    assert hinge_loss(real, fake).item() == pytest.approx(0.5 * (1 - 0.5) + 0.5, abs=2e-3)


def _mean_over_processes(rank, port, results):
    import torch.distributed as dist
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    module = LeCam(decay=0.0)
    module.update(torch.tensor([float(rank)]), torch.tensor([10.0 * rank]))
    results[rank] = (module.ema_real.item(), module.ema_fake.item())
    dist.destroy_process_group()


def test_running_means_are_averaged_over_processes():
    import socket
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(_mean_over_processes, (port, results), nprocs=2)
        assert dict(results) == {0: (0.5, 5.0), 1: (0.5, 5.0)}
