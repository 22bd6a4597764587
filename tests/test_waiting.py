"""What a person sees who waits, on which device, and where there is no JAX."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import pytest

import jclnf
from jclnf.cli import main
from jclnf.errors import ParamsError
from jclnf.runtime import (
    Meter,
    _compilation,
    _progress,
    announce_compilation,
    device_report,
    programs_compiled,
    share_device,
    use_device,
    use_one_thread_each,
)
from jclnf.video import Settings
from jclnf.video import _workers as workers

ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"


@pytest.fixture
def announced(monkeypatch):
    """Lines that are said while something is compiled, which here every program takes long to."""
    lines = []
    monkeypatch.setattr(_compilation._watch, "_last_end", float("-inf"))
    announce_compilation(lambda: lines.append("compiling"), patience=0.0)
    yield lines
    announce_compilation(None)


def compiled(size):
    """A program of its own for each size."""
    return jax.jit(lambda x: jnp.sort(jnp.sin(x) @ jnp.cos(x)))(jnp.ones((size, size)))


class TestCompiling:
    def test_it_is_announced_when_it_happens_and_once(self, announced, monkeypatch):
        program = jax.jit(lambda x: jnp.sort(jnp.sin(x) @ jnp.cos(x)))
        image = jnp.ones((31, 31))
        _compilation._watch._last_end = float("-inf")
        announced.clear()
        program(image)
        assert announced == ["compiling"]
        program(image)
        program(jnp.ones((32, 32)))  # of another size, but at once after the first
        assert announced == ["compiling"]
        monkeypatch.setattr(_compilation._watch, "_last_end", float("-inf"))
        program(image)  # nothing is compiled
        assert announced == ["compiling"]
        other = jnp.ones((33, 33))
        monkeypatch.setattr(_compilation._watch, "_last_end", float("-inf"))
        announced.clear()
        program(other)
        assert announced == ["compiling"]

    def test_what_is_quick_is_not_announced(self, announced):
        announce_compilation(lambda: announced.append("compiling"), patience=60.0)
        announced.clear()
        before = programs_compiled()
        compiled(34)
        assert programs_compiled() > before
        assert announced == []


class Clock:
    """Time, and programs that are compiled in it."""

    def __init__(self, monkeypatch):
        self.now, self.programs = 100.0, 0
        monkeypatch.setattr(_progress, "monotonic", lambda: self.now)
        monkeypatch.setattr(_progress, "programs_compiled", lambda: self.programs)
        monkeypatch.setattr(Meter, "_said", None)

    def step(self, meter, seconds, programs=0):
        self.now += seconds
        self.programs += programs
        meter.step()


class TestMeter:
    def test_without_a_terminal_there_is_a_line_now_and_then(self, monkeypatch, capsys):
        clock = Clock(monkeypatch)
        with Meter("clip.mp4", 900, unit="frames") as meter:
            for _ in range(500):
                clock.step(meter, 0.125)
        lines = capsys.readouterr().out.splitlines()
        assert lines == [
            "clip.mp4: 240 of 900 frames, 8 a second, 01:22 left",
            "clip.mp4: 480 of 900 frames, 8 a second, 00:52 left",
        ]

    def test_compiling_does_not_count(self, monkeypatch, capsys):
        clock = Clock(monkeypatch)
        meter = Meter("clip.mp4", 1000, done=500, unit="frames", every=0.0)
        clock.step(meter, 40.0, programs=3)
        for _ in range(9):
            clock.step(meter, 0.5)
        line = capsys.readouterr().out.splitlines()[-1]
        assert line == "clip.mp4: 510 of 1000 frames, 2.22 a second, 03:40 left"

    def test_many_short_works_share_their_lines(self, monkeypatch, capsys):
        """As the epochs of a training do: no flood, and no silence."""
        clock = Clock(monkeypatch)
        for epoch in range(1, 61):
            for _ in Meter(f"fit, epoch {epoch}", 10, unit="batches").over(range(10)):
                clock.now += 0.2
        lines = capsys.readouterr().out.splitlines()
        assert 3 <= len(lines) <= 4

    def test_a_terminal_has_a_bar(self, monkeypatch, capsys):
        clock = Clock(monkeypatch)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        with Meter("clip.mp4", 20, unit="frames", every=0.0) as meter:
            clock.step(meter, 3600.0, programs=1)  # of which the bar knows nothing
            meter._bar.refresh()
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "clip.mp4:" in captured.err
        assert "1/20" in captured.err

    def test_quiet_is_quiet(self, monkeypatch, capsys):
        clock = Clock(monkeypatch)
        with Meter("clip.mp4", quiet=True, every=0.0) as meter:
            clock.step(meter, 50.0)
        assert capsys.readouterr() == ("", "")


@pytest.fixture
def platforms():
    """JAX's settings as they were, after a test that changes them."""
    names = ("jax_platforms", "jax_cuda_visible_devices", "jax_rocm_visible_devices")
    before = {name: jax.config._read(name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.usefixtures("platforms")
class TestDevice:
    @pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU")
    @pytest.mark.parametrize("choice", ["gpu", "3"])
    def test_one_that_is_not_there_costs_a_line(self, choice, capfd, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for command in (["fit", "a.png"], ["video", "0"]):
            assert main([*command, "--device", choice]) == 2
            err = capfd.readouterr().err
            assert "JAX finds no GPU" in err
            assert err.count("\n") == 1
            assert list(tmp_path.iterdir()) == []

    def test_what_is_none(self):
        with pytest.raises(ParamsError, match="cpu, gpu or the number"):
            use_device("fast")

    def test_a_number_is_the_only_one_that_jax_sees(self):
        use_device("2", check=False)
        assert jax.config._read("jax_cuda_visible_devices") == "2"
        assert jax.config._read("jax_rocm_visible_devices") == "2"
        use_device("cpu")
        assert jax.config._read("jax_platforms") == "cpu"

    def test_one_thread_each_is_said_once(self, monkeypatch):
        """JAX takes programs of its cache for others if the flags are."""
        for before in ("", "--xla_dump_to=there", ONE_THREAD):
            monkeypatch.setenv("XLA_FLAGS", before)
            use_one_thread_each()
            once = os.environ["XLA_FLAGS"]
            assert once.split() == list(dict.fromkeys([*before.split(), ONE_THREAD]))
            use_one_thread_each()
            assert os.environ["XLA_FLAGS"] == once

    def test_several_processes_share_its_memory(self):
        assert share_device(3, {}) == {
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.25",
        }
        said = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.4"}
        assert share_device(2, said)["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.2"

    def test_workers_are_told_so_before_they_begin(self, monkeypatch, tmp_path):
        """A worker up to where it loads its model, which is what starts JAX."""
        seen = {}

        class Started(Exception):
            pass

        def load(_):
            seen.update(os.environ)
            raise Started

        given = []

        class Worker:
            def __init__(self, *work):
                given.append(work)

            def do(self, path, _):
                return workers.JobResult(path)

            def end(self):
                pass

        monkeypatch.setattr(workers, "_Worker", Worker)
        paths = ["a.mp4", "b.mp4", "c.mp4"]
        done = list(workers.process_videos(Settings(), paths, tmp_path, workers=2))
        assert [one.path for one in done] != []
        monkeypatch.setattr(os, "environ", dict(os.environ))
        monkeypatch.setattr(workers.signal, "signal", lambda *_: None)
        monkeypatch.setattr(workers, "load", load)
        monkeypatch.setattr(workers, "enable_compilation_cache", lambda _: None)
        threads = cv2.getNumThreads()
        with pytest.raises(Started):
            workers._serve(None, *given[0])
        cv2.setNumThreads(threads)
        assert seen["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.375"
        assert seen["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"

    def test_it_is_told_in_the_metadata(self):
        report = device_report()
        assert report["platform"] == jax.default_backend()
        assert report["name"] == jax.devices()[0].device_kind
        assert (report["memory_share"] is None) == (report["platform"] != "gpu")


@pytest.mark.parametrize(
    ("system", "machine", "says"),
    [("darwin", "x86_64", "Macs with Intel processors"), ("linux", "x86_64", "no jaxlib for it")],
)
def test_where_there_is_no_jax_a_start_ends_in_a_line(tmp_path, system, machine, says):
    (tmp_path / "jax.py").write_text("raise ImportError('no jaxlib for it\\nand more')")
    code = (
        f"import platform, sys; sys.platform = {system!r}; platform.machine = lambda: {machine!r}\n"
        "from jclnf.cli import main; sys.exit(main(['fit', 'a.png']))"
    )
    package = str(Path(jclnf.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), package])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
