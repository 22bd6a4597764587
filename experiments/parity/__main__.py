"""How closely jclnf agrees with OpenFace's C++: every stage on its own, and whole fits."""

from pathlib import Path

import jclnf
from experiments.common import (
    Row,
    command_line,
    faces,
    missed,
    model_file,
    pivot,
    table,
    write_results,
)
from experiments.parity import fits, stages

HERE = Path(__file__).resolve().parent

TITLE = "Agreement with OpenFace 2.2 C++"


def main() -> None:
    command_line(__doc__).parse_args()
    models = {kind: jclnf.load_openface(model_file(kind)) for kind in ("general", "wild")}
    images = {face.name: face.image for face in faces()}
    parts: dict[str, list[Row]] = {}
    parts["Areas of interest, given the recorded parameters"] = list(
        stages.areas_rows(models, images)
    )
    parts[
        "CCNF responses, given the recorded areas: largest difference of a map's pixels, divided "
        "by the recorded map's maximum"
    ] = list(stages.responses_rows(models))
    parts["Other stages, given the recorded state before each: largest absolute difference"] = list(
        stages.stage_rows(models)
    )
    parts[
        "Areas, responses and mean shift in a row, given the recorded parameters: difference of "
        "the mean shift at the recorded offsets"
    ] = list(stages.chain_rows(models, images))
    single, far_single = fits.single_rows(models)
    rotated, far_rotated = fits.rotated_rows(models["general"])
    multi, far_multi = fits.multi_rows(models["general"])
    parts["Whole fits"] = [*single, *multi, *rotated]
    parts["The same fit in other ways"] = list(fits.transformed_rows(models["general"]))
    far = [*far_single, *far_rotated, *far_multi]

    rows = [row for part in parts.values() for row in part]
    sentence, wrong = missed(rows)
    body = [sentence]
    body += [f"## {name}\n\n{pivot(part)}" for name, part in parts.items()]
    if far:
        lines = [[f"{v:.4g}" if isinstance(v, float) else v for v in one.values()] for one in far]
        listed = table(list(far[0]), lines)
    else:
        listed = "None."
    body += [f"## Fits with a landmark more than {fits.FAR} px from the recorded one\n\n{listed}"]
    numbers = {"rows": rows, "not met": wrong, "far": far}
    write_results(HERE, TITLE, "\n\n".join(body), numbers)


if __name__ == "__main__":
    main()
