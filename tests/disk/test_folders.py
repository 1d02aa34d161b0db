"""Output folders: one writer at a time, results whole or not there, and what a kill left."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

import sparsify
from sparsify.disk import files, locks
from sparsify.disk.files import folders, forget, new_file, new_folder, recover, write_json
from sparsify.disk.locks import InUse, locked
from sparsify.engine.publish import abandon, publish, publishing
from sparsify.errors import DataError

# No import of ours: what is tested is what the system says.
HOLD = """
import fcntl, os, sys, time
os.mkdir(sys.argv[1])
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def elsewhere(action):
    """What another thread gets, an error or None."""
    found = []

    def run():
        try:
            action()
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0] if found else None


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_folder_has_one_writer_and_a_killed_one_holds_nothing(tmp_path):
    out = tmp_path / "out"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(InUse) as caught, locked(out):
            pass
        sentence = str(caught.value)
        assert sentence.startswith(f"'{out}' is being written by process {other.pid}, started 20")
        assert sentence.endswith("; wait for it or choose another folder")
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    assert names(tmp_path) == ["out"]
    with locked(out):
        assert names(out) == []


def test_every_spelling_is_the_same_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a" / "out")
    with locked(Path("a/out")):
        for spelling in (Path("a/../a/out"), tmp_path / "a" / "out", Path("link")):
            assert isinstance(elsewhere(lambda s=spelling: locked(s).__enter__()), InUse)
            with locked(spelling):  # the holder itself may ask again
                pass
        assert elsewhere(lambda: locked(Path("b")).__enter__()) is None
    assert not (tmp_path / "a" / "out").exists()


def test_what_was_made_and_stayed_empty_goes(tmp_path):
    with pytest.raises(RuntimeError), locked(tmp_path / "a" / "b"):
        raise RuntimeError
    assert names(tmp_path) == []
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "file").touch()
    assert names(tmp_path) == ["a", "a/b", "a/b/file"]


def test_folders_that_cannot_be_are_told(tmp_path):
    (tmp_path / "file").touch()
    for path, sentence in (
        (tmp_path / "file", f"'{tmp_path / 'file'}' is a file; name a folder to write into"),
        (tmp_path / "file" / "x", f"could not open '{tmp_path / 'file' / 'x'}': Not a directory"),
    ):
        with pytest.raises(DataError) as caught, locked(path):
            pass
        assert str(caught.value) == sentence


def test_a_file_system_without_locks_is_told_once(tmp_path, monkeypatch, caplog):
    def refuse(descriptor, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    (tmp_path / ".x-01234567.partial").mkdir()
    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    for _ in range(2):
        with locked(tmp_path):
            pass
    assert [record.message for record in caplog.records] == [
        f"the file system of '{tmp_path}' has no locks (No locks available); see to it that nothing "
        "else writes there"
    ]
    assert names(tmp_path) == [".x-01234567.partial"]  # it may be at work


def test_python_calls_refuse_a_folder_at_work(traced, tmp_path):
    program, out = traced("block"), tmp_path / "out"
    (tmp_path / "state").mkdir()
    with locked(out), locked(tmp_path / "state"):
        calls = {
            "save": lambda: sparsify.save(program, out),
            "export": lambda: sparsify.export(program, out, ["safetensors"]),
            "run": lambda: sparsify.parse("insert-masks").run(program, resume=tmp_path / "state"),
        }
        for call in calls.values():
            assert isinstance(elsewhere(call), InUse)
        assert names(out) == []
        sparsify.export(program, out, ["safetensors"])  # here the caller itself holds it
    assert folders(out) == [out / "safetensors"]
    assert names(tmp_path / "state") == []


def leave(tmp_path):
    """What kills leave, beside a folder, in it and in the folder of work."""
    out = tmp_path / "out"
    (out / ".resume" / "pass-01").mkdir(parents=True)
    for path in (
        tmp_path / ".out-01234567.partial",
        tmp_path / ".other-01234567.partial",
        out / ".onnx-89abcdef.partial",
        out / ".safetensors-89abcdef.before",
        out / ".huggingface-89abcdef.before",
        out / "huggingface",
        out / ".resume" / "pass-01" / ".step-00000002-00000000.partial",
        out / ".mine",
    ):
        path.mkdir()
        (path / "file").write_text(path.name)
    (out / ".run.json-0a0a0a0a.partial").write_text("half")
    return out


def test_what_kills_left_goes_and_what_was_replaced_comes_back(tmp_path):
    out = leave(tmp_path)
    assert [path.name for path in folders(out)] == ["huggingface"]
    with locked(out):
        pass
    assert names(tmp_path) == [
        ".other-01234567.partial", ".other-01234567.partial/file", "out", "out/.mine", "out/.mine/file",
        "out/.resume", "out/.resume/pass-01", "out/huggingface", "out/huggingface/file",
        "out/safetensors", "out/safetensors/file",
    ]  # fmt: skip
    assert (out / "safetensors" / "file").read_text() == ".safetensors-89abcdef.before"
    assert (out / "huggingface" / "file").read_text() == "huggingface"


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced_whole_also_where_two_cannot_be_exchanged(
    exchange, tmp_path, monkeypatch
):
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for text in ("one", "two"):
        with new_folder(tmp_path / "link", overwrite=True) as folder:
            (folder / text).write_text(text)
    assert names(tmp_path) == ["link", "out", "out/two"]
    assert (tmp_path / "link").is_symlink()


def test_a_kill_between_two_renames_loses_nothing(tmp_path, monkeypatch):
    out = tmp_path / "out"
    with new_folder(out) as folder:
        (folder / "old").touch()
    rename, calls = Path.rename, []

    def once(self, target):
        calls.append(target)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(files, "_exchange", lambda one, other: False)
        patch.setattr(Path, "rename", once)
        with pytest.raises(KeyboardInterrupt), new_folder(out, overwrite=True) as folder:
            (folder / "new").touch()
    assert not out.exists()
    with locked(out):
        assert names(tmp_path) == ["out", "out/old"]


def results(folder: Path) -> None:
    for name in ("run.json", "onnx", "report.json"):
        (folder / name).write_text("new")


def test_a_result_takes_its_place_after_the_earlier_one_has_left_it(tmp_path, monkeypatch):
    out, work = tmp_path, tmp_path / ".resume"
    for name in ("run.json", "safetensors", "mine"):
        (out / name).write_text("old")
    moves = []
    rename = Path.rename

    def watch(self, target):
        if self.parent != out / ".resume" and not self.name.startswith("."):
            moves.append(f"{self.name} {'out' if target.parent != out else 'in'}")
            if len(moves) == broken:
                raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watch)
    for broken in (1, 2, 3, 4, 5, 0):
        work.mkdir(exist_ok=True)
        moves.clear()
        try:
            publish(work, out, results, ("run.json", "safetensors"), last="run.json")
        except KeyboardInterrupt:
            held = {
                path.read_text() for path in out.iterdir() if path.name in ("onnx", "safetensors")
            }
            assert len(held) <= 1  # never of both
            assert publishing(work) == (broken > 2)
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        "mine": "old", "onnx": "new", "report.json": "new", "run.json": "new",
    }  # fmt: skip


