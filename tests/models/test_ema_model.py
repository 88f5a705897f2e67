import pytest
import torch

from muse.models.ema_model import EMAModel, decay_at

# measured on the public release: decay by update, and (decay, trained average, frozen value) while both count up
DECAYS = {0: 0.0, 1: 0.0, 2: 0.18181818181818182, 3: 0.25, 10: 0.5263157894736842, 100: 0.9174311926605505,
          1000: 0.9910802775024777, 8990: 0.9989998888765418, 9000: 0.999, 50000: 0.999}
TRACE = [(0.0, 1.0, 10.0), (0.18181818181818182, 1.8181817531585693, 20.0), (0.25, 2.704545497894287, 30.0),
         (0.3076923076923077, 3.6013987064361572, 40.0), (0.35714285714285715, 4.500499725341797, 50.0)]


class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.trained = torch.nn.Parameter(torch.zeros(3))
        self.frozen = torch.nn.Parameter(torch.zeros(2), requires_grad=False)


def test_decay_is_warmed_and_capped():
    assert {step: decay_at(step, 0.999) for step in DECAYS} == pytest.approx(DECAYS, abs=1e-12)


def test_averages_follow_the_measured_trace_and_leave_frozen_parts_alone():
    model = Two()
    ema = EMAModel(model, 0.999)
    for n, (decay, trained, frozen) in enumerate(TRACE, 1):
        model.trained.data.fill_(n)
        model.frozen.data.fill_(10 * n)
        ema.step()
        assert decay_at(ema.updates, ema.decay) == pytest.approx(decay)
        with ema.applied():
            assert model.trained[0].item() == pytest.approx(trained, rel=1e-6)
            assert model.frozen[0].item() == frozen
        assert model.trained[0].item() == n
    assert list(ema.shadow) == ["trained"]


def test_weights_come_back_when_the_block_fails():
    model = Two()
    ema = EMAModel(model)
    model.trained.data.fill_(5)
    with pytest.raises(RuntimeError), ema.applied():
        assert model.trained[0] == 0
        raise RuntimeError
    assert model.trained[0] == 5


def test_resumed_averages_continue_exactly():
    straight, resumed = Two(), Two()
    a = EMAModel(straight)
    b = None
    for n in range(1, 8):
        if n == 4:
            b = EMAModel(resumed)
            b.load_state_dict({"updates": a.updates, "shadow": {k: v.clone() for k, v in a.shadow.items()}})
        for model, ema in ((straight, a), (resumed, b)):
            if ema is not None:
                model.trained.data.fill_(n * 1.7)
                ema.step()
    assert torch.equal(a.shadow["trained"], b.shadow["trained"]) and a.updates == b.updates == 7


def test_foreign_averages_and_impossible_decays_are_refused():
    ema = EMAModel(Two())
    with pytest.raises(ValueError, match="trained differ in name or shape"):
        ema.load_state_dict({"updates": 1, "shadow": {"trained": torch.zeros(4)}})
    with pytest.raises(ValueError, match="ema_decay is 1.5"):
        EMAModel(Two(), 1.5)
