import pytest
import torch
from tiny_training import FakeText


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
    """One thread (bitwise comparisons, shared machines) and a text encoder without files."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr("muse.training.cache.TextEncoder", FakeText)
    yield
    torch.set_num_threads(threads)
