"""Runs on the Hugging Face hub: which files go there, the page that describes them, and what is taken from there."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.training.files import folder_written_whole, read_summary
from experiments.runs.checkpoint import classes_of, read_checkpoint, stored_config
from experiments.runs.run_dir import shown

CHECKPOINTS = ("checkpoints/best.ckpt", "checkpoints/last.ckpt")
FILES = ("config.yaml", "summary.json", "metrics.csv")
CARD = "README.md"
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


@contextmanager
def hub(repository: str) -> Iterator[Any]:
    """`huggingface_hub.HfApi()`, asked for a repository within the context.

    Raises:
        ModuleNotFoundError, ValueError: there is no huggingface_hub, no network, no access, or no such repository.
    """
    try:
        from huggingface_hub import HfApi, errors
    except ModuleNotFoundError:
        raise ModuleNotFoundError("the hub needs the package huggingface_hub: pip install -e '.[hub]'") from None
    try:
        yield HfApi(library_name="weakseg")
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("huggingface_hub", "httpx", "httpx2", "requests"):
            raise
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.RevisionNotFoundError):
            reason = f"{repository} has no such revision"
        elif isinstance(error, errors.RepositoryNotFoundError) and not isinstance(error, errors.GatedRepoError):
            reason = f"there is no {repository}, or it is not yours to see: check its name, or {LOGIN}"
        elif status in (401, 403):
            reason = f"{repository} is refused ({status}): {LOGIN}, with a token that may do this"
        elif status is None and not isinstance(error, (errors.HFValidationError, errors.OfflineModeIsEnabled)):
            reason = f"cannot be reached ({' '.join(str(error).split())}): check the network"
        else:
            reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the Hugging Face hub: {reason}") from error


def push(run: Path, repository: str, which: str = "best", public: bool = False) -> str:
    """Upload what a run needs to be used, in one commit: checkpoint, config, summary, metrics, and a page about it.

    Args:
        run: run directory of a finished run.
        repository: USER/NAME; it is made if it is not there, private unless `public`.
        which: checkpoint.

    Returns:
        The address of the commit.

    Raises:
        FileNotFoundError, ValueError: it is no finished run, there is no login, or what `hub` raises.
    """
    files = files_of(run, which)
    card = card_of(run, which, repository)
    with hub(repository) as api:
        from huggingface_hub import CommitOperationAdd, get_token

        if get_token() is None:
            raise ValueError(f"the Hugging Face hub wants to know who writes: {LOGIN}")
        api.create_repo(repository, private=not public, exist_ok=True)
        added = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
        operations = [*added, CommitOperationAdd(CARD, card.encode())]
        done = api.create_commit(repository, operations, commit_message=f"{run.resolve().name}, {which}.ckpt")
    return str(done.commit_url)


def files_of(run: Path, which: str) -> dict[str, Path]:
    """What goes to the hub, by the name there. No other file of the directory does, and none that lies elsewhere.

    Raises:
        FileNotFoundError, ValueError: one is missing, leads out of the directory, or is no checkpoint of `fit`.
    """
    files = {name: run / name for name in (f"checkpoints/{which}.ckpt", *FILES)}
    for name, path in files.items():
        if not path.is_file():
            raise FileNotFoundError(f"{run} has no {name}: only a finished run of `weakseg fit` can be pushed")
        if not path.resolve().is_relative_to(run.resolve()):
            raise ValueError(f"{path} is a link to a file elsewhere, which is not pushed")
    return files


def card_of(run: Path, which: str, repository: str) -> str:
    """The page of the repository, in Markdown: what was trained, and what was measured.

    Raises:
        ValueError: the checkpoint or the summary is none of `fit`.
    """
    checkpoint = read_checkpoint(run / "checkpoints" / f"{which}.ckpt")
    classes = classes_of(checkpoint, {} if "classes" in checkpoint["weakseg"] else stored_config(checkpoint))
    size = classes.size if classes.size == "native" else " x ".join(map(str, classes.size))
    try:
        summary = read_summary(run)
        counts, title = summary["annotation"], f"{summary['method']} on {summary['data']}"
        rows = {
            "classes": ", ".join(classes.names),
            "size of the images": size,
            "labels": f"{counts['labeled_pixels']} pixels of {counts['images']} images",
            "training": f"{summary['steps']} steps, seed {summary['seed']}, {summary['parameters']} parameters",
            "versions": ", ".join(f"{name} {version}" for name, version in summary["versions"].items()),
        }
        measured = summary[which] | summary.get("test", {}).get(which, {})
        rows |= {name: shown(name, value) for name, value in measured.items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{run / 'summary.json'} is not as `weakseg fit` writes it ({error!r})") from error
    lines = [f"| {escaped(name)} | {escaped(str(value))} |" for name, value in rows.items()]
    return "\n".join([
        "---", "library_name: weakseg", "pipeline_tag: image-segmentation", "tags:", "- semantic-segmentation",
        "- weakly-supervised", "---", f"# {escaped(title)}", "",
        f"The `{which}` checkpoint of a run of weakseg. Metrics are in per cent as far as they are shares.", "",
        "| | |", "|---|---|", *lines, "", "```sh", f"weakseg pull {repository} --output run",
        "weakseg predict --run run --images photos --output labelled", "```", "",
    ])  # fmt: skip


def escaped(text: str) -> str:
    """A text as a cell of a Markdown table, without markup of its own."""
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", " ".join(text.split()))


def pull(repository: str, folder: Path, revision: str | None = None) -> list[str]:
    """Download a run into a new folder, whole or not at all: the files that `push` knows, and no others.

    They are data: of the checkpoint tensors and plain values are read, and nothing of it is executed.

    Returns:
        The names of the files.

    Raises:
        FileExistsError, ValueError: the folder has files in it, the repository holds no run, or what `hub` raises.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"--output {folder} is there already: choose a new folder")
    with hub(repository) as api:
        found = api.model_info(repository, revision=revision)
        there = {one.rfilename for one in found.siblings or ()}
        names = [name for name in (*CHECKPOINTS, *FILES) if name in there]
        if not {*CHECKPOINTS} & {*names}:
            raise ValueError(f"{repository} on the hub holds no run of weakseg: it has no {' or '.join(CHECKPOINTS)}")
        with folder_written_whole(folder) as scratch:
            for name in names:
                api.hf_hub_download(repository, name, revision=found.sha, local_dir=scratch)
            shutil.rmtree(scratch / ".cache", ignore_errors=True)  # the client's notes
            for name in {*CHECKPOINTS} & {*names}:
                read_checkpoint(scratch / name)
    return names
