"""Files put in place whole, and by one process at a time."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jclnf.errors import OutputError
from jclnf.outputs import (
    RECORD,
    Origin,
    abandon,
    appending,
    claim,
    discard,
    growing,
    locked,
    outputs_in,
    replacing,
    settle,
    write_bytes,
)

HOLD = """
import sys, time
from jclnf.outputs import appending, locked, replacing
kind, path = sys.argv[1:]
if kind == "replacing":
    with replacing(path) as part:
        part.write_bytes(b"half")
        print("ready", flush=True)
        time.sleep(60)
else:
    with locked(path), appending(path, b"header\\n") as append:
        append(b"row\\n")
        print("ready", flush=True)
        time.sleep(60)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def holder():
    """Starts a process that is in the middle of writing a file; killed at the end."""
    started = []

    def start(kind: str, path: Path) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, kind, str(path)], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def fail(part: Path, data: bytes, error: type[BaseException]) -> None:
    part.write_bytes(data)
    raise error


class TestReplacing:
    def test_a_file_appears_whole_with_the_usual_permissions(self, tmp_path):
        path = tmp_path / "model.safetensors"
        path.write_bytes(b"before")
        with replacing(path) as part:
            assert (part.parent, part.suffix) == (path.parent, path.suffix)
            part.unlink()
            part.touch(mode=0o600)  # as some libraries write
            part.write_bytes(b"after")
            assert path.read_bytes() == b"before"
        assert path.read_bytes() == b"after"
        assert names(tmp_path) == ["model.safetensors"]
        (tmp_path / "plain").touch()
        assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_what_was_there_survives_a_failure(self, tmp_path, error):
        path = tmp_path / "a.csv"
        path.write_bytes(b"before")
        with pytest.raises(error), replacing(path) as part:
            fail(part, b"half", error)
        assert path.read_bytes() == b"before"
        assert names(tmp_path) == ["a.csv"]

    def test_a_killed_process_leaves_what_was_there_and_nothing_after_the_next(
        self, tmp_path, holder
    ):
        path = tmp_path / "a.csv"
        path.write_bytes(b"before")
        process = holder("replacing", path)
        with pytest.raises(OutputError, match=rf"a\.csv: .* by process {process.pid} on "):
            write_bytes(path, b"second")
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert path.read_bytes() == b"before"
        assert len(names(tmp_path)) == 3
        write_bytes(path, b"after")
        assert (path.read_bytes(), names(tmp_path)) == (b"after", ["a.csv"])

    def test_leftovers_can_be_removed_but_not_those_in_use(self, tmp_path, holder):
        path = tmp_path / "a.png"
        process = holder("replacing", path)
        discard(path)
        assert len(names(tmp_path)) == 2
        process.kill()
        process.wait()
        discard(path)
        assert names(tmp_path) == []

    def test_a_download_goes_on_with_what_it_had(self, tmp_path):
        path = tmp_path / "a.dat"
        with pytest.raises(ConnectionError), replacing(path, keep=True) as part:
            fail(part, b"one", ConnectionError)
        with replacing(path, keep=True) as part:
            assert part.read_bytes() == b"one"
            part.write_bytes(b"one two")
        assert (path.read_bytes(), names(tmp_path)) == (b"one two", ["a.dat"])

    def test_failures_name_the_file_in_a_line(self, tmp_path, monkeypatch):
        missing = tmp_path / "nowhere" / "a.csv"
        with pytest.raises(OutputError, match=r"nowhere/a\.csv: cannot be written: No such file"):
            write_bytes(missing, b"")
        (tmp_path / "folder.csv").mkdir()
        with pytest.raises(OutputError, match=r"folder\.csv: cannot be written"):
            write_bytes(tmp_path / "folder.csv", b"")

        def full(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match=r"/a\.csv: cannot be written: No space left"):
            write_bytes(tmp_path / "a.csv", b"")
        assert names(tmp_path) == ["folder.csv"]

    def test_a_failure_of_what_is_read_is_not_the_outputs(self, tmp_path):
        with pytest.raises(FileNotFoundError), replacing(tmp_path / "a.csv"):
            (tmp_path / "elsewhere" / "b.csv").read_bytes()

    def test_threads_take_turns_or_are_told(self, tmp_path):
        """Whatever the timing, at most one is inside, and nothing is left."""
        path, inside, worst, done = tmp_path / "a", [], [], []

        def work() -> None:
            for _ in range(40):
                try:
                    with locked(path):
                        inside.append(1)
                        worst.append(len(inside))
                        time.sleep(0.0005)
                        inside.pop()
                        done.append(1)
                except OutputError:
                    time.sleep(0.0005)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert max(worst) == 1
        assert len(done) > 10
        assert names(tmp_path) == []


