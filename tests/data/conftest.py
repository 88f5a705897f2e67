import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from muse.config.schema import DataParams, DatasetConfig, PreprocessingConfig


def image_bytes(value=100, size=(20, 16), kind="JPEG", mode="RGB"):
    pixels = np.full((size[1], size[0], 3), value, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def write_tar(path, samples):
    """samples: {key: {extension: bytes or str}}"""
    with tarfile.open(path, "w") as tar:
        for key, files in samples.items():
            for extension, content in files.items():
                content = content if isinstance(content, bytes) else content.encode()
                entry = tarfile.TarInfo(f"{key}.{extension}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return str(path)


def full_sample(number, size=(20, 16)):
    mask = np.zeros((size[1], size[0]), np.uint8)
    mask[:, : size[0] // 2] = number % 7 + 1
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return {"jpg": image_bytes(number % 256, size), "txt": f"caption {number}", "cls": str(number),
            "seg.png": buffer.getvalue(), "json": json.dumps({"caption": f"json {number}"})}


@pytest.fixture
def make_image():
    return image_bytes


@pytest.fixture
def make_tar():
    return write_tar


@pytest.fixture
def make_sample():
    return full_sample


@pytest.fixture
def shards(tmp_path):
    """Pattern of 5 shards with 7, 0, 3, 1 and 9 samples, labelled 0..19 in order."""
    number = 0
    for i, count in enumerate((7, 0, 3, 1, 9)):
        write_tar(tmp_path / f"part-{i:03d}.tar", {f"{k:04d}": full_sample(number + k) for k in range(count)})
        number += count
    return str(tmp_path / "part-*.tar")


@pytest.fixture
def dataset_config():
    """(shards, **params) -> DatasetConfig of 16 px crops."""
    def build(train_shards, **params):
        params = {"num_workers": 0, "shuffle_buffer": 4, **params}
        return DatasetConfig(DataParams(train_shards=train_shards, **params), PreprocessingConfig(16, 16))
    return build
