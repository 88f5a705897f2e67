import ast
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import muse

ROOT = Path(__file__).resolve().parents[1]
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "open_clip": "open_clip_torch",  # import name -> distribution
                 "braceexpand": "webdataset"}                                        # which brings it


@pytest.fixture(scope="module")
def setup_arguments():
    """What setup.py passes to setuptools.setup."""
    caught = {}
    original, setuptools.setup = setuptools.setup, lambda **arguments: caught.update(arguments)
    try:
        exec(compile((ROOT / "setup.py").read_text(), ROOT / "setup.py", "exec"), {"__file__": str(ROOT / "setup.py")})
    finally:
        setuptools.setup = original
    return caught


def requirements_of(path):
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [Requirement(line) for line in lines if line]


@pytest.mark.parametrize("module", ["muse", "muse.models"])
def test_import_pulls_in_nothing_of_the_trainer(module):
    heavy = ["accelerate", "webdataset", "diffusers.pipelines", "open_clip", "muse.training", "muse.evaluation",
             "muse.data", "matplotlib"]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_version_and_python(setup_arguments):
    assert setup_arguments["version"] == muse.__version__
    assert Version(muse.__version__)
    assert setup_arguments["python_requires"] == ">=3.10"
    assert {"muse", "muse.config", "muse.data", "muse.models", "muse.training"} <= set(setup_arguments["packages"])
    assert not any(name.startswith("tests") for name in setup_arguments["packages"])


def test_requirements_agree_and_are_open_ranges(setup_arguments):
    written = requirements_of(ROOT / "requirements.txt")
    assert {str(r) for r in written} == {str(Requirement(r)) for r in setup_arguments["install_requires"]}
    extras = [Requirement(r) for extra in setup_arguments["extras_require"].values() for r in extra]
    for requirement in [*written, *extras]:
        assert [s.operator for s in requirement.specifier] == [">="], requirement
    assert set(setup_arguments["extras_require"]) >= {"eval", "logging", "demo", "dev"}


def test_every_third_party_import_is_required(setup_arguments):
    listed = [*setup_arguments["install_requires"], *sum(setup_arguments["extras_require"].values(), [])]
    declared = {canonicalize_name(Requirement(r).name) for r in listed}
    own = {"muse", *sys.stdlib_module_names, *(path.stem for path in ROOT.glob("scripts/*.py"))}
    missing = {}
    for path in [*ROOT.glob("muse/**/*.py"), *ROOT.glob("scripts/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in (n.partition(".")[0] for n in names):
                if name not in own and canonicalize_name(DISTRIBUTIONS.get(name, name)) not in declared:
                    missing[name] = str(path.relative_to(ROOT))
    assert not missing


def test_licence():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
