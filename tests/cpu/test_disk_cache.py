"""The files of compiled kernels: nobody else's are believed, and no damaged or moved one."""

import errno
import itertools
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastmlp_kernels import disk_cache
from fastmlp_kernels.disk_cache import CacheFolder

STRANGER = 12345
CONTENT = bytes(range(256)) * 3

posix = pytest.mark.skipif(os.name != "posix", reason="folders and files have owners on POSIX")


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(disk_cache, "_said", set())


@pytest.fixture
def folder(tmp_path):
    made = CacheFolder(tmp_path / "a" / "b")
    made.write("name", "identity", CONTENT)
    assert made.read("name", "identity") == CONTENT
    return made


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def give_away(path, monkeypatch):
    """Let a file or folder belong to another user."""
    if os.geteuid() == disk_cache.ROOT:
        os.chown(path, STRANGER, -1, follow_symlinks=False)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: STRANGER)


@posix
@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
def test_what_is_made_is_the_users_own(tmp_path, umask):
    before = os.umask(umask)
    try:
        folder = CacheFolder(tmp_path / "a" / "b")
        folder.write("name", "identity", CONTENT)
    finally:
        os.umask(before)
    made = [tmp_path / "a", tmp_path / "a" / "b", folder.path]
    assert [stat.S_IMODE(each.stat().st_mode) for each in made] == [0o700] * 3
    assert stat.S_IMODE((folder.path / "name").stat().st_mode) == 0o600
    assert folder.read("name", "identity") == CONTENT


@posix
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775, 0o707])
def test_the_folder_around_it_may_be_open_to_all(folder, caplog, mode):
    """A checkout under umask 002, a shared folder: what lies inside is the user's alone."""
    folder.path.parent.chmod(mode)
    assert folder.read("name", "identity") == CONTENT
    folder.write("name", "identity", CONTENT[:5])
    assert folder.read("name", "identity") == CONTENT[:5] and not caplog.records


@posix
@pytest.mark.parametrize("mode", [0o770, 0o720, 0o702, 0o777, 0o1777])
@pytest.mark.parametrize("of_the_folder", [True, False])
def test_what_others_can_write_to_is_refused_with_one_warning(folder, caplog, mode, of_the_folder):
    path = folder.path if of_the_folder else folder.path / "name"
    path.chmod(mode)
    for _ in range(3):
        assert folder.read("name", "identity") is None
        if of_the_folder:
            folder.write("name", "identity", CONTENT)
    (message,) = warnings(caplog)
    assert str(path) in message and "others can write to" in message
    assert "Delete it, or set NUMBA_CACHE_DIR" in message
    path.chmod(mode & 0o755)
    assert folder.read("name", "identity") == CONTENT


@posix
@pytest.mark.parametrize("of_the_folder", [True, False])
def test_what_another_user_made_is_refused(folder, caplog, monkeypatch, of_the_folder):
    """Also for root, who may read everything."""
    path = folder.path if of_the_folder else folder.path / "name"
    give_away(path, monkeypatch)
    for _ in range(3):
        assert folder.read("name", "identity") is None
    if of_the_folder:
        folder.write("name", "other", CONTENT)
    (message,) = warnings(caplog)
    assert str(path) in message and "another user" in message


@posix
def test_what_is_roots_is_the_systems(folder, monkeypatch, caplog):
    if os.geteuid() == disk_cache.ROOT:
        monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
    else:
        monkeypatch.setattr(disk_cache, "ROOT", os.geteuid())
        monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
    assert folder.read("name", "identity") == CONTENT and not caplog.records


@posix
def test_each_user_has_a_folder_of_a_name_of_its_own(tmp_path, monkeypatch):
    mine = CacheFolder(tmp_path).path
    monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
    assert CacheFolder(tmp_path).path != mine


