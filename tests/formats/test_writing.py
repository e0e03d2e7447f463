"""What is written is there whole or not at all, after a crash at any moment and on a full disk."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import converted_directory, converted_resnet, huggingface_directory

import convert
from minift import pretrained
from minift.errors import UserError
from minift.pretrained import find, is_converted, read, whole, write, write_json


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def left(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir())


def test_what_a_crashed_conversion_has_left_is_not_taken_in(tmp_path):
    source = huggingface_directory(tmp_path / "source")
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "stale.txt").write_text("stale")
    convert.main([str(source), "--out", str(tmp_path / "out")])
    assert left(tmp_path / "out") == ["config.json", "model.safetensors", "tokenizer.json"]
    assert left(tmp_path) == ["out", "out.part", "source"]


def test_what_is_replaced_leaves_nothing_behind(tmp_path):
    directory = converted_directory(tmp_path / "bert")
    (directory / "stale.txt").write_text("stale")
    write(directory, read(directory))
    assert left(directory) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert left(tmp_path) == ["bert", "bert-source"]


def write_and_crash(place: Path, limit: int) -> int:
    """In a process of its own, which ends without a word at its touch of the disk number `limit`: its exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    steps = 0

    def counted(real):
        def call(*arguments, **options):
            nonlocal steps
            if steps == limit:
                os._exit(9)
            steps += 1
            return real(*arguments, **options)

        return call

    Path.rename, Path.mkdir, Path.write_text = counted(Path.rename), counted(Path.mkdir), counted(Path.write_text)
    os.fsync, shutil.rmtree = counted(os.fsync), counted(shutil.rmtree)
    try:
        with whole(place) as fresh:
            for name in "ab":
                (fresh / name).write_text("new")
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("exists", [True, False])
def test_a_crash_at_any_step(tmp_path, exists):
    """The process ends at its n-th touch of the disk, for every n: afterwards there is the old content or the new one, whole."""
    seen = set()
    for n in range(40):
        place = tmp_path / str(n) / "model"
        place.parent.mkdir()
        if exists:
            place.mkdir()
            (place / "a").write_text("old")
        code = write_and_crash(place, n)
        pretrained.recover(place)
        content = {path.name: path.read_text() for path in place.iterdir()} if place.exists() else None
        assert content in ({"a": "old"} if exists else None, {"a": "new", "b": "new"}), (n, content)
        seen.add(str(content))
        if code == 0:
            break
        assert code == 9
    else:
        pytest.fail("it never ended")
    assert n > 8 and len(seen) == 2


def test_reading_puts_back_what_a_crash_has_left_aside(tmp_path, monkeypatch):
    directory = converted_directory(tmp_path / "bert")
    aside = pretrained.aside_of(directory)
    directory.rename(aside)
    assert is_converted(directory) and directory.is_dir() and not aside.exists()
    directory.rename(aside)
    assert read(directory).architecture == "bert"
    monkeypatch.setenv("MINIFT_WEIGHTS", str(tmp_path))
    directory.rename(aside)
    assert find("bert") == directory

    run = tmp_path / "run"  # between the two renames of an epoch that is kept
    shutil.copytree(directory, pretrained.aside_of(run / "model"))
    write_json(run / "config.json", {"flags": {}})
    assert find(str(run)) == run / "model"


def test_a_directory_of_the_user_s_own_is_left_alone(tmp_path):
    directory = converted_directory(tmp_path / "bert")
    directory.rename(tmp_path / "bert.old")
    with pytest.raises(UserError, match="no such directory"):
        find(str(directory))
    assert (tmp_path / "bert.old").is_dir()


def test_an_error_in_the_middle_leaves_the_old_one(tmp_path):
    directory = converted_directory(tmp_path / "bert")
    before = files(directory)
    with pytest.raises(KeyboardInterrupt), whole(directory) as fresh:
        (fresh / "config.json").write_text("new")
        raise KeyboardInterrupt
    assert files(directory) == before and left(tmp_path) == ["bert", "bert-source"]


def test_ctrl_c_between_the_two_renames(tmp_path, monkeypatch):
    directory = converted_directory(tmp_path / "bert")
    before, real = files(directory), Path.rename

    def rename(self, target):
        if Path(target).name == "bert" and self.name == "new":
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        write(directory, read(directory))
    assert files(directory) == before and left(tmp_path) == ["bert", "bert-source"]


def test_a_link_to_the_directory_stays_one(tmp_path):
    directory = converted_directory(tmp_path / "bert")
    (tmp_path / "link").symlink_to(directory)
    write(tmp_path / "link", read(directory))
    assert (tmp_path / "link").is_symlink() and not directory.is_symlink() and is_converted(directory)


