"""The bench's one pass must give what the separate evaluators give."""
import pytest
import torch

from muse.config.schema import (BackboneConfig, EncoderConfig, EvaluationConfig, ModelConfig, TeacherConfig)
from muse.evaluation import evaluator
from muse.evaluation.bench import BATCH, Bench, Labelled
from muse.evaluation.evaluator import evaluate_reconstruction
from muse.evaluation.features import extract
from muse.evaluation.linear_probe import probe_features
from muse.evaluation.topology import evaluate_topology
from muse.evaluation.zero_shot import classify
from muse.models import MUSE_ViT
from muse.models.topology import TopologyTeacher

NAMES = ["red", "green", "blue"]


class Features(torch.nn.Module):
    """Six fixed features, a stand-in for a Frechet network."""

    def forward(self, images):
        return torch.cat([images.mean((2, 3)), images.square().mean((2, 3))], 1)


class Distance(torch.nn.Module):
    def forward(self, a, b):
        return (a - b).abs().flatten(1).mean(1)


def loader(count, seed, size=10):
    """Labelled batches of noise with a little of the label's colour."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    images = torch.randint(200, (count, 3, 28, 42), generator=generator, dtype=torch.uint8)
    images[torch.arange(count), labels] += 50
    return [{"image": a, "label": b} for a, b in zip(images.split(size), labels.split(size))]


def tiny_model(seed):
    torch.manual_seed(seed)
    encoder = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
               "patch_size": 7, "image_size": 28, "layer_norm_eps": 1e-6}
    decoder = {"in_channels": 3, "latent_channels": 8, "attention_head_dim": 8, "decoder_block_types": ["ResBlock"],
               "decoder_block_out_channels": [8], "decoder_layers_per_block": [1], "decoder_qkv_multiscales": [[]],
               "decoder_norm_types": "rms_norm", "decoder_act_fns": "silu"}
    return MUSE_ViT(ModelConfig(muse_layers=2, width=16, heads=2, latent_dim=8, semantic_dim=8,
                                encoder=EncoderConfig(config=encoder), decoder=BackboneConfig(config=decoder)))


@pytest.fixture
def settings(monkeypatch):
    monkeypatch.setattr(evaluator, "_frechet_network", lambda config, device: Features())
    monkeypatch.setattr(evaluator, "_perceptual_network", lambda config, device: Distance())
    return EvaluationConfig(frechet="efficientnet_lite0", perceptual="st_lpips")


@pytest.fixture
def teacher():
    torch.manual_seed(5)
    return TopologyTeacher.from_config(TeacherConfig(config={
        "model_type": "dinov2", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 7,
        "image_size": 28, "initializer_range": 1.0}))


TRAIN, TEST = loader(40, 0), loader(BATCH + 5, 1)  # two batches of the bench, the second short
CLASSES = torch.nn.functional.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(3)), dim=-1)


@pytest.fixture
def bench(settings, teacher):
    return Bench(Labelled.from_loader(TRAIN), Labelled.from_loader(TEST), teacher, CLASSES, NAMES, settings)


def test_equals_the_separate_evaluators(bench, settings, teacher):
    for seed in (0, 1):  # the second model: another encoder, and sums that begin at zero again
        model = tiny_model(seed).train()
        results, pictures, received = bench.measure(model)
        assert model.training
        expected = evaluate_reconstruction(model, TEST, settings, "cpu", mean_colour=True)
        expected.update(evaluate_topology(model, teacher, TEST, "cpu"))
        train, test = (extract(model, data) for data in (TRAIN, TEST))
        zero_shot = classify(test["semantic"], test["label"], CLASSES, NAMES)
        expected.update({name: zero_shot[name] for name in ("zero_shot_top1", "majority_share")})
        probe = probe_features(train, test, 3)
        expected.update({name: probe[name] for name in ("linear_probe_top1", "linear_probe_encoder_top1")})
        assert results == pytest.approx(expected, rel=1e-4)
        with torch.no_grad():
            output = model.eval()(bench.test.images.float() / 255, attention=True)
        torch.testing.assert_close(pictures, output.reconstruction, atol=1e-4, rtol=1e-4)
        assert received.shape == (BATCH + 5, 2, 3)
        torch.testing.assert_close(received.flatten(1), output.attention[-1].mean((1, 2)), atol=1e-5, rtol=1e-4)


def test_measuring_twice_gives_the_same(bench):
    model = tiny_model(0)
    assert bench.measure(model)[0] == bench.measure(model)[0]


def test_tokens_are_computed_again_only_for_another_encoder(bench, monkeypatch):
    model, calls = tiny_model(0), []
    plain = MUSE_ViT.encode_tokens
    monkeypatch.setattr(MUSE_ViT, "encode_tokens", lambda self, images: calls.append(1) or plain(self, images))

    def computed():
        calls.clear()
        bench.measure(model)
        return len(calls)

    passes = 2 + 2  # 40 and BATCH + 5 images
    assert computed() == passes and computed() == 0
    with torch.no_grad():
        model.to_latent.weight += 1  # not of the encoder
    assert computed() == 0
    with torch.no_grad():
        next(model.encoder.parameters()).add_(0.5)  # in place: the kept weights must be a copy
    assert computed() == passes
    fresh = torch.cat([plain(model, images) for _, images, _ in bench.test.batches()])
    torch.testing.assert_close(bench.test.tokens, fresh.detach())


def test_loading_keeps_the_order():
    data = Labelled.from_loader(TEST)
    assert data.images.dtype == torch.uint8 and torch.equal(data.images[-5:], TEST[-1]["image"][-5:])
    assert data.labels.tolist() == [label for batch in TEST for label in batch["label"].tolist()]
    assert [len(images) for _, images, _ in data.batches()] == [BATCH, 5]
