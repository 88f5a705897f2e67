import pytest
import torch
import torch.nn.functional as F

from muse.evaluation.features import extract
from muse.evaluation.linear_probe import accuracy, evaluate_linear_probe, fit_probe, probe_features


def clusters(count, noise, seed, classes=5, dim=32):
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    return centres[labels] + noise * torch.randn(count, dim, generator=generator), labels


def split(count, seed, noise=2.0):
    pooled, labels = clusters(count, noise, seed)
    noise = torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))
    return {"pooled": pooled, "encoder": noise, "label": labels}


def test_probe_separates_what_is_separable():
    train, test = split(600, 1, noise=1.0), split(300, 2, noise=1.0)
    result = probe_features(train, test, epochs=20)
    assert result["linear_probe_top1"] > 0.97
    assert 0.1 < result["linear_probe_encoder_top1"] < 0.33  # noise: chance is .2
    assert (result["train_images"], result["test_images"]) == (600, 300)


def test_probe_is_seeded_and_leaves_the_random_state_alone():
    train, test = split(300, 1), split(200, 2)
    state = torch.get_rng_state()
    first = fit_probe(train["pooled"], train["label"], 5, epochs=5, batch_size=64, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    second = fit_probe(train["pooled"], train["label"], 5, epochs=5, batch_size=64, seed=3)
    other = fit_probe(train["pooled"], train["label"], 5, epochs=5, batch_size=64, seed=4)
    assert torch.equal(first[1].weight, second[1].weight) and not torch.equal(first[1].weight, other[1].weight)
    assert not first.training and 0 < accuracy(first, test["pooled"], test["label"]) < 1


def test_final_epoch_is_reported_not_the_best_on_test():
    """The result is that of the probe after its last epoch, whatever an earlier epoch scored."""
    train, test = split(120, 1, noise=4.0), split(100, 2, noise=4.0)
    last = accuracy(fit_probe(train["pooled"], train["label"], 5, epochs=30), test["pooled"], test["label"])
    assert probe_features(train, test, epochs=30)["linear_probe_top1"] == last


def test_scale_of_a_feature_does_not_matter():
    features, labels = clusters(100, 1.0, 1)
    probe = fit_probe(features, labels, 5, epochs=5)
    factors = torch.linspace(0.1, 10, 100)[:, None]
    assert accuracy(probe, features * factors, labels) == accuracy(probe, features, labels)
    assert not list(probe[0].parameters())  # BatchNorm without affine


def test_label_unknown_to_training():
    train, test = split(50, 1), split(50, 2)
    test["label"][0] = 9
    with pytest.raises(ValueError, match="a test label is 9, outside 0 to 4"):
        probe_features(train, test)
    with pytest.raises(ValueError, match="at least 2 training images, got 1"):
        probe_features({name: value[:1] for name, value in train.items()}, test)


class Model(torch.nn.Module):
    def forward(self, images, decode=True):
        assert not self.training and not decode
        pixels = images.flatten(1)
        return type("Output", (), {"pooled": pixels, "semantic": F.normalize(pixels, dim=-1),
                                   "tokens": torch.stack([pixels, 3 * pixels], 1)})()


def batches(count, size, seed):
    images = torch.randint(256, (count, 3, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    labels = (images[:, 0, 0, 0] > 127).long()
    return [{"image": i, "label": n} for i, n in zip(images.split(size), labels.split(size))]


def test_features_of_one_pass_do_not_depend_on_the_batches():
    model = Model().train()
    one, many = (extract(model, batches(10, size, 0)) for size in (10, 3))
    assert model.training and set(one) == {"pooled", "semantic", "encoder", "label"}
    assert all(torch.equal(one[name], many[name]) for name in one)
    assert torch.allclose(one["encoder"], 2 * one["pooled"])
    assert torch.allclose(one["semantic"].norm(dim=1), torch.ones(10))


def test_feature_errors():
    with pytest.raises(ValueError, match="unknown feature 'patches'"):
        extract(Model(), [], ("patches",))
    with pytest.raises(ValueError, match="no image came out"):
        extract(Model(), [], ("pooled",))


def test_probe_of_a_model():
    result = evaluate_linear_probe(Model(), batches(300, 50, 0), batches(100, 50, 1), epochs=60)
    assert result["linear_probe_top1"] > 0.85
    assert result["linear_probe_top1"] == pytest.approx(result["linear_probe_encoder_top1"], abs=0.03)