def test_rights_are_the_usual_ones(tmp_path):
    directory = converted_directory(tmp_path / "bert")
    (tmp_path / "usual").mkdir()
    assert directory.stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o644}


# ---- a full disk ----


def small_disk(room: int):
    """Every write of this process beyond `room` bytes a file fails as on a full disk; EFBIG in place of ENOSPC."""
    resource, signal = pytest.importorskip("resource"), pytest.importorskip("signal")
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, old[1]))

    def restore():
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)

    return restore


@pytest.mark.parametrize("room", [10, 2000, 12000])
def test_a_full_disk_is_one_line(tmp_path, room):
    source, resnet = huggingface_directory(tmp_path / "source"), converted_resnet(tmp_path / "resnet")
    bert = converted_directory(tmp_path / "bert")
    kept = files(bert)
    before = left(tmp_path)
    restore = small_disk(room)
    try:
        for arguments in (
            [str(source), "--out", str(tmp_path / "out")],
            [str(bert), "--to", "hf", "--out", str(tmp_path / "out")],
            [str(resnet), "--to", "hf", "--out", str(tmp_path / "out")],
        ):
            with pytest.raises(UserError) as error:
                convert.main(arguments)
            line = str(error.value)
            assert "\n" not in line and f"{tmp_path / 'out'}: cannot be written (" in line, line
            assert left(tmp_path) == before
        with pytest.raises(UserError, match="what was there before is unchanged"):
            write(bert, read(bert))
    finally:
        restore()
    assert files(bert) == kept and left(tmp_path) == before


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_full_disk_under_a_file_of_torchvision_s(tmp_path, monkeypatch, suffix):
    from minift.formats import torchvision

    checkpoint = read(converted_resnet(tmp_path / "resnet"))
    monkeypatch.setattr(torchvision, "built_by", lambda *arguments: "call")  # the tiny one is built by no library
    before = left(tmp_path)
    restore = small_disk(2000)
    try:
        with pytest.raises(UserError, match=r"out.* cannot be written \(.*unchanged") as error:
            torchvision.write(tmp_path / f"out{suffix}", checkpoint)
    finally:
        restore()
    assert "\n" not in str(error.value) and left(tmp_path) == before
    torchvision.write(tmp_path / f"out{suffix}", checkpoint)
    assert left(tmp_path) == sorted([*before, f"out{suffix}", "out.json"])


def test_a_directory_that_may_not_be_written(tmp_path):
    source = huggingface_directory(tmp_path / "source")
    (tmp_path / "file").write_text("a file where a directory should be")
    with pytest.raises(UserError, match=r"file/out: cannot be written \(") as error:
        convert.main([str(source), "--out", str(tmp_path / "file" / "out")])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_errors_that_name_no_file(tmp_path, monkeypatch, number):
    directory = converted_directory(tmp_path / "bert")
    kept = files(directory)

    def fail(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=os.strerror(number)):
        write(directory, read(directory))
    assert files(directory) == kept


# ---- names that are no UTF-8 ----


def test_half_a_surrogate_pair_is_written_as_an_escape(tmp_path):
    content = {"label": "a\ud800", "path": os.fsdecode(b"caf\xe9"), "other": "é"}
    write_json(tmp_path / "x.json", content)
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == content
    write_json(tmp_path / "y.json", {"other": "é"})
    assert "é" in (tmp_path / "y.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("which", ["source", "out", "run"])
def test_a_path_that_is_no_utf_8_is_refused_by_name(tmp_path, which):
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        source = huggingface_directory(tmp_path / "source")
        shutil.copytree(source, odd)
    except OSError:
        pytest.skip("this file system takes no such names")
    arguments = {
        "source": [str(odd), "--out", str(tmp_path / "new")],
        "out": [str(source), "--out", str(odd / "new")],
        "run": [str(converted_directory(tmp_path / "bert").rename(odd / "bert")), "--to", "hf", "--out", str(tmp_path / "new")],
    }
    with pytest.raises(UserError, match="is not UTF-8") as error:
        convert.main(arguments[which])
    assert "\n" not in str(error.value) and not (tmp_path / "new").exists()


def test_a_full_disk_under_the_output_of_a_command(tmp_path):
    script = "import sys; from minift.errors import command; command(lambda arguments: print('x' * 5000), 'predict')"
    done = subprocess.run(
        ["bash", "-c", f'ulimit -f 1; exec "$0" -c "{script}" > "$1"', sys.executable, str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (2, f"predict: writing failed: {os.strerror(errno.EFBIG)}\n")
