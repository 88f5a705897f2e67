"""Exponential moving average of the weights that train."""
from contextlib import contextmanager

import torch


def decay_at(step, limit):
    """Decay of the `step`-th update, counted from 1: (1 + n) / (10 + n) with n = step - 1, at most `limit`.

    The first update has decay 0: the average starts as a copy of the weights.
    """
    n = step - 1
    return 0.0 if n <= 0 else min((1 + n) / (10 + n), limit)


class EMAModel:
    """Float32 averages of `model`'s parameters that require gradient when this is built; frozen parts are not copied.

    Call `step()` once after each optimizer step, and read the averages inside `with ema.applied():`.
    """

    def __init__(self, model, decay=0.999):
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"training.ema_decay is {decay}: choose a value from 0 up to, not including, 1")
        self.decay = decay
        self.updates = 0
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.shadow = {name: p.detach().float().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def step(self):
        """Average the current weights in, in place; launches a few kernels and never waits for the device."""
        self.updates += 1
        weight = 1.0 - decay_at(self.updates, self.decay)
        current = [p.detach().float() for p in self.parameters.values()]
        torch._foreach_lerp_(list(self.shadow.values()), current, weight)

    @contextmanager
    def applied(self):
        """Inside the block the model holds the averages; afterwards its own weights again, untouched."""
        kept = {name: p.data for name, p in self.parameters.items()}
        try:
            for name, p in self.parameters.items():
                p.data = self.shadow[name].to(p.dtype)
            yield
        finally:
            for name, p in self.parameters.items():
                p.data = kept[name]

    def state_dict(self):
        """The number of updates, from which the decay follows, and the averages by parameter name."""
        return {"updates": self.updates, "shadow": self.shadow}

    @torch.no_grad()
    def load_state_dict(self, state):
        """Continue from `state`; ValueError where its names or shapes are not those of the trained parameters."""
        shapes = {name: tuple(t.shape) for name, t in self.shadow.items()}
        stored = {name: tuple(t.shape) for name, t in state["shadow"].items()}
        if shapes != stored:
            wrong = sorted(name for name in shapes.keys() | stored.keys() if shapes.get(name) != stored.get(name))
            raise ValueError(f"the stored averages do not fit the trained parameters: {', '.join(wrong[:5])}"
                             f"{' and more' if len(wrong) > 5 else ''} differ in name or shape")
        self.updates = state["updates"]
        for name, average in self.shadow.items():
            average.copy_(state["shadow"][name])
