"""`push`: what of a finished run goes to the hub, and what is refused; the hub itself is a stub."""

from types import SimpleNamespace

import pytest
from huggingface_hub.utils import filter_repo_objects

SHOWN = ["onnx/model.onnx", "report.json", "safetensors/program.json"]


@pytest.fixture
def hub(monkeypatch):
    """The calls that reached the hub, uploads as the files that the library would send."""
    calls = []

    class Api:
        def create_repo(self, name, *, private, exist_ok):
            calls.append(("repo", name, private, exist_ok))

        def create_branch(self, name, *, branch, exist_ok):
            calls.append(("branch", name, branch, exist_ok))

        def upload_folder(self, *, repo_id, folder_path, revision, ignore_patterns, commit_message):
            there = [p.relative_to(folder_path) for p in folder_path.rglob("*") if p.is_file()]
            names = sorted(path.as_posix() for path in there)
            sent = list(filter_repo_objects(names, ignore_patterns=ignore_patterns))
            calls.append(("upload", repo_id, revision, sent))
            return SimpleNamespace(commit_url="https://hub/commit")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    return calls


@pytest.fixture
def out(tmp_path):
    """A folder as a run leaves it, with what a kill leaves beside it."""
    hidden = [".onnx-0123abcd.partial/model.onnx", "onnx/.x-0123abcd.partial", ".env", "a/.git/b"]
    for name in (*SHOWN, *hidden):
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("{}")
    return tmp_path / "out"


def test_a_run_goes_to_the_hub_without_what_is_hidden(out, hub, cli):
    assert cli("push", out, "me/small") == (0, "uploaded: https://hub/commit\n", "")
    assert hub == [("repo", "me/small", False, True), ("upload", "me/small", None, SHOWN)]


def test_one_format_to_a_branch_of_a_private_repository(out, hub, cli):
    assert cli("push", out / "onnx", "me/small", "--private", "--revision", "v1")[0] == 0
    assert hub == [
        ("repo", "me/small", True, True),
        ("branch", "me/small", "v1", True),
        ("upload", "me/small", "v1", ["model.onnx"]),
    ]


def test_what_the_hub_refuses_is_a_sentence(out, hub, cli, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no token was found\nlog in")

    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", refuse)
    code, printed, error = cli("push", out, "me/small")
    said = f"error: '{out}' could not be uploaded to 'me/small': no token was found\n"
    assert (code, printed, error) == (1, "", said)


def test_what_is_not_finished(out, hub, cli, tmp_path):
    def said(*words):
        code, printed, error = cli("push", *words)
        assert (code, printed) == (1, "")
        return error.removeprefix("error: ").removesuffix("\n")

    (tmp_path / "empty" / ".resume").mkdir(parents=True)
    for folder in (out, tmp_path / "empty"):
        (folder / ".resume").mkdir(exist_ok=True)
        assert said(folder, "me/small") == (
            f"a run is going on in '{folder}' or was interrupted; finish it with --resume first"
        )
    (out / ".resume").rmdir()
    (tmp_path / "none" / ".x.partial").mkdir(parents=True)
    (tmp_path / "none" / ".x.partial" / "model.onnx").write_text("")
    assert said(tmp_path / "none", "me/small") == (
        f"'{tmp_path / 'none'}' holds no program, model.onnx or Hugging Face model"
    )
    assert said("nowhere", "me/small") == (
        "there is no folder 'nowhere'; name the --out folder of a run"
    )
    for name in ("small", "me/", "a/b/c"):
        assert said(out, name) == f"'{name}' is no repository; write OWNER/NAME"
    assert hub == []
