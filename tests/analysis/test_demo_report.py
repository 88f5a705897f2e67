"""The demo's table and picture, from figures made up here."""
import numpy as np
import pytest
import torch

from muse.analysis.demo_report import ROWS, heat, picture, spread_table, table

MOMENTS = ("start", "stage1", "stage2", "stage3")


def summary(shift=0.0):
    """Metric i of moment j is 10 i + j + shift."""
    values = {moment: {name: 10.0 * i + j + shift for i, (name, *_) in enumerate(ROWS)}
              for j, moment in enumerate(MOMENTS)}
    return {**values, "majority_share": 0.1875, "linear_probe_encoder_top1": 0.625, "seconds": 61.4,
            "peak_memory_mb": 1273, "images_seen": 2624, "seconds_by_step": {"train stage1": 30.0}, "quick": True}


def cells(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_table_has_every_metric_at_every_moment_and_the_runs_own_figures():
    text = table(summary())
    head, rule, *rows = cells(text)
    assert head == ["metric", "better", *MOMENTS] and len(rule) == 6
    assert [row[2:] for row in rows] == [[f"{10 * i + j}.000" for j in range(4)] for i in range(len(ROWS))]
    directions = {name: row[1] for (name, *_), row in zip(ROWS, rows)}
    assert [directions[name] for name in ("topology_kl", "psnr", "st_lpips", "psnr_mean_colour")] == [
        "lower", "higher", "lower", ""]
    for words in ("frozen encoder: 0.625", "largest class: 0.188", "2624 training images", "61 s", "1273 MB"):
        assert words in text


def test_spread_is_mean_and_sample_standard_deviation():
    head, _, *rows = cells(spread_table([summary(0), summary(1), summary(5)]))
    assert head[0] == "metric, 3 seeds" and head[2:] == list(MOMENTS)
    spread = np.std([0, 1, 5], ddof=1)
    assert [row[2:] for row in rows] == [[f"{10 * i + j + 2:.3f} ± {spread:.3f}" for j in range(4)]
                                         for i in range(len(ROWS))]


def shown(side=16, count=3):
    """Reconstructions of one grey per stage; attention on one token: the teacher's first, the student's last."""
    teacher = torch.zeros(count, 64, 64)
    teacher[..., 0] = 1
    received = torch.zeros(count, 4, 4)
    received[:, -1, -1] = 1
    images = torch.ones(count, 3, side, side)
    return {moment: {"images": images, "reconstructions": torch.full_like(images, 0.2 * j), "received": received,
                     "teacher": teacher} for j, moment in enumerate(MOMENTS)}


def test_picture_has_photographs_reconstructions_and_attention():
    image = picture(shown())
    assert image.size[1] == 4 + 7 * (16 + 4) and image.size[0] > 3 * (16 + 4)
    pixels = np.asarray(image)
    tiles = [pixels[4 + 20 * row:20 + 20 * row, -20:-4] for row in range(7)]  # the last column
    assert [tile.mean() for tile in tiles[:4]] == [255, 51, 102, 153]
    teacher, first, last = (tile.astype(int).sum(-1) for tile in tiles[4:])
    assert teacher[:2, :2].mean() > teacher[-2:, -2:].mean() and last[-2:, -2:].mean() > last[:2, :2].mean()
    assert (first == last).all()


def test_heat_spreads_each_map_over_the_whole_colour_range():
    maps = torch.tensor([[[0.0, 1.0], [0.5, 1.0]], [[0.3, 0.3], [0.3, 0.3]], [[0.0, 0.01], [0.005, 0.01]]])
    colours = heat(maps, (8, 6))
    assert colours.shape == (3, 3, 8, 6) and 0 <= colours.min() and colours.max() <= 1
    torch.testing.assert_close(colours[0], colours[2], atol=0.01, rtol=0)
    assert colours[1].flatten(1).std(1).max() == pytest.approx(0, abs=1e-6)  # nothing to see, and no division by 0
    assert colours[0, :, 0, -1].tolist() == pytest.approx([0.993, 0.906, 0.144], abs=2e-3)  # viridis' yellow
