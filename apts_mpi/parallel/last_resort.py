"""What is left when a thread of the process holds the interpreter lock for ever: the one timer of faulthandler, a thread of C.

It shows the stacks after a while, or ends the process after a while; a wish to end comes before one to show. Any thread may call.
"""

from __future__ import annotations

import faulthandler
import sys
import threading

_lock = threading.Lock()
_end = _show = 0.0  # s, 0: not wished for


def end_after(seconds: float) -> None:
    """Show the stacks and end the process with status 1 unless ``stay`` or another wish follows within ``seconds``."""
    _wish(end=seconds)


def stay() -> None:
    """The process need not end."""
    _wish(end=0.0)


def show_after(seconds: float) -> None:
    """Show the stacks unless another wish follows within ``seconds``; 0: never."""
    _wish(show=seconds)


def _wish(end: float | None = None, show: float | None = None) -> None:
    global _end, _show
    with _lock:
        ending = _end > 0
        _end, _show = _end if end is None else end, _show if show is None else show
        if end is None and ending:
            return  # its time goes on
        if _end or _show:
            faulthandler.dump_traceback_later(_end or _show, exit=_end > 0, file=sys.__stderr__ or 2)
        else:
            faulthandler.cancel_dump_traceback_later()
