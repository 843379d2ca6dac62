"""What a wheel holds: built from the checkout, installed elsewhere, and used there."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from conftest import ROOT

FEW = "--trainer.max_steps 2 --trainer.val_check_interval 2 --trainer.enable_progress_bar false"
FEW += " --data.num_workers 0 --data.train 24 --data.val 2 --data.test 2"


def output(words, **options):
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the wheel's packages, and a function that runs the command that was installed there."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    output([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT])
    (wheel,) = folder.glob("weakseg-*.whl")
    output([*pip, "install", "--no-deps", "--target", folder / "site", wheel])
    desk = folder / "desk"
    desk.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(folder / "site"), "OMP_NUM_THREADS": "1"}

    def weakseg(line):
        words = [sys.executable, folder / "site" / "bin" / "weakseg", *line.split()]
        return output(words, cwd=desk, env=environment)

    where = [sys.executable, "-c", "import weakseg, common; print(weakseg.__file__, common.__file__)"]
    assert output(where, cwd=desk, env=environment).count(str(folder / "site")) == 2
    return wheel, weakseg, desk


def test_configs_studies_templates_and_licences_are_in_it(installed):
    names = {*zipfile.ZipFile(installed[0]).namelist()}
    tracked = output(["git", "ls-files", "experiments"], cwd=ROOT).split() if (ROOT / ".git").exists() else []
    wanted = [name for name in tracked if Path(name).suffix == ".yaml" and (ROOT / name).exists()]
    assert not [name for name in wanted if name not in names]
    assert {"experiments/compare/report.html", "experiments/review/page.html", "weakseg.py", "common/py.typed"} <= names
    assert {f"experiments/annotate/page.{suffix}" for suffix in ("html", "js", "css")} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "docs")) or name.endswith(".ckpt")]


def test_the_installed_command_knows_its_version_and_configs(installed):
    _, weakseg, _ = installed
    assert weakseg("--version").strip() == "0.1.0"
    assert "CutMixSeg" in weakseg("methods")
    assert "runs/quickstart" in weakseg("study quickstart --dry-run")


@pytest.mark.slow
def test_the_installed_command_trains_compares_and_shows(installed):
    _, weakseg, desk = installed
    weakseg(f"fit --config quickstart --config tv {FEW}")
    assert (desk / "runs/quickstart/tv/pixels-0.002-seed0/summary.json").exists()
    weakseg("compare runs --test --output comparison")
    assert (desk / "comparison/report.html").stat().st_size > 10_000
    text = weakseg(f"demo -- {FEW}")
    assert "2 test slices" in text
    assert (desk / "demo/comparison.png").exists()
