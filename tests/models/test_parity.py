"""Parity with the public release at a small size: outputs, losses, gradient norms and routes (tests/golden/README.md)."""
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from golden_instance import GOLDEN, fill
from muse.config.schema import TeacherConfig
from muse.losses.contrastive import itc_loss
from muse.losses.topology import topology_loss
from muse.models.layers import space_to_depth
from muse.models.names import ENCODER, encoder_to_released, from_released, to_released
from muse.models.topology import TopologyTeacher, resize_map


def close(ours, reference):
    """The tolerance float32 allows: 1e-5 times max(1, largest magnitude of the reference)."""
    assert ours.shape == reference.shape
    assert (ours - reference).abs().max() <= 1e-5 * max(1, reference.abs().max())


@pytest.fixture(scope="module")
def output(golden_model, golden_images):
    with torch.no_grad():
        return golden_model(golden_images, attention=True)


@pytest.fixture(scope="module")
def teacher(golden_json):
    architecture = {"model_type": "dinov3_vit", **golden_json("configs.json")["dinov3"]}
    teacher = TopologyTeacher.from_config(TeacherConfig(config=architecture))
    with torch.no_grad():
        for name, value in teacher.model.named_parameters():
            value.copy_(fill(f"dino_teacher.{name}", value.shape))
    return teacher


def test_images_follow_the_rule(golden, golden_images):
    close(golden_images[0, :, ::8, ::8], golden["images_01_sample0_every8"])


def test_every_name_and_shape_of_the_release(golden_model):
    rows = [line.split("\t") for line in (GOLDEN / "state_dict_keys.txt").read_text().splitlines()]
    expected = {name: shape for name, shape, *_ in rows if not name.startswith("dino_")}
    assert {name: str(tuple(value.shape)) for name, value in to_released(golden_model.state_dict()).items()} == expected


def test_names_round_trip_bit_for_bit(golden_model):
    state = golden_model.state_dict()
    back = from_released(to_released(state))
    assert set(back) == set(state) and all(torch.equal(back[name], state[name]) for name in state)
    tower = {name.removeprefix(ENCODER): value for name, value in state.items() if name.startswith(ENCODER)}
    assert not any("q_proj" in name for name in encoder_to_released(tower))


def test_encoder_and_adapter(golden, golden_model, golden_images, output):
    close(output.tokens[0], golden["encoder_tokens_sample0"][1:])
    merged, grid = space_to_depth(output.tokens, (16, 16))
    assert grid == (8, 8)
    close(merged[0], golden["space_to_depth_sample0"])
    with torch.no_grad():
        close(golden_model.adapter_mlp(merged)[0], golden["adapter_sample0"])


def test_blocks_and_maps(golden, golden_model, golden_images, output):
    outputs, handles = [], []
    for block in golden_model.muse_blocks:
        handles.append(block.register_forward_hook(lambda module, inputs, result: outputs.append(result)))
    with torch.no_grad():
        maps, grid = golden_model.attention_maps(golden_images)
    for handle in handles:
        handle.remove()
    for i, (h, v_itc, attention) in enumerate(outputs):
        close(h[0], golden[f"block{i}_out_sample0"])
    close(outputs[-1][1][0], golden["block1_v_itc_sample0"])
    close(maps[0][0, 0], golden["block0_attention_sample0_head0"])
    close(maps[1][0], golden["last_attention_sample0"])
    close(output.attention[0][0, 0], golden["last_attention_sample0"].mean(0))


def test_latent_embedding_and_image(golden, golden_model, output):
    close(output.latent, golden["latent"])
    close(output.semantic, golden["image_embeds"])
    with torch.no_grad():
        close(golden_model.decoder(output.latent)[0, :, ::4, ::4], golden["decoder_raw_sample0_every4"])
    released = golden["reconstruction_sample0_every2"]  # in [-1, 1]
    close(output.reconstruction[0, :, ::2, ::2] * 2 - 1, released)


def test_teacher_map_and_resize(golden, golden_images, teacher):
    attention, grid = teacher(golden_images)
    assert grid == (14, 14)
    close(attention[0], golden["teacher_map_14x14_sample0"])
    close(resize_map(transposed(attention), grid, (8, 8)), golden["teacher_map_8x8"])
    close(resize_map(transposed(golden["psi_in_6x6"][None]), (6, 6), (4, 4))[0], golden["psi_out_4x4"])


def transposed(attention):
    """The release's resize returns keys x queries, so that its student learns the teacher's columns. Here queries stay
    queries; the golden values are therefore those of the transposed map."""
    return attention.transpose(1, 2)


def losses(model, images, teacher):
    output = model(images, attention=True)
    text = torch.from_numpy(np.random.RandomState(zlib.crc32(b"text")).standard_normal((2, 768)))
    attention, grid = teacher(images)
    return {
        "rec_l2": F.mse_loss(output.reconstruction.clamp(0, 1), images),
        "topo_fixed_teacher": topology_loss(output.attention, transposed(attention), grid, (8, 8)),
        "itc": itc_loss(output.semantic, F.normalize(text.float(), dim=-1), model.logit_scale),
    }


def test_loss_values(golden_model, golden_images, golden_json, teacher):
    expected = golden_json("scalars.json")
    with torch.no_grad():
        values = losses(golden_model, golden_images, teacher)
    assert values["rec_l2"].item() == pytest.approx(expected["pixel_l2_in_01"], rel=1e-5)
    assert values["topo_fixed_teacher"].item() == pytest.approx(expected["loss_topo_last_block_head_mean"], rel=1e-5)
    assert values["itc"].item() == pytest.approx(expected["loss_itc"], rel=1e-5)


@pytest.mark.parametrize("loss", ["rec_l2", "topo_fixed_teacher", "itc"])
def test_gradient_norms_and_routes(golden_model, golden_images, golden_json, teacher, loss):
    golden_model.zero_grad(set_to_none=True)
    losses(golden_model, golden_images, teacher)[loss].backward()
    gradients = {name: value.grad if value.grad is not None else torch.zeros_like(value)
                 for name, value in golden_model.named_parameters()}
    heard = {name for name, value in to_released(gradients).items() if value.norm() > 0}
    expected = golden_json("gradient_norms.json")[loss]
    assert heard == {name for name, norm in expected.items() if norm}
    for name, value in to_released(gradients).items():
        reference = expected.get(name) or 0
        assert value.norm().item() == pytest.approx(reference, rel=1e-3, abs=1e-7), name
    golden_model.zero_grad(set_to_none=True)