@posix
@pytest.mark.parametrize("swapped", ["folder", "file"])
def test_what_is_swapped_after_the_check_is_not_read(folder, monkeypatch, swapped):
    """What was opened is checked, and what was checked is read: never a path twice."""
    evil = CacheFolder(folder.path.parent.parent / "evil")
    evil.write("name", "identity", b"evil")
    check = disk_cache._check

    def check_and_swap(descriptor, path, is_kind):
        check(descriptor, path, is_kind)
        if (path == folder.path) == (swapped == "folder"):
            target, source = (
                (folder.path, evil.path)
                if swapped == "folder"
                else (folder.path / "name", evil.path / "name")
            )
            target.rename(target.with_name("aside"))
            source.rename(target)

    monkeypatch.setattr(disk_cache, "_check", check_and_swap)
    assert folder.read("name", "identity") == CONTENT


@posix
def test_links_are_not_followed(folder, tmp_path, caplog):
    aside = folder.path.rename(tmp_path / "aside")
    folder.path.symlink_to(aside)
    assert folder.read("name", "identity") is None
    folder.path.unlink()
    aside.rename(folder.path)
    file = (folder.path / "name").rename(tmp_path / "file")
    (folder.path / "name").symlink_to(file)
    assert folder.read("name", "identity") is None
    # A write replaces the link, not what it points to.
    folder.write("name", "identity", b"new")
    assert folder.read("name", "identity") == b"new" and b"new" not in file.read_bytes()
    assert len(warnings(caplog)) == 1


def test_a_file_under_another_name_is_not_there(folder):
    folder.write("other", "identity", b"other")
    os.replace(folder.path / "other", folder.path / "name")
    assert folder.read("name", "identity") is None
    assert folder.read("other", "identity") is None


def test_a_file_for_something_else_is_not_there_and_no_reason_to_warn(folder, caplog):
    """An edited source is an ordinary thing."""
    assert folder.read("name", "identity of an edited source") is None
    folder.write("name", "identity of an edited source", b"new")
    assert folder.read("name", "identity") is None and not caplog.records


@pytest.mark.parametrize("how", ["cut", "flipped", "longer"])
def test_a_damaged_file_is_not_there_whatever_the_damage(folder, caplog, how):
    path = folder.path / "name"
    whole = path.read_bytes()
    places = range(len(whole))
    for place in places:
        if how == "cut":
            path.write_bytes(whole[:place])
        elif how == "longer":
            path.write_bytes(whole + whole[: place + 1])
        else:
            changed = whole[place] ^ (1 << place % 8)
            path.write_bytes(whole[:place] + bytes([changed]) + whole[place + 1 :])
        assert folder.read("name", "identity") is None
    assert len(warnings(caplog)) == 1 and f"{path} is damaged" in caplog.text
    folder.write("name", "identity", CONTENT)
    assert folder.read("name", "identity") == CONTENT


