import pytest
import timm
import torch
from safetensors.torch import save_file

from muse.evaluation.inception import FrechetFeatures


@pytest.fixture(scope="module")
def lite_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "lite.safetensors"
    save_file(timm.create_model("tf_efficientnet_lite0").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """A random state of torch-fidelity's network, made without its download."""
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        network = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path, network


@pytest.fixture
def images():
    torch.manual_seed(1)
    return (torch.rand(3, 3, 64, 48) * 255).round() / 255


def test_inception_features_are_torch_fidelitys(inception_file, images):
    path, reference = inception_file
    features = FrechetFeatures.from_config("inception", path)(images)
    expected, = reference((images * 255).round().to(torch.uint8))
    assert features.shape == (3, 2048) and features.dtype == torch.float32
    torch.testing.assert_close(features, expected)


def test_efficientnet_features_feed_its_classifier(lite_file, images):
    network = FrechetFeatures.from_config("efficientnet_lite0", lite_file)
    features = network(images)
    assert features.shape == (3, 1280) and not features.requires_grad
    classifier = network.network.network.classifier
    torch.testing.assert_close(classifier(features), network.network(images), rtol=1e-4, atol=1e-5)


def test_features_ignore_autocast_training_mode_and_batching(lite_file, images):
    network = FrechetFeatures.from_config("efficientnet_lite0", lite_file).train()
    features = network(images)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(network(images), features, rtol=0, atol=0)
    torch.testing.assert_close(torch.cat([network(image[None]) for image in images]), features, rtol=1e-4, atol=1e-5)


def test_missing_weights_and_unknown_networks_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="download https://.*inception.* evaluation.frechet_weights"):
        FrechetFeatures.from_config("inception")
    with pytest.raises(FileNotFoundError, match="EfficientNet-Lite0 needs its weight file"):
        FrechetFeatures.from_config("efficientnet_lite0")
    with pytest.raises(ValueError, match="'clip': choose inception or efficientnet_lite0"):
        FrechetFeatures.from_config("clip")


def test_a_weight_file_that_carries_code_is_refused(tmp_path):
    class Code:
        def __reduce__(self):
            return print, ("run",)
    torch.save({"x": Code()}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="code.pth"):
        FrechetFeatures.from_config("inception", tmp_path / "code.pth")
