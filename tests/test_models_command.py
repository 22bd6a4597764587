"""Installing, listing and describing models; the network is a server on this machine."""

import dataclasses
import errno
import hashlib
import io
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from support.openface_files import random_model, write_model

import jclnf
import jclnf.cli._models
from jclnf.cli import main
from jclnf.errors import InstallError
from jclnf.openface import Manifest, download, install_from, read_manifest
from jclnf.openface import _install as install
from jclnf.openface._install import ManifestFile

CONTENTS = {
    "main_a.txt": b"LandmarkDetector a.txt\n",
    "experts/b.dat": np.random.default_rng(3).bytes(600_000),
    "experts/c.dat": np.random.default_rng(4).bytes(1_000),
}


class Server(ThreadingHTTPServer):
    """Serves `files`; `cut` ends transfers after so many bytes, `requests` has path and range."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(CONTENTS)
        self.requests: list[tuple[str, str | None]] = []
        self.cut: dict[str, list[int]] = {}
        self.ranges = True
        self.status: dict[str, list[int]] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path, asked = self.path[1:], self.headers.get("Range")
        self.server.requests.append((path, asked))
        if self.server.status.get(path):
            return self.send_error(self.server.status[path].pop(0))
        if path not in self.server.files:
            return self.send_error(404)
        data = self.server.files[path]
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if begin and begin >= len(data):
            return self.send_error(416)
        if not self.server.ranges:
            begin = 0
        data = data[begin:]
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        cuts = self.server.cut.get(path)
        self.wfile.write(data[: cuts.pop(0)] if cuts else data)
        return None

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch) -> None:
    monkeypatch.setattr(install, "PAUSE", 0.0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def manifest_of(contents: dict[str, bytes], address: str | None = None) -> Manifest:
    files = [
        ManifestFile(
            path,
            len(data),
            hashlib.sha256(data).hexdigest(),
            () if address is None else (address + path,),
        )
        for path, data in contents.items()
    ]
    return dataclasses.replace(read_manifest(), files=tuple(files))


@pytest.fixture
def manifest(server: Server) -> Manifest:
    return manifest_of(CONTENTS, server.address)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_everything_is_fetched_once(server, manifest, tmp_path) -> None:
    seen: dict[str, int] = {}

    def progress(path: str, size: int) -> None:
        seen[path] = seen.get(path, 0) + size

    done = download(manifest, tmp_path / "new" / "folder", progress=progress)
    assert tree(done.folder) == CONTENTS
    assert (done.copied, done.problems, done.missing) == (list(CONTENTS), [], [])
    assert seen == {path: len(data) for path, data in CONTENTS.items()}
    again = download(manifest, done.folder)
    assert (again.copied, again.there_already) == ([], list(CONTENTS))
    assert len(server.requests) == 3


def test_a_broken_connection_is_taken_up_where_it_broke(server, manifest, tmp_path) -> None:
    server.cut["experts/b.dat"] = [100_000, 50_000]
    done = download(manifest, tmp_path)
    assert tree(tmp_path) == CONTENTS
    assert done.problems == []
    asked = [ranged for path, ranged in server.requests if path == "experts/b.dat"]
    assert asked == [None, "bytes=100000-", "bytes=150000-"]


def test_an_interrupted_installation_goes_on_at_the_next_call(server, manifest, tmp_path) -> None:
    server.cut["experts/b.dat"] = [1000] * install.ATTEMPTS
    with pytest.raises(
        InstallError, match=r"b\.dat: .* broke after 3000 of 600000 .*again to go on"
    ):
        download(manifest, tmp_path)
    assert tree(tmp_path) == {
        "main_a.txt": CONTENTS["main_a.txt"],
        "experts/.b.part.dat": CONTENTS["experts/b.dat"][:3000],
    }
    server.requests.clear()
    download(manifest, tmp_path)
    assert tree(tmp_path) == CONTENTS
    assert server.requests == [("experts/b.dat", "bytes=3000-"), ("experts/c.dat", None)]


def test_servers_that_know_no_ranges_send_all_of_it(server, manifest, tmp_path) -> None:
    server.ranges = False
    server.cut["experts/b.dat"] = [100_000]
    download(manifest, tmp_path)
    assert tree(tmp_path) == CONTENTS


def test_a_part_that_the_server_no_longer_has_is_fetched_anew(manifest, tmp_path) -> None:
    (tmp_path / "experts").mkdir()
    (tmp_path / "experts" / ".c.part.dat").write_bytes(b"x" * 1001)
    download(manifest, tmp_path)
    assert tree(tmp_path) == CONTENTS


@pytest.mark.parametrize(
    ("served", "problem"),
    [
        (b"x" * 1_000, "damaged or of another version"),
        (CONTENTS["experts/c.dat"] + b"x", "offers 1001 bytes, not 1000"),
        (CONTENTS["experts/c.dat"][:-1], "offers 999 bytes, not 1000"),
        (b"", "offers 0 bytes, not 1000"),
        (None, "answers 404"),
    ],
)
def test_other_files_than_the_right_ones_are_left_out(
    server, manifest, tmp_path, served, problem
) -> None:
    del server.files["experts/c.dat"]
    if served is not None:
        server.files["experts/c.dat"] = served
    done = download(manifest, tmp_path)
    (found,) = done.problems
    assert found.startswith("experts/c.dat: ")
    assert problem in found
    assert set(tree(tmp_path)) == set(CONTENTS) - {"experts/c.dat"}


def test_the_next_address_is_tried(server, tmp_path) -> None:
    file = manifest_of(CONTENTS, server.address).files[2]
    server.files["bad"] = b"x" * 999
    server.status["busy"] = [503] * install.ATTEMPTS
    urls = tuple(server.address + name for name in ("none", "bad", "busy")) + file.urls
    manifest = dataclasses.replace(read_manifest(), files=(dataclasses.replace(file, urls=urls),))
    assert download(manifest, tmp_path).copied == [file.path]
    assert tree(tmp_path) == {file.path: CONTENTS[file.path]}


def test_a_passing_failure_of_the_server(server, manifest, tmp_path) -> None:
    server.status["main_a.txt"] = [503, 500]
    assert download(manifest, tmp_path).problems == []
    assert tree(tmp_path) == CONTENTS


def test_nobody_answers(tmp_path) -> None:
    with Server() as unused:
        address = unused.address
    with pytest.raises(InstallError, match=r"main_a\.txt: .*cannot be reached.*--from"):
        download(manifest_of(CONTENTS, address), tmp_path)


def test_no_room(manifest, tmp_path, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InstallError, match="there is no room: 1 MB are needed, 0 MB are free"):
        download(manifest, tmp_path)


def test_the_disk_fills_up_meanwhile(manifest, tmp_path, monkeypatch) -> None:
    pour = install._pour

    def full(stream, out, file, progress, have):
        if file.path == "experts/b.dat":
            raise OSError(errno.ENOSPC, "No space left on device")
        return pour(stream, out, file, progress, have)

    with monkeypatch.context() as patch:
        patch.setattr(install, "_pour", full)
        with pytest.raises(InstallError, match=r"No space left on device.*make room"):
            download(manifest, tmp_path)
    assert tree(tmp_path)["main_a.txt"] == CONTENTS["main_a.txt"]
    download(manifest, tmp_path)
    assert tree(tmp_path) == CONTENTS


def test_a_folder_that_cannot_be_made(manifest, tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InstallError, match="cannot be written"):
        download(manifest, tmp_path / "file" / "folder")


def test_predictors_of_action_units_are_found_beside_the_detectors(tmp_path) -> None:
    """And in their own folder, in which two files have the names of others."""
    units = {
        "AU_predictors/pdm.txt": b"of action units\n",
        "AU_predictors/svm/one.dat": b"predictor",
    }
    contents = {"main_a.txt": b"main\n", "pdms/pdm.txt": b"of detectors\n"} | units
    manifest = manifest_of(contents)
    build = tmp_path / "build"
    pack("folder", {f"model/{n}": d for n, d in contents.items() if n not in units} | units, build)
    for source in ("model", "."):
        folder = tmp_path / f"from {source}"
        assert not install_from(manifest, build / source, folder).missing
        assert tree(folder) == contents
    done = install_from(manifest, build / "AU_predictors", tmp_path / "alone")
    assert tree(tmp_path / "alone") == units
    assert done.missing == ["main_a.txt", "pdms/pdm.txt"]


def pack(form: str, contents: dict[str, bytes], at: Path) -> Path:
    if form == "folder":
        for name, data in contents.items():
            (at / name).parent.mkdir(parents=True, exist_ok=True)
            (at / name).write_bytes(data)
        return at
    if form == "zip":
        with zipfile.ZipFile(at, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in contents.items():
                archive.writestr(name, data)
        return at
    with tarfile.open(at, f"w:{form}") as archive:
        for name, data in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return at


@pytest.mark.parametrize("form", ["folder", "zip", "gz", "xz", ""])
@pytest.mark.parametrize("prefix", ["", "OpenFace/build/bin/model/"])
def test_a_copy_that_the_user_has(tmp_path, form, prefix) -> None:
    source = pack(form, {prefix + name: data for name, data in CONTENTS.items()}, tmp_path / "has")
    done = install_from(manifest_of(CONTENTS), source, tmp_path / "new")
    assert tree(tmp_path / "new") == CONTENTS
    assert (done.missing, done.problems) == ([], [])


@pytest.mark.parametrize("form", ["zip", "gz"])
def test_names_in_an_archive_do_not_say_where_files_go(tmp_path, form) -> None:
    contents = {"../../b.dat": CONTENTS["experts/b.dat"], "/tmp/other.dat": b"x"}
    done = install_from(
        manifest_of(CONTENTS), pack(form, contents, tmp_path / "has"), tmp_path / "a" / "b" / "new"
    )
    assert tree(tmp_path / "a") == {"b/new/experts/b.dat": CONTENTS["experts/b.dat"]}
    assert done.missing == ["main_a.txt", "experts/c.dat"]


def test_line_endings_of_windows_become_the_originals(tmp_path) -> None:
    contents = CONTENTS | {"main_a.txt": b"LandmarkDetector a.txt\r\n"}
    install_from(manifest_of(CONTENTS), pack("zip", contents, tmp_path / "has"), tmp_path / "new")
    assert tree(tmp_path / "new") == CONTENTS


def test_a_file_of_another_version_is_left_out(tmp_path) -> None:
    contents = CONTENTS | {"experts/c.dat": b"y" * 1000, "experts/b.dat": b"x" * 2_000_000}
    source = pack("folder", contents, tmp_path / "has")
    done = install_from(manifest_of(CONTENTS), source, tmp_path / "new")
    assert "b.dat: is larger than 600000 bytes" in done.problems[0]
    assert "c.dat: is damaged or of another version" in done.problems[1]
    assert tree(tmp_path / "new") == {"main_a.txt": CONTENTS["main_a.txt"]}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "no such folder or archive"),
        (b"", "neither a folder nor a zip or tar"),
        (b"text", "neither a folder nor a zip or tar"),
        ("empty", "holds none of the missing files"),
        ("cut", "neither a folder nor|cannot be read"),
    ],
)
def test_sources_that_are_none(tmp_path, content, match) -> None:
    source = tmp_path / "source"
    if content == "empty":
        pack("zip", {"other": b""}, source)
    elif content == "cut":
        whole = pack("gz", CONTENTS, source).read_bytes()
        source.write_bytes(whole[:300_000])
    elif content is not None:
        source.write_bytes(content)
    with pytest.raises(InstallError, match=match):
        install_from(manifest_of(CONTENTS), source, tmp_path / "new")


def test_files_of_no_known_hash_are_read(tmp_path) -> None:
    name = "patch_experts/cen_patches_0.25_of.dat"
    (file,) = [file for file in read_manifest().files if file.path == name]
    assert (file.size, file.sha256) == (None, None)
    manifest = dataclasses.replace(read_manifest(), files=(file,))
    page = pack("folder", {name: b"<html>sign in</html>" * 99}, tmp_path / "has")
    done = install_from(manifest, page, tmp_path / "new")
    assert "not a file of convolutional experts" in done.problems[0]
    assert tree(tmp_path / "new") == {}


# The command line.


@pytest.fixture
def jclnf_models(monkeypatch, tmp_path, capsys):
    """Run `jclnf models ...` with an installation folder of its own: (code, stdout, stderr)."""
    monkeypatch.setenv(install.MODELS_DIR, str(tmp_path / "models"))

    def run(*arguments: object, answer: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        code = main(["models", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def of_contents(monkeypatch, manifest) -> None:
    monkeypatch.setattr(jclnf.cli._models, "read_manifest", lambda: manifest)


@pytest.mark.usefixtures("of_contents")
@pytest.mark.parametrize("answer", ["", "n\n", "\n", "no, never\n"])
def test_without_the_licence_nothing_is_installed(jclnf_models, server, tmp_path, answer) -> None:
    code, out, err = jclnf_models("install", "openface", answer=answer)
    assert code == 2
    assert "research use only" in out
    assert "nothing was installed" in err
    assert server.requests == []
    assert not (tmp_path / "models").exists()


@pytest.mark.usefixtures("of_contents")
@pytest.mark.parametrize(("options", "answer"), [((), "y\n"), (("--accept-license",), "")])
def test_download_by_the_command_line(jclnf_models, tmp_path, options, answer) -> None:
    code, out, err = jclnf_models("install", "openface", *options, answer=answer)
    assert (code, err) == (0, "")
    assert "3 files installed" in out
    assert tree(tmp_path / "models" / "2.2.0" / "originals") == CONTENTS


@pytest.mark.usefixtures("of_contents")
def test_problems_are_named_and_make_the_exit_code(jclnf_models, server) -> None:
    server.files["experts/c.dat"] = b"x" * 1000
    code, out, err = jclnf_models("install", "openface", "--accept-license", "--quiet")
    assert (code, out) == (1, "")
    assert "experts/c.dat: is damaged" in err


def test_where_models_are_without_the_variable(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv(install.MODELS_DIR, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = install.models_folder()
    assert folder.parts[-3:] == ("OpenFaceModels", "2.2.0", "originals")
    assert folder.is_relative_to(tmp_path)


def test_list_and_info(jclnf_models, tmp_path) -> None:
    code, out, _ = jclnf_models("list")
    assert (code, "jclnf models install openface" in out) == (0, True)
    folder = tmp_path / "models" / "2.2.0" / "originals"
    folder.mkdir(parents=True)
    made = random_model(1, landmarks=68, modes=3, scalings=(0.25,), views=1)
    path = write_model(folder, made)
    name = path.stem.removeprefix("main_")
    code, out, _ = jclnf_models("list")
    assert (code, name in out, "MB" in out, "research use only" in out) == (0, True, True, True)
    for given in (name, path.stem, path):
        code, out, err = jclnf_models("info", given)
        assert (code, err) == (0, "")
        rows = dict(line.split(None, 1) for line in out.splitlines() if line[:5] != "scale")
        assert (rows["experts"], rows["landmarks"], rows["views"][0]) == ("CCNF", "68", "1")
        assert rows["licence"].startswith("academic")
        # The list that was written names a part and a validator, which were not.
        assert "files missing" in out
    assert jclnf.load_model(name).pdm.n_modes == 3

    next(folder.rglob("*patches*")).unlink()
    assert "incomplete, 3 files missing, such as ccnf_patches" in jclnf_models("list")[1]
    code, _, err = jclnf_models("info", name)
    assert (code, "no such file" in err) == (2, True)
    jclnf.save_model(jclnf.load_openface(write_model(tmp_path, made)), tmp_path / "m.safetensors")
    assert "experts            CCNF" in jclnf_models("info", tmp_path / "m.safetensors")[1]


def test_the_name_of_the_bundled_model(jclnf_models) -> None:
    assert jclnf_models("list")[1].startswith("default ")
    code, out, err = jclnf_models("info", "default")
    assert (code, err) == (0, "")
    assert "landmarks          68" in out


@pytest.mark.parametrize("name", ["nothing", "no/such/file.txt", "a.safetensors"])
def test_info_on_what_is_not_there(jclnf_models, name) -> None:
    code, out, err = jclnf_models("info", name)
    assert (code, out) == (2, "")
    assert name in err


def test_the_manifest_is_right_and_openfaces_files_install(shared, jclnf_models, tmp_path) -> None:
    source = shared / "openface" / "model"
    code, out, err = jclnf_models("install", "openface", "--from", source, "--accept-license")
    assert (code, err) == (0, "")
    folder = tmp_path / "models" / "2.2.0" / "originals"
    known = {file.path for file in read_manifest().files if file.sha256 is not None}
    assert set(tree(folder)) == known
    for name in known:
        place = source.parent if name.startswith("AU_predictors/") else source
        assert (folder / name).read_bytes() == (place / name).read_bytes()
    assert "cen_patches_1.00_of.dat" in out
    code, out, _ = jclnf_models("info", "clnf_general")
    assert "inner, left_eye_28, right_eye_28" in out
