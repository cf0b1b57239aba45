import contextlib
import gzip
import threading

import pytest

from trilemma.data.files import atomic_folder, download, locked, read_unzipped
from trilemma.errors import UserError


def never(content):
    raise UserError("not the file")


def test_a_download_falls_back_to_the_next_mirror(mirror, tmp_path):
    folder, url = mirror
    (folder / "good").write_bytes(b"content")
    seen = []
    download([url + "missing", url + "good"], tmp_path / "file", verify=seen.append)
    assert (tmp_path / "file").read_bytes() == b"content"
    assert seen == [b"content"]


@pytest.mark.parametrize(("name", "reason"), [("missing", "404"), ("bad", "not the file")])
def test_a_failed_download_leaves_nothing_and_says_where_to_put_the_file(mirror, tmp_path, name, reason):
    folder, url = mirror
    (folder / "bad").write_bytes(b"x")
    with pytest.raises(UserError, match=rf"{name} \(.*{reason}.*put the file at {tmp_path}/file") as caught:
        download([url + name], tmp_path / "file", verify=never)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_mirror_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="refused"):
        download(["http://127.0.0.1:9/x"], tmp_path / "x", verify=never)


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "folder"
    with contextlib.suppress(KeyboardInterrupt), atomic_folder(target) as partial:
        (partial / "a").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(target) as partial:
        (partial / "a").write_text("whole")
        assert not target.exists()
    assert (target / "a").read_text() == "whole"
    assert list(tmp_path.iterdir()) == [target]


def test_the_lock_lets_one_in_at_a_time(tmp_path):
    events = []
    entered = threading.Event()

    def second():
        entered.wait()
        with locked(tmp_path / "new", "x"):
            events.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with locked(tmp_path / "new", "x"):
        entered.set()
        thread.join(timeout=0.1)
        events.append("first")
    thread.join()
    assert events == ["first", "second"]


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/folder: cannot be created.*data\.root"):
        locked(tmp_path / "file/folder", "x").__enter__()


def test_reading_decompresses_by_suffix(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"content", mtime=0))
    (tmp_path / "a").write_bytes(b"plain")
    assert (read_unzipped(tmp_path / "a.gz"), read_unzipped(tmp_path / "a")) == (b"content", b"plain")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (gzip.compress(b"content" * 99, mtime=0)[:-12], "truncated"),
        (b"hello", "not a valid gzip"),
        (None, "cannot be read"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "a.gz").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.gz: .*{reason}"):
        read_unzipped(tmp_path / "a.gz")
