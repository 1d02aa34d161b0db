"""`sparsify-fx push`: a finished run or an exported model, uploaded to the Hugging Face hub."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sparsify.commands.loudness import console
from sparsify.disk.files import WORK
from sparsify.errors import DataError, OptionError, reason_of

# What a folder with a model holds one of: a program of ours, ONNX, Hugging Face.
_MODELS = ("program.json", "model.onnx", "config.json")
# State of a run, and what a kill left half written: all of it has a hidden name.
HIDDEN = (".*", "*/.*")  # here a star stands for slashes, too


def push_folder(
    folder: Annotated[
        Path, typer.Argument(help="The --out folder of a run, or one format folder in it.")
    ],
    repository: Annotated[
        str, typer.Argument(metavar="REPO_ID", help="As in 'me/small-2of4'; made if not there.")
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Of a repository that is made: for its owner alone.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(help="The branch to upload to; made if it is not there.")
    ] = None,
) -> None:
    """Upload a finished run, or one format of it, to the Hugging Face hub."""
    check_finished(folder)
    owner, slash, name = repository.partition("/")
    if not (owner and slash and name) or "/" in name:
        raise OptionError(f"'{repository}' is no repository; write OWNER/NAME")
    from huggingface_hub import HfApi

    api: Any = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        found = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=revision,
            ignore_patterns=list(HIDDEN),
            commit_message="Model written by sparsify-fx",
        )
    except Exception as error:  # no token, no such owner, no network: each a class of its own
        raise DataError(
            f"'{folder}' could not be uploaded to '{repository}': {reason_of(error)}"
        ) from error
    console.print(f"uploaded: {found.commit_url}", soft_wrap=True, markup=False)


def check_finished(folder: Path) -> None:
    """Refuse what is no folder, holds an unfinished run, or no model; DataError."""
    if not folder.is_dir():
        raise DataError(f"there is no folder '{folder}'; name the --out folder of a run")
    if (folder / WORK).is_dir():
        raise DataError(
            f"a run is going on in '{folder}' or was interrupted; finish it with --resume first"
        )
    places = (folder, *(path for path in folder.iterdir() if not path.name.startswith(".")))
    if not any((place / name).is_file() for place in places for name in _MODELS):
        raise DataError(f"'{folder}' holds no program, model.onnx or Hugging Face model")
