"""ITC: its value, identical captions, and negatives from all processes with gradient."""
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from muse.losses.contrastive import itc_loss


def pairs(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [F.normalize(torch.randn(n, 8, generator=generator), dim=-1) for _ in range(2)]


def test_value_by_hand():
    image, text = pairs(4)
    logits = 2.0 ** 0.5 * image @ text.t()
    expected = -(logits.log_softmax(0).diagonal() + logits.log_softmax(1).diagonal()).mean() / 2
    assert itc_loss(image, text, torch.tensor(2.0 ** 0.5).log()).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_identical_captions_are_not_negatives_of_each_other(autocast):
    image, text = pairs(3)
    text = text[[0, 1, 0]]
    logits = 9.0 * image @ text.t()
    kept = [[0, 1], [0, 1, 2], [1, 2]]  # per row and, the mask being symmetric, per column
    towards_text = [logits[i, k].logsumexp(0) - logits[i, i] for i, k in enumerate(kept)]
    towards_image = [logits[k, i].logsumexp(0) - logits[i, i] for i, k in enumerate(kept)]
    expected = torch.stack(towards_text + towards_image).mean()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = itc_loss(image, text, torch.tensor(9.0).log())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_one_caption_for_all_leaves_nothing_to_tell_apart():
    image, text = pairs(4)
    assert itc_loss(image, text[:1].expand(4, -1), torch.tensor(2.0)).item() == pytest.approx(0, abs=1e-6)


def test_the_temperature_is_bounded():
    image, text = pairs(4)
    assert itc_loss(image, text, torch.tensor(9.0)) == itc_loss(image, text, torch.tensor(100.0).log())


def _process(rank, port, results):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    image, text = pairs(6)
    mine = image[rank * 3:rank * 3 + 3].clone().requires_grad_()
    loss = itc_loss(mine, text[rank * 3:rank * 3 + 3], torch.tensor(2.0))
    loss.backward()
    results[rank] = (loss.item(), (mine.grad / 2).tolist())  # DDP averages over the two processes
    dist.destroy_process_group()


def test_two_processes_give_the_loss_and_gradient_of_one_large_batch():
    image, text = pairs(6)
    image.requires_grad_()
    loss = itc_loss(image, text, torch.tensor(2.0))
    loss.backward()
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_process, args=(29517 + os.getpid() % 1000, results), nprocs=2)
        values, gradients = zip(*(results[rank] for rank in range(2)))
    assert values == (pytest.approx(loss.item(), rel=1e-6),) * 2
    assert torch.allclose(torch.tensor(gradients).flatten(0, 1), image.grad, atol=1e-6)
