"""`jclnf fit --ray`: photographs by the thousand."""

from jclnf import distributed
from jclnf.cli._base import INCOMPLETE, OK, CommandError, complain, printable
from jclnf.cli._commands import Fit
from jclnf.cli._settings import fit_params
from jclnf.distributed import FACES, PhotographSettings
from jclnf.files import load_model
from jclnf.runtime import Meter, enable_compilation_cache, say, use_device

_NOT_HERE = ("aus", "box", "boxes", "centre", "csv_spaces", "focal", "full_precision")


def run(options: Fit) -> int:
    """Fit all faces of all photographs; return the exit code that the help describes."""
    for name in (*_NOT_HERE, "openface_csv"):
        if getattr(options, name):
            flag = name.replace("_", "-")
            raise CommandError(f"--{flag} is not for --ray, which writes {FACES} only")
    enable_compilation_cache()
    use_device("cpu")  # this process computes nothing
    model = load_model(options.model, parts=options.parts, validator=options.validator)
    settings = PhotographSettings(
        model=options.model,
        parts=options.parts,
        validator=options.validator,
        params=fit_params(options, model),
        detector=options.detector,
        min_face=options.min_face,
        one=options.one,
    )
    shards = distributed.fit_photographs(
        options.paths,
        options.out,
        settings,
        address=options.ray,
        workers=options.workers,
        device=options.device,
        resume=options.resume,
    )
    photographs = faces = failed = 0
    with Meter("all", unit="photographs", quiet=options.quiet) as meter:
        for shard in shards:
            meter.step(shard.photographs)
            photographs += shard.photographs
            faces += shard.faces
            failed += shard.failed + (shard.photographs == 0)
            for problem in shard.problems:
                complain(problem)
    if not options.quiet:
        text = f"{faces} faces of {photographs} photographs in {options.out / FACES}"
        say(printable(f"{text}, {failed} rows without success" if failed else text))
    return INCOMPLETE if failed else OK
