"""A new folder appears whole or not at all, whatever other processes do."""

import os
import shutil
import tempfile

import pytest

from flax_rerank.checkpoint import folder as folder_module
from flax_rerank.checkpoint import new_folder


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    left, others = tmp_path / ".out.partial-x", tmp_path / ".out2.partial-x"
    for folder in (left, others):
        (folder / "new").mkdir(parents=True)
    with new_folder(tmp_path / "out") as folder:
        assert not left.exists()
        # The folder that is being filled belongs to a process that lives, and stays where it is.
        with new_folder(tmp_path / "out") as second:
            assert second != folder
        shutil.rmtree(tmp_path / "out")
        assert folder.is_dir()
    assert sorted(os.listdir(tmp_path)) == [".out2.partial-x", "out"]


def test_of_two_that_make_the_same_folder_the_second_is_refused(tmp_path):
    def make(name, meanwhile=lambda: None):
        with new_folder(tmp_path / "out") as folder:
            (folder / name).touch()
            meanwhile()

    with pytest.raises(FileExistsError, match="out exists; pass overwrite"):
        make("late", meanwhile=lambda: make("early"))
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "early"]


def test_a_new_folder_is_not_taken_for_one_that_was_left(tmp_path, monkeypatch):
    free = []
    mkdtemp = tempfile.mkdtemp

    def another_looks(**arguments):
        with folder_module._locked(tmp_path) as alone:  # as it does before it removes what was left
            free.append(alone)
        return mkdtemp(**arguments)

    monkeypatch.setattr(tempfile, "mkdtemp", another_looks)
    with new_folder(tmp_path / "out"), folder_module._locked(tmp_path) as alone:
        free.append(alone)
    assert free == [False, True]