def interrupted(path: Path, row: bytes) -> None:
    def write(append) -> None:
        append(row)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), appending(path, b"header\n") as append:
        write(append)


class TestAppending:
    def test_rows_are_in_the_file_at_once(self, tmp_path):
        path = tmp_path / "a.csv"
        with appending(path, b"header\n") as append:
            assert path.read_bytes() == b"header\n"
            append(b"1\n")
            assert path.read_bytes() == b"header\n1\n"
            append(b"2\n")
            assert path.read_bytes() == b"header\n1\n2\n"
        assert names(tmp_path) == ["a.csv"]

    def test_they_replace_what_was_there_when_they_are_complete(self, tmp_path):
        path = tmp_path / "a.csv"
        path.write_bytes(b"before")
        interrupted(path, b"1\n")
        assert (path.read_bytes(), names(tmp_path)) == (b"before", [".a.part.csv", "a.csv"])
        with appending(path, b"header\n", resume=True) as append:
            append(b"2\n")
            assert path.read_bytes() == b"before"
        assert (path.read_bytes(), names(tmp_path)) == (b"header\n1\n2\n", ["a.csv"])
        interrupted(path, b"3\n")
        with appending(path, b"header\n") as append:
            append(b"4\n")
        assert (path.read_bytes(), names(tmp_path)) == (b"header\n4\n", ["a.csv"])

    def test_without_rows_what_was_there_stays(self, tmp_path):
        for before, after in ((b"before", b"before"), (None, b"header\n")):
            path = tmp_path / f"{before}.csv"
            if before is not None:
                path.write_bytes(before)
            with appending(path, b"header\n"):
                pass
            assert path.read_bytes() == after

    def test_the_second_process_is_told_the_first(self, tmp_path, holder):
        process = holder("appending", tmp_path / "a.csv")
        since = r"since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d: -c appending .*a\.csv$"
        with (
            pytest.raises(OutputError, match=rf"process {process.pid} on .* {since}"),
            locked(tmp_path / "a.csv"),
        ):
            pass
        process.kill()
        process.wait()
        assert (tmp_path / "a.csv").read_bytes() == b"header\nrow\n"
        with appending(tmp_path / "a.csv", b"other\n") as append:
            append(b"2\n")
        assert (tmp_path / "a.csv").read_bytes() == b"other\n2\n"


class TestGrowing:
    def test_folders_are_replaced_whole(self, tmp_path):
        path = tmp_path / "images"
        growing(path).mkdir()
        (path / "old").touch()
        beside = growing(path)
        assert beside != path
        beside.mkdir()
        (beside / "new").touch()
        assert names(path) == ["old"]
        assert growing(path, resume=True) == beside
        settle(path)
        assert (names(path), names(tmp_path)) == (["new"], ["images"])
        settle(path)
        assert names(path) == ["new"]

    def test_what_was_left_is_removed_by_a_run_that_begins_anew(self, tmp_path):
        path = tmp_path / "images"
        path.mkdir()
        (growing(path) / "deep").mkdir(parents=True)
        assert not growing(path).exists()
        abandon(path)
        assert names(tmp_path) == ["images"]


def of(source, digest=""):
    return Origin("video", source, digest)


