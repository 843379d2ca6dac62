"""The losses are usable without Lightning and without a network package."""

import subprocess
import sys

from conftest import ROOT

LIGHTNING = ("lightning", "pytorch_lightning", "timm", "segmentation_models_pytorch", "torchmetrics", "torchvision")
ALONE = """
import importlib, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocked())
for name in {modules}:
    importlib.import_module(name)
print(*sorted(sys.modules))
"""


def imported(modules, *blocked):
    """Names of all modules that come with these, in a process of its own, where `blocked` cannot be imported."""
    script = ALONE.format(blocked=blocked, modules=modules)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_every_module_of_ops_imports_without_lightning_and_without_a_network_package():
    modules = ["common.ops"] + [f"common.ops.{path.stem}" for path in sorted((ROOT / "common/ops").glob("[a-z]*.py"))]
    assert len(modules) > 8
    names = imported(modules, *LIGHTNING, "kornia")
    ours = [name for name in names if name.split(".")[0] in ("common", "datamodules", "experiments", "methods")]
    assert sorted(ours) == sorted(["common", *modules])


def test_the_losses_of_a_paper_import_without_lightning_and_without_a_network_package():
    modules = [f"methods.{path.parent.name}.losses" for path in sorted(ROOT.glob("methods/*/losses.py"))]
    assert {*imported(modules, *LIGHTNING)} >= {*modules}
