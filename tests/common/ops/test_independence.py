"""The losses are usable without Lightning and without a network package."""

import subprocess
import sys

from conftest import ROOT

BLOCKED = (
    "lightning",
    "pytorch_lightning",
    "timm",
    "segmentation_models_pytorch",
    "torchmetrics",
    "torchvision",
    "kornia",
)
ALONE = """
import importlib, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ImportError(f"common.ops needs {{name}}")

sys.meta_path.insert(0, Blocked())
for name in {modules}:
    importlib.import_module(name)
ours = {{name.split(".")[0] for name in sys.modules}} & {{"datamodules", "experiments", "methods"}}
assert not ours, ours
left = [name for name in sys.modules if name.startswith("common.") and not name.startswith("common.ops")]
assert not left, left
"""


def test_every_module_of_ops_imports_without_lightning_and_without_a_network_package():
    modules = ["common.ops"] + [f"common.ops.{path.stem}" for path in sorted((ROOT / "common/ops").glob("[a-z]*.py"))]
    assert len(modules) > 8
    script = ALONE.format(blocked=BLOCKED, modules=modules)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
