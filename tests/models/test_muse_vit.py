"""Gradient routes of every block variant and stage, shapes at other resolutions, freezing, saving."""
import copy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from muse.config.schema import BackboneConfig, BlockConfig, EncoderConfig, ModelConfig
from muse.losses.topology import topology_loss
from muse.models import MUSE_ViT
from muse.models.muse_vit import block_switches

ENCODER = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, patch_size=4,
               image_size=32, attention_bias=True, use_qk_norm=False, norm_type="layer_norm", layer_norm_eps=1e-6)
DECODER = dict(latent_channels=8, attention_head_dim=8, decoder_block_types=["ResBlock"] * 3,
               decoder_block_out_channels=[8, 8, 8], decoder_layers_per_block=[1, 1, 1],
               decoder_qkv_multiscales=[[], [], []], upsample_block_type="interpolate")


def tiny(variant="released", stage=1, **changes):
    torch.manual_seed(0)
    config = ModelConfig(variant=variant, muse_layers=2, width=16, heads=2, latent_dim=8, semantic_dim=8,
                         encoder=EncoderConfig(config=dict(ENCODER)), decoder=BackboneConfig(config=dict(DECODER)))
    for name, value in changes.items():
        setattr(config, name, value)
    model = MUSE_ViT(config, stage)
    for parameter in model.parameters():  # large enough that no route vanishes by accident
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def hearing(model, loss):
    """Names of the block parameters and parts that receive a gradient from one loss alone."""
    torch.manual_seed(1)
    images = torch.rand(2, 3, 32, 32)
    output = model(images, attention=True)
    teacher = torch.softmax(3 * torch.randn(2, 16, 16), dim=-1)
    {"rec": lambda: F.mse_loss(output.reconstruction, images),
     "topo": lambda: topology_loss(output.attention, teacher, (4, 4), (4, 4)),
     "itc": lambda: (output.semantic @ torch.arange(8.0)).sum()}[loss]().backward()
    return {name for name, value in model.named_parameters() if value.grad is not None and value.grad.norm() > 1e-12}


def routes(variant, stage):
    """{parameter group: set of losses it hears}; first block and last block apart."""
    groups = {"qk_first": "muse_blocks.0.q_topo", "qk_last": "muse_blocks.1.k_topo", "v_first": "muse_blocks.0.v_sem",
              "v_last": "muse_blocks.1.v_sem", "itc_first": "muse_blocks.0.v_itc", "itc_last": "muse_blocks.1.v_itc",
              "mlp_first": "muse_blocks.0.mlp.w1", "mlp_last": "muse_blocks.1.mlp.w3", "norm_last": "muse_blocks.1.norm1",
              "adapter": "adapter_mlp.1", "latent": "to_latent", "projector": "semantic_projector.0"}
    heard = {loss: hearing(tiny(variant, stage), loss) for loss in ("rec", "topo", "itc")}
    return {group: {loss for loss, names in heard.items() if any(name.startswith(prefix) for name in names)}
            for group, prefix in groups.items()}


ALL = {"rec", "topo", "itc"}
RELEASED = {"qk_first": set(), "qk_last": {"topo"}, "v_first": ALL, "v_last": {"rec"}, "itc_first": set(),
            "itc_last": {"itc"}, "mlp_first": ALL, "mlp_last": {"rec"}, "norm_last": {"rec", "topo"}, "adapter": ALL,
            "latent": {"rec"}, "projector": {"itc"}}
ISOLATED = {"qk_first": {"topo"}, "qk_last": {"topo"}, "v_first": {"rec"}, "v_last": {"rec"}, "itc_first": set(),
            "itc_last": {"itc"}, "mlp_first": {"rec"}, "mlp_last": {"rec"}, "norm_last": {"rec"}, "adapter": {"rec"},
            "latent": {"rec"}, "projector": {"itc"}}
SYNERGY = {"qk_first": ALL, "qk_last": {"rec", "topo"}, "v_first": ALL, "v_last": {"rec"}, "itc_first": ALL,
           "itc_last": {"rec", "itc"}, "mlp_first": ALL, "mlp_last": {"rec"}, "norm_last": {"rec", "topo"},
           "adapter": ALL, "latent": {"rec"}, "projector": {"itc"}}
COUPLED = {**SYNERGY, "v_last": {"rec", "itc"}, "itc_first": set(), "itc_last": set(), "norm_last": ALL}


@pytest.mark.parametrize("variant, stage, expected", [
    ("released", 1, RELEASED), ("released", 2, RELEASED), ("released", 3, RELEASED),
    ("paper", 1, ISOLATED), ("paper", 2, ISOLATED), ("paper", 3, SYNERGY), ("coupled", 1, COUPLED), ("coupled", 3, COUPLED)])
