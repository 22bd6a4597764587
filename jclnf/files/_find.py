"""Models by their names: one place where every command and `load_model` look."""

import os
from pathlib import Path

from jclnf.errors import ModelFileError, did_you_mean
from jclnf.openface import installed_mains, models_folder

DEFAULT_MODEL = "default"
"""Name of the bundled model that is loaded where none is named."""


def find_model(name: str | os.PathLike[str]) -> Path:
    """The file or folder of a model: a path, the name of a bundled or of an installed model.

    Use it where the file itself matters; `load_model` takes the same names.

    Raises:
        ModelFileError: a plain name that no model has; it lists those that there are.
    """
    path = Path(name)
    if os.path.exists(path) or len(path.parts) != 1:
        return path
    bundled = [model for model in bundled_models() if model.stem == str(name)]
    installed = [models_folder() / f"{prefix}{name}.txt" for prefix in ("main_", "")]
    for candidate in (*bundled, *installed):
        if os.path.isfile(candidate):
            return candidate
    if path.suffix:
        return path
    mains = [main.stem.removeprefix("main_") for main in installed_mains()]
    names = [*(model.stem for model in bundled_models()), *mains]
    near = did_you_mean(str(name), names)
    there = ", ".join(names) or "none"
    raise ModelFileError(
        path,
        f"no such file, and no model of that name (there are: {there}){near}; give the path of one",
    )


def bundled_models() -> list[Path]:
    """The files of the models that come with jclnf."""
    return sorted(path for folder in _bundled_folders() for path in folder.glob("*.safetensors"))


def bundled_file(name: str) -> Path:
    """Another file that comes with jclnf, of a name in the folder of its models.

    Raises:
        ModelFileError: it is missing.
    """
    for folder in _bundled_folders():
        if (folder / name).is_file():
            return folder / name
    raise ModelFileError(name, "belongs to jclnf, and is missing; install jclnf again")


def _bundled_folders() -> tuple[Path, Path]:
    package = Path(__file__).resolve().parents[1]
    # In a wheel the folder lies inside the package, in a checkout beside it.
    return package / "models", package.parent / "models"