class TestClaim:
    def claim(self, folder, *sources, endings=(".csv", ".png"), **options):
        stems = [Path(source.source).stem for source in sources]
        return claim(folder, "video", sources=sources, stems=stems, endings=endings, **options)

    def test_names_made_from_names_are_all_different(self, tmp_path):
        sources = [of("/a/p.mp4"), of("/b/P.mp4"), of("/a/p_2.mp4"), of("/a/p_smoothed.mp4")]
        found = self.claim(tmp_path, *sources, spared=("_smoothed.csv",))
        assert found == ["p", "P_2", "p_2_2", "p_smoothed_2"]
        assert set(outputs_in(tmp_path)) == {f"{s}{e}" for s in found for e in (".csv", ".png")}

    def test_a_source_keeps_its_names_and_takes_no_others(self, tmp_path):
        assert self.claim(tmp_path, of("/a/p.mp4", "1")) == ["p"]
        assert self.claim(tmp_path, of("/b/p.mp4", "2")) == ["p_2"]
        assert self.claim(tmp_path, of("/b/p.mp4", "2"), of("/a/p.mp4", "1")) == ["p_2", "p"]
        assert self.claim(tmp_path, of("/moved/p.mp4", "2")) == ["p_2"]
        assert self.claim(tmp_path, of("/a/p.mp4", "edited")) == ["p"]

    def test_what_is_not_in_the_record_is_kept(self, tmp_path):
        (tmp_path / "p.png").touch()
        (tmp_path / "Q.CSV").touch()
        assert self.claim(tmp_path, of("/p.mp4"), of("/q.mp4")) == ["p_2", "q_2"]
        assert self.claim(tmp_path, of("/p.mp4"), endings=(".csv",)) == ["p_2"]

    def test_an_input_is_kept_even_if_it_was_an_output(self, tmp_path):
        assert self.claim(tmp_path, of("/p.mp4")) == ["p"]
        (tmp_path / "p.csv").touch()
        (tmp_path / "link").symlink_to(tmp_path / "p.csv")
        assert self.claim(tmp_path, of("/p.mp4"), inputs=[tmp_path / "link"]) == ["p_2"]

    def test_names_that_are_fixed(self, tmp_path):
        claim(tmp_path, "fit", fixed=["t.csv"])
        (tmp_path / "t.csv").touch()
        claim(tmp_path, "fit", fixed=["t.csv"])
        with pytest.raises(OutputError, match=r"t\.csv: is read by this run, and is kept"):
            claim(tmp_path, "fit", fixed=["t.csv"], inputs=[tmp_path / "t.csv"])
        with pytest.raises(OutputError, match=r"t\.csv: was not written by jclnf eval"):
            claim(tmp_path, "eval", fixed=["t.csv"])
        assert claim(tmp_path, "fit", sources=[of("/t")], stems=["t"], endings=[".csv"]) == ["t_2"]
        (tmp_path / "mine.csv").touch()
        with pytest.raises(OutputError, match=r"mine\.csv: was not written by jclnf fit"):
            claim(tmp_path, "fit", fixed=["mine.csv"])

    def test_a_run_that_begins_anew_replaces_the_whole_of_the_last_one(self, tmp_path):
        assert self.claim(tmp_path, of("/a/p.png")) == ["p"]
        assert self.claim(tmp_path, of("/b/p.png"), anew=True) == ["p"]
        (tmp_path / "p_2.csv").touch()
        assert self.claim(tmp_path, of("/c/p.png")) == ["p_3"]

    def test_many_of_one_name(self, tmp_path):
        sources = [of(f"/{k}/p.png") for k in range(1000)]
        begun = time.monotonic()
        assert len(set(self.claim(tmp_path, *sources))) == 1000
        assert time.monotonic() - begun < 20

    def test_a_damaged_record_is_said_in_a_line(self, tmp_path):
        for text in (b"{", b"[]", b'{"outputs": {"a": 1}}', b'{"outputs": {"a": [1, 2, 3, 4]}}'):
            (tmp_path / RECORD).write_bytes(text)
            with pytest.raises(OutputError, match=r"\.jclnf\.json: is damaged: remove it"):
                outputs_in(tmp_path)
