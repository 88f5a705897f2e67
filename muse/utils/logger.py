"""Plain log text: one line an event, with its time, from the main process only."""
import logging
import sys

from tqdm import tqdm


class _ProgressAwareHandler(logging.Handler):
    """Writes lines above a running progress bar instead of through it."""

    def emit(self, record):
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()  # a run whose output goes to a file must show its last line when it is killed


def setup_logger(main_process=True):
    """The `muse` logger, `2026-11-24 10:00:00 text` on standard output; other processes say only warnings and worse."""
    logger = logging.getLogger("muse")
    handler = _ProgressAwareHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if main_process else logging.WARNING)
    return logger
