"""Hides from Python what Windows does not have, in each process that has this folder on its PYTHONPATH.

`make test-portable` runs the tests so: what cannot work takes the other path or says so. Only what Python itself does
not need here is hidden; signal.SIGKILL, for example, ends processes in the module `subprocess`.
"""

import ctypes
import os
import signal
import sys

MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "syslog")
OF_OS = (
    *("fork", "forkpty", "openpty", "wait3", "wait4", "waitid", "killpg", "getpgid", "setpgid", "setsid", "nice"),
    *("geteuid", "chown", "mkfifo", "mknod", "sched_getaffinity", "sched_setaffinity"),
    *(
        "posix_fadvise",
        "posix_fallocate",
        "fdatasync",
        "sync",
        "pread",
        "pwrite",
        "sendfile",
        "lockf",
        "fchmod",
    ),
    *("O_NOFOLLOW", "O_DIRECTORY"),
)
OF_SIGNAL = (
    *("pthread_sigmask", "pthread_kill", "setitimer", "getitimer", "alarm", "pause", "sigwait", "sigpending"),
    *("siginterrupt", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGCHLD", "SIGWINCH"),
)


def hide() -> None:
    """Hide it."""
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    for module, names in ((os, OF_OS), (signal, OF_SIGNAL)):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    ctypes.CDLL = _Library  # type: ignore[misc]


class _Library(ctypes.CDLL):
    """A C library without inotify."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("inotify_"):
            raise AttributeError(name)
        return super().__getattr__(name)


hide()