@posix
@pytest.mark.parametrize("what", ["folder", "full folder", "pipe", "unreadable"])
def test_what_is_not_a_file_that_can_be_read_is_not_there(folder, caplog, what):
    path = folder.path / "name"
    path.unlink()
    if what == "pipe":
        os.mkfifo(path, 0o600)
    elif what == "unreadable":
        if os.geteuid() == disk_cache.ROOT:
            pytest.skip("root reads everything")
        path.write_bytes(b"")
        path.chmod(0)
    else:
        path.mkdir()
        if what == "full folder":
            (path / "inside").touch()
    assert folder.read("name", "identity") is None
    assert folder.read("name", "identity") is None
    (message,) = warnings(caplog)
    assert f"{path} cannot be read" in message
    folder.write("name", "identity", CONTENT)
    # A folder with something in it stays.
    kept = None if what == "full folder" else CONTENT
    assert folder.read("name", "identity") == kept
    assert not list(folder.path.glob(f"*{disk_cache.DRAFT}"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_full_disk_is_one_warning(folder, caplog, monkeypatch, number):
    write = disk_cache._write

    def write_half(path, opened, content):
        write(path, opened, content[: len(content) // 2])
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(disk_cache, "_write", write_half)
    for name in ("name", "other"):
        folder.write(name, "identity", b"new")
    (message,) = warnings(caplog)
    assert os.strerror(number) in message and str(folder.path) in message
    assert os.listdir(folder.path) == ["name"]
    assert folder.read("name", "identity") == CONTENT


def test_a_folder_that_vanishes_is_made_again(folder, caplog):
    (folder.path / "name").unlink()
    folder.path.rmdir()
    folder.path.parent.rmdir()
    assert folder.read("name", "identity") is None
    folder.write("name", "identity", CONTENT)
    assert folder.read("name", "identity") == CONTENT and not caplog.records


def test_a_file_in_the_place_of_the_folder_is_one_warning_each(tmp_path, caplog):
    folder = CacheFolder(tmp_path)
    folder.path.write_bytes(b"")
    for _ in range(2):
        assert folder.read("name", "identity") is None
        folder.write("name", "identity", CONTENT)
    assert len(warnings(caplog)) == 2


def test_what_killed_processes_left_is_swept_away_in_time(folder):
    old, young = (folder.path / f"{each}{disk_cache.DRAFT}" for each in ("old", "young"))
    for each in (old, young):
        each.touch()
    os.utime(old, (0, time.time() - 2 * disk_cache.DRAFT_SECONDS))
    folder.write("name", "identity", CONTENT)
    assert young.exists() and not old.exists()


def test_where_folders_have_no_descriptors(tmp_path, monkeypatch, caplog):
    """As on Windows."""
    monkeypatch.setattr(disk_cache, "POSIX", False)
    folder = CacheFolder(tmp_path)
    assert folder.read("name", "identity") is None
    folder.write("name", "identity", CONTENT)
    folder.write("name", "identity", CONTENT[:9])
    assert folder.read("name", "identity") == CONTENT[:9]
    assert os.listdir(folder.path) == ["name"] and not caplog.records


WRITES = """
import itertools, sys
from pathlib import Path
from fastmlp_kernels.disk_cache import CacheFolder
folder = CacheFolder(Path(sys.argv[1]))
print("ready", flush=True)
for k in itertools.count():
    for name in "abc":
        folder.write(name, "identity", (name + str(k % 10)).encode() * 200_000)
"""


def test_a_process_killed_while_it_writes_leaves_whole_files(tmp_path, child_environment, caplog):
    folder, moments = CacheFolder(tmp_path), random.Random(3)
    command = [sys.executable, "-c", WRITES, str(tmp_path)]
    for _ in range(15):
        with subprocess.Popen(command, env=child_environment, stdout=subprocess.PIPE) as child:
            assert child.stdout.readline()
            time.sleep(moments.uniform(0, 0.05))
            child.send_signal(signal.SIGKILL)
        for name in "abc":
            found = folder.read(name, "identity")
            assert found is None or found == found[:2] * 200_000 and found[:1] == name.encode()
    assert folder.read("a", "identity") is not None and not warnings(caplog)


def test_processes_that_write_at_a_time_leave_whole_files(tmp_path, child_environment, caplog):
    folder = CacheFolder(tmp_path)
    command = [sys.executable, "-c", WRITES, str(tmp_path)]
    children = [
        subprocess.Popen(command, env=child_environment, stdout=subprocess.PIPE) for _ in range(2)
    ]
    try:
        for child in children:
            assert child.stdout.readline()
        seen, deadline = 0, time.monotonic() + 30
        for reads, name in enumerate(itertools.cycle("abc")):
            # On a busy machine the writers may come late.
            if reads >= 150 and (seen or time.monotonic() > deadline):
                break
            found = folder.read(name, "identity")
            assert found is None or found == found[:2] * 200_000 and found[:1] == name.encode()
            seen += found is not None
    finally:
        for child in children:
            child.kill()
            child.wait()
            child.stdout.close()
    assert seen and not warnings(caplog)


def test_the_module_needs_no_numba(child_environment):
    source = "import sys, fastmlp_kernels.disk_cache, fastmlp_kernels.shield\n"
    source += "assert not {'numba', 'numpy', 'llvmlite'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", source], env=child_environment, check=True, timeout=60)
    assert Path(disk_cache.__file__).exists()
