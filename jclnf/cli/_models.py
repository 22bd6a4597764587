"""`jclnf models`: which models there are, what is in them, and installing OpenFace's."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jclnf.cli._base import INCOMPLETE, OK, CommandError, complain, printable
from jclnf.errors import InstallError, JclnfError

if TYPE_CHECKING:
    from jclnf.openface import Installed, Manifest, Progress

_INSTALL_EPILOG = """\
OpenFace's files are installed below $OPENFACE_MODELS_DIR/2.2.0, or without that variable below
OpenFaceModels/2.2.0 in your folder for application data, where other programs find them as well.
An installation that was cut short goes on where it ended when the command is run again.

exit code:
  0  every file that could be had is installed
  1  some files could not be installed, the others are
  2  nothing was installed: the licence was not accepted, no room, no network, no such copy

examples:
  jclnf models install openface --from ~/OpenFace/build/bin/model
  jclnf models install openface --from OpenFace_2.2.0_win_x64.zip --accept-license
  jclnf fit photo.jpg --model clnf_general
"""


def add_parser(subparsers: Any) -> None:
    """Describe the command to argparse."""
    p = subparsers.add_parser(
        "models",
        help="list and describe models, install OpenFace's",
        description="List and describe models, and install OpenFace's.",
    )
    actions = p.add_subparsers(title="actions", metavar="ACTION", required=True)

    install = actions.add_parser(
        "install",
        help="install OpenFace's model files",
        description="Install OpenFace's model files, from your own copy or from the network.",
        epilog=_INSTALL_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    install.set_defaults(run=run_install)
    install.add_argument("which", choices=("openface",), help="whose models")
    install.add_argument(
        "--from",
        dest="source",
        metavar="PATH",
        help="a folder, or a zip or tar archive, that has the files (default: download them)",
    )
    install.add_argument(
        "--accept-license",
        action="store_true",
        help="say that you accept the licence, and be asked no question",
    )
    install.add_argument("--quiet", action="store_true", help="print errors only")

    listed = actions.add_parser(
        "list", help="list the models that are installed", description="List the installed models."
    )
    listed.set_defaults(run=run_list)

    info = actions.add_parser("info", help="describe a model", description="Describe a model.")
    info.set_defaults(run=run_info)
    info.add_argument(
        "model",
        metavar="MODEL",
        help="a name that `jclnf models list` shows, a .safetensors file, or OpenFace's main file "
        "or model folder",
    )


def run_install(args: argparse.Namespace) -> int:
    """Install OpenFace's files; return the exit code that the help describes."""
    from jclnf.openface import download, install_from, models_folder, read_manifest

    manifest = read_manifest()
    folder = models_folder(manifest.version)
    _ask(args, manifest)
    try:
        with _bar(args) as progress:
            if args.source is None:
                done = download(manifest, folder, progress=progress)
            else:
                source = Path(args.source).expanduser()
                done = install_from(manifest, source, folder, progress=progress)
    except InstallError as error:
        raise CommandError(str(error)) from None
    for problem in done.problems:
        complain(f"{problem}: left out")
    if not args.quiet:
        _report(done)
    return INCOMPLETE if done.problems else OK


def _ask(args: argparse.Namespace, manifest: "Manifest") -> None:
    """Show the licence; raise if it is not accepted."""
    if not (args.quiet and args.accept_license):
        print(f"{manifest.name} {manifest.version}: {manifest.licence}.")
        print(manifest.licence_summary)
        print(f"The licence: {manifest.licence_url}", flush=True)
    if args.accept_license:
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
def _bar(args: argparse.Namespace) -> "Iterator[Progress]":
    """A progress bar, on a terminal only."""
    from tqdm import tqdm

    hidden = True if args.quiet or not sys.stderr.isatty() else None
    with tqdm(unit="B", unit_scale=True, disable=hidden) as bar:

        def progress(path: str, size: int) -> None:
            bar.set_description(path.rpartition("/")[2], refresh=False)
            bar.update(size)

        yield progress


def _report(done: "Installed") -> None:
    there = f", {len(done.there_already)} were there already" if done.there_already else ""
    print(f"{len(done.copied)} files installed in {printable(str(done.folder))}{there}.")
    if done.missing:
        print(f"Not to be had there: {', '.join(done.missing)}.")
    if done.unverified:
        print(
            f"Read, but not compared with the originals, whose hashes we do not know: "
            f"{', '.join(done.unverified)}."
        )
    print("Use one with `jclnf fit --model NAME`; `jclnf models list` shows the names.")


def run_list(args: argparse.Namespace) -> int:
    """Print a line for each model that is installed."""
    del args
    from jclnf.files import bundled_models
    from jclnf.openface import installed_mains, models_folder, read_manifest

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
    from jclnf.openface import named_files

    try:
        return named_files(main), "OpenFace"
    except JclnfError:
        return [main], "damaged"


def _size(files: list[Path]) -> str:
    return f"{sum(file.stat().st_size for file in files if file.is_file()) / 1e6:.1f} MB"


def run_info(args: argparse.Namespace) -> int:
    """Print what a model is and has."""
    import jclnf
    from jclnf.files import find_model
    from jclnf.openface import main_file, named_files, offers, read_manifest

    try:
        path = find_model(args.model)
        native = path.suffix == ".safetensors"
        if native:
            model, files, missing = jclnf.load_model(path), [path], []
        else:
            path = main_file(path)
            files = named_files(path)
            missing = [file.name for file in files if not file.is_file()]
            options = {} if missing else offers(path)
            model = jclnf.load_openface(path, **options)
    except JclnfError as error:
        raise CommandError(str(error)) from None
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


def _contents(model: Any) -> Iterator[tuple[str, str]]:
    """What a model has, as labels and values."""
    import numpy as np

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
