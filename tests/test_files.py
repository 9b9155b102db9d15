"""Writing replaces regular files only."""

import json
import math
import os
import stat
import threading
from pathlib import Path

import pytest

from hf_masking.files import check_file, write_json, written_aside
from hf_masking.streams import is_stdout


def write(path, content="new"):
    check_file(path)
    with written_aside(path) as aside:
        aside.write_text(content)


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "old.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real/old.json")
    (tmp_path / "dangling.json").symlink_to("real/new.json")
    for name in ("link.json", "dangling.json"):
        write(tmp_path / name)
        assert (tmp_path / name).is_symlink()
    assert {path.name: path.read_text() for path in (tmp_path / "real").iterdir()} == dict.fromkeys(
        ("old.json", "new.json"), "new"
    )


def test_a_pipe_is_written_into(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write(pipe)
    reader.join()
    assert read == ["new"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert list(tmp_path.iterdir()) == [pipe]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices, and only root could replace one")
def test_a_device_stays_one(tmp_path):
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("no devices in this container")
    (tmp_path / "link").symlink_to(device)
    for path in (device, tmp_path / "link"):
        write(path)
        assert stat.S_ISCHR(device.stat().st_mode)


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output(name, capsysbinary):
    write(Path(name))
    assert is_stdout(Path(name))
    assert capsysbinary.readouterr().out == b"new"


def test_an_open_file_is_not_cut(tmp_path):
    with (tmp_path / "log").open("w") as file:
        file.write("before\n")
        file.flush()
        write(Path(f"/dev/fd/{file.fileno()}"), "figures\n")
        file.write("after\n")
    assert (tmp_path / "log").read_text() == "before\nfigures\nafter\n"


def test_what_cannot_be_written_is_known_before(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("mine")
    for name, message in {
        "loop": "leads to itself",
        "file/x.json": "is a file, not a folder",
        "n" * 300: "name too long",
        "n" * 250: "name too long",
    }.items():
        with pytest.raises((ValueError, OSError), match=message):
            check_file(tmp_path / name)
    for name, message in {"/dev/fd/999": "Bad file descriptor", "/proc/nothing.json": "cannot be written"}.items():
        with pytest.raises(ValueError, match=message):
            check_file(Path(name))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


def test_figures_that_are_not_finite_are_null(tmp_path):
    path = tmp_path / "figures.json"
    write_json(path, {"worst": math.inf, "rows": [{"loss": math.nan, "by_position": (-math.inf, 1.5, None)}]})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "worst": None, "rows": [{"loss": None, "by_position": [None, 1.5, None]}],
    }  # fmt: skip
