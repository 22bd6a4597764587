"""`jclnf models`: which models there are, what is in them, and installing OpenFace's."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import jclnf
from jclnf.cli._base import INCOMPLETE, OK, CommandError, complain, printable
from jclnf.cli._commands import Info, Install, List
from jclnf.errors import JclnfError
from jclnf.files import bundled_models, find_model
from jclnf.fitting import Model
from jclnf.images import names
from jclnf.openface import (
    Installed,
    Manifest,
    Progress,
    download,
    install_from,
    installed_mains,
    main_file,
    models_folder,
    named_files,
    offers,
    read_manifest,
)
from jclnf.runtime import Meter


def install(options: Install) -> int:
    """Install OpenFace's files; return the exit code that the help describes."""
    manifest = read_manifest()
    folder = models_folder(manifest.version)
    _ask(options, manifest)
    with _bar(options.quiet) as progress:
        if options.source is None:
            done = download(manifest, folder, progress=progress)
        else:
            source = options.source.expanduser()
            done = install_from(manifest, source, folder, progress=progress)
    for problem in done.problems:
        complain(f"{problem}: left out")
    if not options.quiet:
        _report(done)
    return INCOMPLETE if done.problems else OK


def _ask(options: Install, manifest: Manifest) -> None:
    """Show the licence; raise if it is not accepted."""
    if not (options.quiet and options.accept_license):
        print(f"{manifest.name} {manifest.version}: {manifest.licence}.")
        print(manifest.licence_summary)
        print(f"The licence: {manifest.licence_url}", flush=True)
    if options.accept_license:
        return
    try:
        answer = input("Do you accept it? [y/N] ")
    except EOFError:
        print()
        raise CommandError(
            "nobody answered whether the licence is accepted: nothing was installed; "
            "say it with --accept-license"
        ) from None
    if answer.strip().lower() not in ("y", "yes"):
        raise CommandError("the licence was not accepted: nothing was installed")


@contextmanager
def _bar(quiet: bool) -> Iterator[Progress]:
    """How far the installation is."""
    with Meter("installing", unit="B", scale=True, quiet=quiet) as meter:

        def progress(path: str, size: int) -> None:
            meter.name = path.rpartition("/")[2]
            meter.step(size)

        yield progress


def _report(done: Installed) -> None:
    there = f", {len(done.there_already)} were there already" if done.there_already else ""
    print(f"{len(done.copied)} files installed in {printable(str(done.folder))}{there}.")
    if done.missing:
        print(f"Not to be had there: {names(done.missing)}.")
    if done.unverified:
        print(
            f"Read, but not compared with the originals, whose hashes we do not know: "
            f"{', '.join(done.unverified)}."
        )
    print("Use one with `jclnf fit --model NAME`; `jclnf models list` shows the names.")


def show_list(_: List) -> int:
    """Print a line for each model that is installed."""
    rows = [(path.stem, "jclnf", _size([path]), str(path)) for path in bundled_models()]
    manifest = read_manifest()
    for main in installed_mains():
        files, state = _files(main)
        missing = [file for file in files if not file.is_file()]
        if missing:
            state = f"incomplete, {len(missing)} files missing, such as {missing[0].name}"
        rows.append((main.stem.removeprefix("main_"), state, _size(files), str(main)))
    for name, state, size, path in rows:
        print(printable(f"{name:<16} {state:<10} {size:>9}  {path}"))
    if installed_mains():
        print(f"OpenFace's models: {manifest.licence} ({models_folder(manifest.version)}).")
    else:
        print("OpenFace's models are not installed: see `jclnf models install openface --help`.")
    return OK


def _files(main: Path) -> tuple[list[Path], str]:
    """The files of one of OpenFace's models, and what to call its state."""
    try:
        return named_files(main), "OpenFace"
    except JclnfError:
        return [main], "damaged"


def _size(files: list[Path]) -> str:
    return f"{sum(file.stat().st_size for file in files if file.is_file()) / 1e6:.1f} MB"


def info(options: Info) -> int:
    """Print what a model is and has."""
    path = find_model(options.model)
    native = path.suffix == ".safetensors"
    path = path if native else main_file(path)
    files = [path] if native else named_files(path)
    missing = [] if native else [file.name for file in files if not file.is_file()]
    model = jclnf.load_model(path, **({} if native or missing else offers(path)))
    manifest = read_manifest()
    licence = "as its model card says" if native else f"{manifest.licence} ({manifest.licence_url})"
    for label, value in (
        ("model", model.name or path.stem),
        ("file", str(path)),
        ("size", _size(files)),
        ("licence", licence),
        *_contents(model),
        *((("files missing", ", ".join(missing)),) if missing else ()),
    ):
        print(printable(f"{label:<18} {value}"))
    return OK


def _contents(model: Model) -> Iterator[tuple[str, str]]:
    """Contents of a model, as labels and values."""
    experts, defaults = model.experts, model.defaults
    yield "experts", type(experts).__name__
    yield "landmarks", str(model.pdm.n_landmarks)
    yield "shape modes", str(model.pdm.n_modes)
    scales = ", ".join(f"{scaling:g}" for scaling in model.scalings)
    yield "scales (px/mm)", scales
    views = np.rad2deg(np.asarray(experts.centres[0]))
    degrees = "; ".join(", ".join(str(round(float(angle))) for angle in view) for view in views)
    yield "views", f"{len(views)} (pitch, yaw, roll in degrees: {degrees})"
    yield "windows", ", ".join(map(str, defaults.windows))
    yield "iterations", f"{defaults.iterations} of each pass at each scale"
    yield "parts", ", ".join(part.name for part in model.parts) or "none"
    known = {"Confidence": "learned", "Validator": "OpenFace's validator"}
    kind = type(model.confidence).__name__
    yield "confidence", "none" if model.confidence is None else known.get(kind, kind)
    rule = "none" if model.early_termination is None else "yes"
    yield "early termination", rule
