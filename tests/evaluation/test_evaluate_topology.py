import pytest
import torch

from muse.evaluation.topology import evaluate_topology


class Student(torch.nn.Module):
    """Attention maps from the images' own pixels: 2 heads over a 2 x 2 grid."""

    def forward(self, images, attention=False, decode=True):
        assert attention and not decode and not self.training
        maps = images[:, :2, :4, :4].mul(4).softmax(-1)  # B 2 4 4
        return type("Output", (), {"attention": (maps.flip(-1), maps), "latent": torch.zeros(len(images), 8, 2, 2)})()


def teacher(images):
    return images[:, 2, :4, :4].mul(6).softmax(-1), (2, 2)


def batches(size):
    images = torch.randint(256, (10, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return [{"image": part} for part in images.split(size)]


def test_mean_kl_of_the_last_maps_head_mean():
    images = batches(10)[0]["image"].double() / 255
    target, maps = (images[:, 2] * 6).softmax(-1), (images[:, :2] * 4).softmax(-1).mean(1)
    expected = (target * (target.log() - maps.log())).sum(-1).mean().item()
    uniform = (target * (target.log() - torch.tensor(0.25).double().log())).sum(-1).mean().item()
    model = Student().train()
    for size in (10, 3):
        result = evaluate_topology(model, teacher, batches(size), "cpu")
        assert result == pytest.approx({"topology_kl": expected, "topology_kl_uniform": uniform}, abs=2e-6)
    assert model.training


def test_a_teacher_of_another_grid_is_resized():
    finer = lambda images: (torch.full((len(images), 16, 16), 1 / 16), (4, 4))  # noqa: E731
    result = evaluate_topology(Student(), finer, batches(5), "cpu")
    assert abs(result["topology_kl_uniform"]) < 1e-5 < result["topology_kl"]


def test_no_image():
    with pytest.raises(ValueError, match="no image was evaluated"):
        evaluate_topology(Student(), teacher, [], "cpu")


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_the_real_student_and_teacher(variant):
    """The metric of a variant that trains every head is still the last block's head mean."""
    from muse.config.schema import BackboneConfig, EncoderConfig, ModelConfig, TeacherConfig
    from muse.losses.topology import topology_loss
    from muse.models import MUSE_ViT
    from muse.models.topology import TopologyTeacher
    torch.manual_seed(0)
    encoder = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
               "patch_size": 7, "image_size": 28, "layer_norm_eps": 1e-6}
    decoder = {"in_channels": 3, "latent_channels": 8, "attention_head_dim": 8, "decoder_block_types": ["ResBlock"],
               "decoder_block_out_channels": [8], "decoder_layers_per_block": [1], "decoder_qkv_multiscales": [[]],
               "decoder_norm_types": "rms_norm", "decoder_act_fns": "silu"}
    model = MUSE_ViT(ModelConfig(variant=variant, muse_layers=2, width=16, heads=2, latent_dim=8, semantic_dim=8,
                                 encoder=EncoderConfig(config=encoder), decoder=BackboneConfig(config=decoder)))
    real_teacher = TopologyTeacher.from_config(TeacherConfig(config={
        "model_type": "dinov2", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 7,
        "image_size": 28, "initializer_range": 1.0}))
    images = torch.randint(256, (4, 3, 28, 42), dtype=torch.uint8)
    result = evaluate_topology(model, real_teacher, [{"image": images}], "cpu")
    maps, grid = model.eval().attention_maps(images / 255)
    target, teacher_grid = real_teacher(images / 255)
    expected = topology_loss([maps[-1].mean(1, keepdim=True)], target, teacher_grid, grid).item()
    assert result["topology_kl"] == pytest.approx(expected, rel=1e-5) and expected > 0
    assert result["topology_kl"] != pytest.approx(result["topology_kl_uniform"], rel=1e-3)
