import torch

from muse.training.cache import FrozenCache


def test_rows_are_computed_once_and_stay_the_same():
    seen = []

    def compute(items):
        seen.append(len(items))
        return items * 1.001

    cache = FrozenCache(compute, torch.bfloat16)
    items = torch.arange(3.0)[:, None] + 1
    first = cache(["a", "b", "a"], items[[0, 1, 0]])
    second = cache(["b", "c", "a"], items[[1, 2, 0]])
    assert seen == [2, 1]
    assert torch.equal(first[0], first[2]) and torch.equal(first[[1, 0]], second[[0, 2]])
    assert first.dtype == torch.bfloat16 and torch.equal(second, (items[[1, 2, 0]] * 1.001).bfloat16())


def test_the_oldest_rows_make_room():
    cache = FrozenCache(lambda captions: torch.tensor([[float(len(c))] for c in captions]), max_entries=2)
    assert cache(["a", "bb", "ccc"], ["a", "bb", "ccc"]).flatten().tolist() == [1, 2, 3]
    assert list(cache.rows) == ["bb", "ccc"]
    assert cache(["a", "ccc"], ["a", "ccc"]).flatten().tolist() == [1, 3]
