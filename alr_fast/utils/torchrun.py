"""What torchrun learns from the processes that it starts."""

import contextlib
import os
import time
from pathlib import Path

from alr_fast.errors import UserError
from alr_fast.utils.files import write_json


def report_failure(text: str) -> None:
    """Tells torchrun why this process failed; its summary of the processes shows the first reason.

    Without torchrun nothing happens.

    Args:
        text: One line, or a traceback.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return
    # As torch.distributed.elastic.multiprocessing.errors.ErrorHandler writes it.
    details = {"py_callstack": text, "timestamp": str(int(time.time()))}
    with contextlib.suppress(OSError, UserError):  # the message itself has been printed
        write_json(Path(path), {"message": {"message": text, "extraInfo": details}})
