"""Linear probe on frozen features, extracted once: BatchNorm without affine, then Linear."""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from muse.evaluation.features import extract

NAMES = {"pooled": "linear_probe_top1", "encoder": "linear_probe_encoder_top1"}


def fit_probe(features, labels, num_classes, *, epochs=100, learning_rate=0.1, batch_size=1024, seed=0):
    """Train a probe on features and return it in eval mode.

    L2-normalised features, BatchNorm without affine, Linear; SGD of momentum 0.9 without weight decay, cosine to 0.
    Batches are shuffled parts of nearly equal size, at most `batch_size`; few images make one full batch. The
    caller's random state is left alone.

    Args:
        features: N x F.
        labels: int64 N, below num_classes.

    Returns a module N x F -> N x num_classes logits, after the last epoch.
    """
    generator = torch.Generator().manual_seed(seed)
    linear = nn.utils.skip_init(nn.Linear, features.shape[1], num_classes)
    nn.init.normal_(linear.weight, std=0.01, generator=generator)
    nn.init.zeros_(linear.bias)
    probe = nn.Sequential(nn.BatchNorm1d(features.shape[1], affine=False, eps=1e-6), linear).to(features.device)
    parts = math.ceil(len(features) / batch_size)
    optimizer = torch.optim.SGD(probe.parameters(), lr=learning_rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * parts)
    features = F.normalize(features.float(), dim=-1)
    for _ in range(epochs):
        order = torch.randperm(len(features), generator=generator).to(features.device)
        for rows in order.tensor_split(parts):
            optimizer.zero_grad()
            F.cross_entropy(probe(features[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return probe.eval()


@torch.no_grad()
def accuracy(probe, features, labels):
    """Share of rows whose largest logit is the label's, from 0 to 1."""
    return (probe(F.normalize(features.float(), dim=-1)).argmax(1) == labels).double().mean().item()


def probe_features(train, test, num_classes=None, device="cpu", **options):
    """Top-1 of a probe for each feature that both sets hold.

    Args:
        train, test: dicts of `features.extract`, with `label` and any of pooled, encoder.
        num_classes: None: the largest training label + 1.
        device: where the probe trains.
        options: epochs, learning_rate, batch_size, seed of `fit_probe`.

    Returns dict: `linear_probe_top1` (pooled), `linear_probe_encoder_top1` (encoder), each after the last epoch and
    never chosen on the test set, `train_images`, `test_images`. Raises ValueError for a test label that training
    cannot know, and for fewer than 2 training images.
    """
    if len(train["label"]) < 2:
        raise ValueError(f"a linear probe needs at least 2 training images, got {len(train['label'])}: "
                         "check the training shards")
    count = num_classes or int(train["label"].max()) + 1
    for split, data in (("training", train), ("test", test)):
        low, high = int(data["label"].min()), int(data["label"].max())
        if low < 0 or high >= count:
            raise ValueError(f"a {split} label is {low if low < 0 else high}, outside 0 to {count - 1}: "
                             "training and test shards need the same class list")
    result = {"train_images": len(train["label"]), "test_images": len(test["label"])}
    for feature, name in NAMES.items():
        if feature in train:
            probe = fit_probe(train[feature].to(device), train["label"].to(device), count, **options)
            result[name] = accuracy(probe, test[feature].to(device), test["label"].to(device))
    return result


def evaluate_linear_probe(model, train_loader, test_loader, device="cpu", **options):
    """Linear probe of MUSE's pooled semantic feature, and of its vision encoder's own mean-pooled tokens beside it.

    Args:
        model: MUSE_ViT.
        train_loader, test_loader: finite loaders with `image` and `label`.
        device: the model's device; the probe trains there too.
        options: see `probe_features`.
    """
    train, test = (extract(model, loader, (*NAMES, "label"), device) for loader in (train_loader, test_loader))
    return probe_features(train, test, device=device, **options)
