import re
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).resolve().parent
version = re.search(r'__version__ = "(.+)"', (root / "muse" / "__init__.py").read_text()).group(1)
lines = [line.partition("#")[0].strip() for line in (root / "requirements.txt").read_text().splitlines()]

setup(
    name="muse",
    version=version,
    description="MUSE: resolving manifold misalignment in visual tokenization via topological orthogonality",
    license="Apache-2.0",
    packages=find_packages(include=["muse", "muse.*"]),
    python_requires=">=3.10",
    install_requires=[line for line in lines if line],
    extras_require={
        "eval": ["torch-fidelity>=0.3"],  # Inception weights and features of rFID
        "logging": ["tensorboard>=2.14", "wandb>=0.16"],
        "demo": ["onnx>=1.15"],           # the miniature's encoder comes as an ONNX file
        "parquet": ["pyarrow>=14"],       # captions from parquet tables
        "dev": ["pytest>=7.4"],
    },
)
