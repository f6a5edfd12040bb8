"""Where a model lies: a folder, or what the Hugging Face cache of this machine has under an id. It
downloads nothing.
"""

from __future__ import annotations

import re
from pathlib import Path

from batchgen.errors import UserError
from batchgen.oneline import one_line
from batchgen.paths import kind_of

_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # org/name


def find_model(model: Path) -> Path:
    """The folder of a model. `model`: a folder, or an id `org/name` of the Hugging Face hub.

    An id needs the package huggingface_hub, and that it was downloaded with that. Raises UserError.
    """
    kind = kind_of(model)
    if kind == "folder":
        return model
    if kind or not _ID.fullmatch(str(model)):
        raise UserError(
            f"model {model} is not a folder",
            remedy="give a Hugging Face folder, or make one with 'batchgen model init DIR'",
        )
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            f"model {model} is not a folder; ids of the Hugging Face hub need huggingface_hub",
            remedy=f"give a folder, or: pip install huggingface_hub && hf download {model}",
        ) from None
    try:
        found = huggingface_hub.snapshot_download(str(model), local_files_only=True)
    except Exception as error:  # its classes moved between versions; none of them is a bug of ours
        missing = type(error).__name__ == "LocalEntryNotFoundError"
        raise UserError(
            f"model {model} is neither a folder nor in the local Hugging Face cache"
            + ("" if missing else f" ({one_line(error, 120)})"),
            remedy=f"download it: hf download {model}",
        ) from None
    return Path(found)
