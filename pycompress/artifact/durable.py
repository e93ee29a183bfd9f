"""Files that are read whole and written whole: a reader sees the old file or the new one, never a part."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from os import PathLike

from .container import ArtifactError


def check_path(path: object) -> None:
    """Raise a TypeError when path is neither a str nor a path, a ValueError when no file can have that name.

    Examples
    --------
    >>> check_path(1)
    Traceback (most recent call last):
    TypeError: path must be a str or a path, got int
    """
    if not isinstance(path, (str, PathLike)):
        raise TypeError(f"path must be a str or a path, got {type(path).__name__}")
    name = os.fspath(path)
    if not name or ("\0" if isinstance(name, str) else b"\0") in name:
        raise ValueError(f"path must be the name of a file, got {name!r}")


def write_file(path: str | PathLike[str], data: bytes) -> None:
    """Replace the file at path by data, atomically and durably.

    The bytes go to a new hidden file in the same folder, ``.NAME.<random>.tmp``; they are on the disk before that file
    takes the place of the old one, and so is the folder's entry when the function returns. The old file, when mapped
    or open elsewhere, keeps its content there. The mode follows the umask. A symbolic link is followed. On any failure
    the new file is removed and the old one is untouched; only a killed process leaves its ``.tmp`` file behind.

    Parameters
    ----------
    path : str or path
    data : bytes

    Raises
    ------
    ArtifactError
        When path is a folder, a device or a pipe.
    OSError
        When the folder cannot be written, or the disk is full or broken.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_file(folder + "/a", b"new")
    ...     read_file(folder + "/a"), os.listdir(folder)
    (b'new', ['a'])
    """
    target = os.path.realpath(os.fspath(path))
    if os.path.exists(target) and not os.path.isfile(target):
        raise ArtifactError(f"path must be a regular file or new, got {target!r}")
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f".{name[:40]}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def read_file(path: str | PathLike[str]) -> bytes:
    """Read a regular file whole.

    Raises
    ------
    ArtifactError
        When path is a folder, or a device or a pipe, which may never end.
    OSError
        When there is no such file, or it cannot be read.

    Examples
    --------
    >>> read_file("no such file")
    Traceback (most recent call last):
    FileNotFoundError: [Errno 2] No such file or directory: 'no such file'
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ArtifactError(f"path must be a regular file, got {os.fspath(path)!r}")
    with open(path, "rb") as file:
        return file.read()


def _sync_folder(folder: str) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot sync a folder
            raise
    finally:
        os.close(descriptor)
