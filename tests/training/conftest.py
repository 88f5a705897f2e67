import pytest
import torch
from accelerate.state import AcceleratorState
from tiny_training import FakeText, tiny_config

from muse.training.trainer import Trainer


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
    """One thread (bitwise comparisons, shared machines) and a text encoder without files."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr("muse.training.cache.TextEncoder", FakeText)
    AcceleratorState._reset_state(True)  # one per process otherwise, with the precision of the first
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def parent(tmp_path_factory):
    """Run directory of a stage 1 that trained for one step: the shards lie beside it."""
    root = tmp_path_factory.mktemp("parent")
    Trainer(tiny_config(root, 1, training=dict(max_train_steps=1))).run()
    return root / "stage1"