def test_which_parameter_hears_which_loss(variant, stage, expected):
    assert routes(variant, stage) == expected


def test_paper_adds_the_anchor_to_the_values_only_from_stage_2():
    images = torch.rand(1, 3, 32, 32)
    outputs = []
    for stage in (1, 2, 3):
        with torch.no_grad():
            outputs.append(tiny("paper", stage)(images).latent)
    assert not torch.allclose(outputs[0], outputs[1]) and torch.equal(outputs[1], outputs[2])


def test_released_and_paper_share_parameter_names():
    assert list(tiny("released").state_dict()) == list(tiny("paper").state_dict())


def test_a_switch_can_be_overridden():
    switches = block_switches("released", 1, BlockConfig(detach_attention=False))
    assert not switches.detach_attention and switches.topology_from == "last_block_mean"
    assert "muse_blocks.0.q_topo.weight" in hearing(tiny(block=BlockConfig(detach_attention=False)), "rec")


def test_map_and_fused_attention_agree():
    """Materialising the map must not change the values."""
    model, images = tiny(), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        plain, mapped = model(images), model(images, attention=True)
    assert plain.attention == () and mapped.attention[0].shape == (2, 1, 16, 16)
    assert torch.allclose(plain.reconstruction, mapped.reconstruction, atol=1e-5)
    assert torch.allclose(mapped.attention[0].sum(-1), torch.ones(2, 1, 16), atol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (16, 48), (8, 8)])
def test_output_has_the_size_of_the_input(size):
    with torch.no_grad():
        output = tiny()(torch.rand(1, 3, *size))
    assert output.reconstruction.shape[-2:] == size and output.latent.shape[-2:] == (size[0] // 8, size[1] // 8)


def test_a_side_that_does_not_divide_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="30 x 32.*multiples of 8.*pad"):
        tiny().encode(torch.rand(1, 3, 30, 32))


def test_grad_scale_scales_what_reaches_the_trunk():
    norms = []
    for scale in (1.0, 0.5):
        model = tiny(grad_scale=scale)
        hearing(model, "rec")
        norms.append((model.adapter_mlp[1].weight.grad.norm(), model.to_latent.weight.grad.norm()))
    assert norms[1][0] / norms[0][0] == pytest.approx(0.5, rel=1e-5) and norms[0][1] == norms[1][1]


def test_frozen_parts_stay_in_evaluation_mode_and_hear_nothing():
    model = tiny().freeze(["encoder", "semantic_projector", "logit_scale"]).train()
    assert model.muse_blocks.training and not any(module.training for module in model.encoder.modules())
    assert not any(name.startswith(("encoder", "semantic_projector")) for name in hearing(model, "rec"))


def test_logit_scale_is_bounded_at_one_hundred():
    model = tiny()
    model.logit_scale.data.fill_(9.0)
    model.clamp_logit_scale()
    assert model.logit_scale.exp().item() == pytest.approx(100, rel=1e-4)


def test_checkpoint_round_trip(tmp_path):
    model, images = tiny("paper", 2).eval(), torch.rand(1, 3, 32, 32)
    model.save_pretrained(tmp_path)
    loaded = MUSE_ViT.from_pretrained(tmp_path)
    assert loaded.stage == 2 and all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values()))
    with torch.no_grad():
        assert torch.equal(model(images).reconstruction, loaded(images).reconstruction)
        encoder_only = MUSE_ViT.from_pretrained(tmp_path, encoder_only=True)
        assert encoder_only.decoder is None and torch.equal(encoder_only.encode(images).latent, model.encode(images).latent)
    with pytest.raises(ValueError, match="encoder_only"):
        encoder_only.decode(torch.zeros(1, 8, 4, 4))


@pytest.mark.parametrize("damage, message", [
    (lambda t: t.pop("to_latent.bias"), "missing to_latent.bias"),
    (lambda t: t.update({"to_latent.bias": torch.zeros(9)}), r"to_latent.bias is \[9\], expected \[8\]"),
    (lambda t: t.update({"stray": torch.zeros(1)}), "unexpected stray")])
def test_a_damaged_checkpoint_is_named(tmp_path, damage, message):
    tiny().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    damage(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        MUSE_ViT.from_pretrained(tmp_path)


def test_released_file_round_trip(tmp_path):
    model = tiny()
    model.save_released(tmp_path / "muse.bin")
    loaded = copy.deepcopy(model)
    for parameter in loaded.parameters():
        parameter.data.zero_()
    loaded.load_released([tmp_path / "muse.bin"], "muse.bin")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values()))


def test_width_and_heads_must_agree():
    with pytest.raises(ValueError, match="width 16.*heads 3"):
        tiny(heads=3)
