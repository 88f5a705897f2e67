import numpy as np
import pytest
import torch

from muse.utils.viz_utils import GAP, EvenlySpaced, image_grid, to_pil


def test_to_pil_rounds_half_up_and_clamps():
    values = torch.tensor([-1.0, 0.4 / 255, 0.5 / 255, 1.6 / 255, 254.6 / 255, 3.0])
    pixels = np.asarray(to_pil(values.view(1, 1, 6).expand(3, 1, 6)))
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 2, 255, 255]


def test_grid_places_every_image_and_draws_labels():
    first, second = torch.zeros(3, 3, 32, 40), torch.zeros(3, 3, 32, 40)
    second[2, 0] = 1.0
    plain = np.asarray(image_grid([first, second]))
    assert plain.shape == (GAP + 2 * (32 + GAP), GAP + 3 * (40 + GAP), 3)
    y, x = GAP + (32 + GAP), GAP + 2 * (40 + GAP)
    assert (plain[y:y + 32, x:x + 40] == [255, 0, 0]).all()
    assert (plain[:GAP] == 255).all()
    labelled = np.asarray(image_grid([first, second], ["original", "reconstruction"], ["a", "b", "a very long name indeed"]))
    assert labelled.shape[0] > plain.shape[0] and labelled.shape[1] > plain.shape[1]
    margin = labelled[-32 - GAP:-GAP, :labelled.shape[1] - plain.shape[1]]
    assert (margin < 128).any()  # the label of the last row


def test_grid_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="equal"):
        image_grid([torch.zeros(2, 3, 8, 8), torch.zeros(3, 3, 8, 8)])
    with pytest.raises(ValueError, match="1 labels for 2"):
        image_grid([torch.zeros(2, 3, 8, 8)] * 2, ["only one"])


@pytest.mark.parametrize("length", [0, 1, 5, 8, 17, 100, 1000])
def test_evenly_spaced_covers_the_stream(length):
    keeper = EvenlySpaced(8)
    for i in range(length):
        keeper.add(i)
    items = keeper.items()
    assert len(items) == min(8, length) and items == sorted(set(items))
    if length >= 8:
        assert items[0] == 0 and items[-1] >= 0.85 * (length - 1)
        steps = np.diff(items)
        assert steps.max() <= 2 * steps.min()
