"""Files that a job will write: whether they can be, and whether they are apart from each other."""

from __future__ import annotations

from pathlib import Path

from batchgen.errors import UserError
from batchgen.job.folder import JOB, default_folder
from batchgen.paths import check_new_output, check_output, check_result, real_path


def check_targets(
    output: Path,
    *,
    resume: str,
    folder: Path | None,
    force: bool,
    error_file: Path | None = None,
    manifest: Path | None = None,
    out: Path | None = None,
) -> None:
    """Before a long run, not after it. output "-": standard output, which needs no look; `folder`:
    of the job, None beside the output; `out`: a run directory. Raises UserError."""
    to_file = str(output) != "-"
    if to_file:
        check_output(output)
        if resume == "never":
            check_new_output(output, force=force)
    begun = (default_folder(output) if folder is None else folder) / JOB
    goes_on = resume == "always" or (resume == "if-possible" and begun.is_file())
    for path in (error_file, manifest):
        # A killed process may have left them: who goes on replaces its own.
        if path is not None:
            check_result(path, force=force or goes_on)
            if real_path(output) == real_path(path):
                raise UserError(f"{path} is the output", remedy="give another file")
    if error_file and manifest and real_path(error_file) == real_path(manifest):
        raise UserError(f"{manifest} is the --error-file too", remedy="give another --manifest")
    if folder is not None or to_file:
        own = real_path(begun.parent)
        for path in (output, error_file, manifest, out):
            if path is not None and real_path(path).is_relative_to(own):
                raise UserError(f"{path} lies in the folder of the job", remedy="give another name")
    if out is not None and real_path(out) == real_path(output):
        raise UserError(f"{out} is the output", remedy="give another --out")
