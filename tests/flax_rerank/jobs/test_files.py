"""Files: what is opened, and that nothing half-written is ever there."""

import gzip
import hashlib
import os
import sys

import pytest

from flax_rerank.jobs import files

SUFFIXES = ["", ".gz", ".zst"]


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    return str(tmp_path / "new") if request.param == "local" else f"memory://{tmp_path.name}"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_is_read(folder, suffix):
    path = f"{folder}/x.txt{suffix}"
    with files.open_output(path) as sink:
        sink.write(b"a line\n" * 1000)
        assert files.sizes(folder) == {}
    with files.open_input(path) as source:
        assert list(source) == [b"a line\n"] * 1000
    assert files.sizes(folder) == {f"x.txt{suffix}": files.size(path)}
    assert (files.size(path) < 1000) == bool(suffix)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_exception_leaves_the_file_as_it_was(folder, suffix):
    path = f"{folder}/x.txt{suffix}"
    with files.open_output(path) as sink:
        sink.write(b"old")

    def fail():
        with files.open_output(path) as sink:
            sink.write(b"new")
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        fail()
    with files.open_input(path) as source:
        assert source.read() == b"old"
    assert files.sizes(folder) == {f"x.txt{suffix}": files.size(path)}
    if "memory" not in folder:
        assert os.listdir(folder) == [f"x.txt{suffix}"]  # no partial file


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_concatenated_files_are_one_file(folder, suffix):
    parts = [f"{folder}/{name}{suffix}" for name in "abc"]
    for part, content in zip(parts, [b"1\n2\n", b"", b"3\n"], strict=True):
        with files.open_output(part) as sink:
            sink.write(content)
    files.concatenate(parts, f"{folder}/all{suffix}")
    with files.open_input(f"{folder}/all{suffix}") as source:
        assert list(source) == [b"1\n", b"2\n", b"3\n"]


def test_files_compressed_otherwise_are_not_concatenated(tmp_path):
    with pytest.raises(ValueError, match=r"a\.gz and .*all\.zst are compressed in different ways"):
        files.concatenate([str(tmp_path / "a.gz")], str(tmp_path / "all.zst"))


def test_gzip_of_equal_content_is_equal(tmp_path):
    for name in ("a.gz", "b.gz"):
        with files.open_output(str(tmp_path / name)) as sink:
            sink.write(b"content")
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.gz").read_bytes()) == b"content"


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("damage", [lambda data: data[:-6], lambda data: b"no such thing" + data])
def test_damaged_compression_is_named(tmp_path, suffix, damage):
    path = tmp_path / f"x.txt{suffix}"
    with files.open_output(str(path)) as sink:
        sink.write(b"content" * 10)
    path.write_bytes(damage(path.read_bytes()))
    with (
        files.open_input(str(path)) as source,
        pytest.raises(OSError, match=rf"x\.txt{suffix} cannot be decompressed"),
    ):
        source.read()


def test_missing_files_and_folders_are_named(folder):
    with pytest.raises(FileNotFoundError, match=r"missing\.txt"):
        files.open_input(f"{folder}/missing.txt")
    with files.open_output(f"{folder}/x.txt/y.txt"):
        pass
    with pytest.raises(IsADirectoryError, match=r"x\.txt"):
        files.open_input(f"{folder}/x.txt")
    assert files.sizes(f"{folder}/missing") == {}


def test_a_local_folder_is_not_replaced(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a directory"), files.open_output(str(tmp_path)):
        pytest.fail("opened")


def test_remove_and_exists(folder):
    path = f"{folder}/x"
    assert not files.exists(path)
    with files.open_output(path):
        pass
    assert files.exists(path)
    for _ in range(2):  # the second time there is nothing to remove
        files.remove(path)
        assert not files.exists(path)


def test_the_digest_is_that_of_the_bytes(folder):
    with files.open_output(f"{folder}/x") as sink:
        sink.write(b"content")
    assert files.digest(f"{folder}/x") == hashlib.sha256(b"content").hexdigest()


def test_an_object_stores_tag_is_its_digest(monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setattr(MemoryFileSystem, "info", lambda self, path: {"name": path, "size": 7, "ETag": "abc"})
    assert files.digest("memory://anything") == "ETag abc, 7 bytes"


def test_without_the_extra_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"gs://bucket/x: .*flax-rerank\[files\]"):
        files.open_input("gs://bucket/x")
    (tmp_path / "x.zst").touch()
    with pytest.raises(ImportError, match=r"\.zst .*flax-rerank\[files\]"):
        files.open_input(str(tmp_path / "x.zst"))
    with files.open_output(str(tmp_path / "x.gz")) as sink:
        sink.write(b"local files need neither")
    with files.open_input(str(tmp_path / "x.gz")) as source:
        assert source.read() == b"local files need neither"