def test_an_abandoned_result_gives_the_earlier_one_back(tmp_path):
    (tmp_path / ".resume" / "earlier").mkdir(parents=True)
    (tmp_path / ".resume" / "earlier" / "run.json").write_text("old")
    abandon(tmp_path / ".resume", tmp_path)
    assert names(tmp_path) == ["run.json"]
    abandon(tmp_path / ".resume", tmp_path)
    forget(tmp_path / "nothing")


def refuse(writing, error):
    with writing as place:
        (place / "f" if place.is_dir() else place).write_bytes(bytes(200_000))
        raise error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "Disk quota exceeded"),
        (
            SafetensorError("Error while serializing: I/O error: No space (os error 28)"),
            "No space left on device",
        ),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
            "the disk took only a part of it",
        ),
    ],
)
def test_a_full_disk_is_one_sentence_whoever_tells_it(error, reason, tmp_path):
    (tmp_path / "f").write_text("old")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "f").write_text("old")
    for writing in (new_file(tmp_path / "f"), new_folder(tmp_path / "out", overwrite=True)):
        with pytest.raises(DataError) as caught:
            refuse(writing, error)
        path = caught.value.args[0].split("'")[1]
        assert str(caught.value).startswith(f"could not write '{path}': with 0.2 MB written and ")
        assert str(caught.value).endswith(f" MB free: {reason}")
        assert path in (str(tmp_path / "f"), str(tmp_path / "out"))
    assert names(tmp_path) == ["f", "out", "out/f"]
    assert (tmp_path / "f").read_text() == (tmp_path / "out" / "f").read_text() == "old"


def test_errors_of_other_kinds_stay_what_they_are(tmp_path):
    for error in (RuntimeError("no"), SafetensorError("InvalidHeader")):
        with pytest.raises(type(error)), new_folder(tmp_path / "out"):
            raise error
    assert names(tmp_path) == []
    with pytest.raises(DataError, match=r"could not write '.*x/f.json': No such file or directory"):
        write_json(tmp_path / "x" / "f.json", {})


def test_files_that_may_not_grow_leave_nothing(traced, tmp_path):
    """Python, safetensors and torch.save each meet the system's own refusal."""
    resource = pytest.importorskip("resource")
    big = torch.zeros(1 << 18)

    def python(place):
        (place / "f").write_bytes(big.numpy())

    def tensors(place):
        save_file({"a": big}, place / "f")

    def pickled(place):
        torch.save({"a": big}, place / "f")

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, limits[1]))
    try:
        for write in (python, tensors, pickled):
            with (
                pytest.raises(DataError, match=f"could not write '{tmp_path / 'out'}': "),
                new_folder(tmp_path / "out") as place,
            ):
                write(place)
            assert names(tmp_path) == []
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_recovering_a_folder_that_is_not_there_is_nothing(tmp_path):
    recover(tmp_path / "a" / "b")
    assert names(tmp_path) == []
