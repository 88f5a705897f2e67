"""Teachers against their libraries' own attention, and the properties of the 4-D resize."""
import pytest
import timm
import torch
from transformers import AutoConfig, AutoModel

from muse.config.schema import TeacherConfig
from muse.losses.topology import topology_loss
from muse.models.topology import TopologyTeacher, resize_map

SMALL = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, image_size=56, patch_size=14)
FAMILIES = {"dinov2": dict(SMALL), "dinov3_vit": dict(SMALL, patch_size=16, image_size=64, num_register_tokens=2),
            "vit": dict(SMALL)}


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_teacher_equals_the_librarys_own_maps(family, tmp_path):
    torch.manual_seed(0)
    library = AutoModel.from_config(AutoConfig.for_model(family, **FAMILIES[family]), attn_implementation="eager").eval()
    library.save_pretrained(tmp_path)
    teacher = TopologyTeacher.from_config(TeacherConfig(path=str(tmp_path), layers=[1, 2]))
    patch = FAMILIES[family]["patch_size"]
    images = torch.rand(2, 3, 4 * patch, 4 * patch)
    attention, grid = teacher(images)
    with torch.no_grad():
        own = library(teacher.normalise(images), output_attentions=True).attentions
    expected = torch.stack([own[1], own[2]]).mean(0).mean(1)[:, -16:, -16:]
    assert grid == (4, 4)
    assert torch.allclose(attention, expected / expected.sum(-1, keepdim=True), atol=1e-6)
    assert torch.allclose(attention.sum(-1), torch.ones(2, 16), atol=1e-5)


def test_timm_teacher_equals_the_unfused_softmax():
    torch.manual_seed(0)
    architecture = dict(architecture="vit_tiny_patch16_224", embed_dim=16, depth=2, num_heads=2, img_size=64)
    teacher = TopologyTeacher.from_config(TeacherConfig(library="timm", config=dict(architecture)))
    images, seen = torch.rand(1, 3, 64, 64), []
    attention, grid = teacher(images)
    block = teacher.model.blocks[1]
    block.attn.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    teacher(images)
    q, k, _ = block.attn.qkv(seen[0]).view(1, 17, 3, 2, 8).permute(2, 0, 3, 1, 4)
    expected = (q @ k.transpose(-2, -1) / 8 ** 0.5).softmax(-1).mean(1)[:, 1:, 1:]
    assert grid == (4, 4) and torch.allclose(attention, expected / expected.sum(-1, keepdim=True), atol=1e-6)


def test_the_teacher_never_trains_and_stops_early():
    teacher = TopologyTeacher.from_config(TeacherConfig(config={"model_type": "dinov2", **SMALL}, layers=[0]))
    teacher.train()
    ran = []
    layers = [module for module in teacher.model.modules() if type(module).__name__ == "Dinov2Layer"]
    layers[1].register_forward_pre_hook(lambda *_: ran.append(1))
    first, second = teacher(torch.ones(1, 3, 56, 56)), teacher(torch.ones(1, 3, 56, 56))
    assert not ran and not any(p.requires_grad for p in teacher.parameters())
    assert not teacher.model.training and torch.equal(first[0], second[0])


def test_an_image_that_does_not_divide_is_fitted_to_the_teachers_patch():
    teacher = TopologyTeacher.from_config(TeacherConfig(config={"model_type": "dinov2", **SMALL}, image_size=42))
    assert teacher(torch.rand(1, 3, 64, 96))[1] == (3, 4)  # 42 x 63 -> 42 x 56


def test_resize_of_the_same_grid_is_the_identity_and_rows_stay_distributions():
    attention = torch.softmax(torch.randn(2, 12, 12), dim=-1)
    assert torch.allclose(resize_map(attention, (3, 4), (3, 4)), attention, atol=1e-5)
    resized = resize_map(attention, (3, 4), (6, 2))
    assert resized.shape == (2, 12, 12) and torch.allclose(resized.sum(-1), torch.ones(2, 12), atol=1e-4)


def test_resize_keeps_queries_and_keys_apart():
    """A teacher that always looks at the last row must stay so at another size: rows are queries, columns are keys."""
    attention = torch.zeros(1, 16, 16)
    attention[:, :, 12:] = 0.25
    resized = resize_map(attention, (4, 4), (2, 2))
    assert resized[0, :, 2:].sum() > 3.9 and resized[0, :, :2].sum() < 0.1


def test_topology_loss_is_zero_at_the_teacher_and_the_entropy_gap_at_uniform():
    teacher = torch.softmax(2 * torch.randn(3, 16, 16), dim=-1)
    assert topology_loss([teacher[:, None]], teacher, (4, 4), (4, 4)).abs() < 1e-5
    uniform = torch.full((3, 1, 16, 16), 1 / 16)
    expected = (teacher * (teacher * 16).log()).sum(-1).mean()
    assert topology_loss([uniform], teacher, (4, 4), (4, 4)).item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("config, message", [
    (TeacherConfig(), "path.*config"), (TeacherConfig(config={"hidden_size": 8}), "model_type"),
    (TeacherConfig(path="/nowhere/dinov3"), "/nowhere/dinov3"), (TeacherConfig(path="x", library="keras"), "keras"),
    (TeacherConfig(config={"model_type": "dinov2", **SMALL}, layers=[7]), r"\[7\].*0..2")])
def test_bad_teachers_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        TopologyTeacher.from_config(config)
