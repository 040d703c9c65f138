"""Which other users could change a file or a folder, or redirect a path."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from auditor.errors import RunNotWritableError

MAX_LINKS = 40
"""Links that a path may lead through, as in Linux."""

WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def describe_foreign_access(path: Path) -> str | None:
    """Return how another user could replace or change a file or folder; None if only the caller and root could.

    The caller's own private group does not count, see ``_is_private_group``.
    """
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        return "is a link"
    if found.st_uid not in {os.geteuid(), 0}:
        return f"belongs to another user (uid {found.st_uid})"
    # In a folder such as /tmp, the sticky bit keeps others from replacing what is not theirs.
    sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
    return "can be written by other users" if not sticky and is_writable_by_others(found) else None


def trusted_owners(folder: Path) -> frozenset[int] | None:
    """Return the users whose entries of a folder that all users can write are trusted; None: not all users can.

    They are the caller, root, and the owner of the folder. Members of a group that can write it are trusted, too: who
    gave them this right meant it. Raises OSError if the folder cannot be checked.
    """
    found = folder.stat()
    return frozenset({os.geteuid(), 0, found.st_uid}) if found.st_mode & stat.S_IWOTH else None


def find_foreign_access(folder: Path) -> str | None:
    """Return how another user could replace a folder, or one on the way to it, which is named; None if none could.

    Every link on the way is followed, and the folders that contain its target are checked like the others.

    Raises:
        OSError: a folder cannot be checked.
    """
    for path in _walk(folder):
        if path.is_symlink() and path.lstat().st_uid in {os.geteuid(), 0}:
            continue  # its target follows
        if (access := describe_foreign_access(path)) is not None:
            return f"{path} {access}"
    return None


def _walk(path: Path) -> Iterator[Path]:
    """Yield each folder and link that a path leads through, from the root to its end, as the system follows it.

    A link of the kernel, such as /dev/stdout, is the end: it may lead to what has no path.

    Raises:
        OSError: it leads through more links than the system follows, or a part of it does not exist.
    """
    place = Path("/")
    yield place
    rest, links = list(reversed(path.absolute().parts[1:])), 0
    while rest:
        part = rest.pop()
        if part == "..":
            place = place.parent
            continue
        place /= part
        yield place
        if stat.S_ISLNK(place.lstat().st_mode):
            if is_of_system(place.parent):
                return
            links += 1
            if links > MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
            target = Path(os.readlink(place))  # noqa: PTH115  keeps what the link says
            place = Path("/") if target.is_absolute() else place.parent
            rest += reversed(target.parts[1:] if target.is_absolute() else target.parts)


def is_writable_by_others(found: os.stat_result) -> bool:
    """Return whether a file's or folder's mode lets others than its owner and the caller's private group write it."""
    writable = found.st_mode & WRITABLE_BY_OTHERS
    # The mode first: finding a group may be a query over the network.
    return bool(writable) and not (writable == stat.S_IWGRP and _is_private_group(found.st_gid))


def _is_private_group(gid: int) -> bool:
    """Return whether a group is the caller's primary one, has the caller's name, and lists no other member.

    Many systems create such a group for each user. Users whose primary group it is too are not listed, and not found.
    """
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return gid == user.pw_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


def is_of_system(folder: Path) -> bool:
    """Return whether a folder has devices and open files, which only the kernel adds."""
    return folder == Path("/dev") or any(folder.is_relative_to(each) for each in ("/proc", "/dev/fd", "/dev/pts"))


def refuse_foreign_links(folder: Path) -> None:
    """Raise RunNotWritableError if a path goes through a link of another user, who could direct it anywhere."""
    for part in _walk(folder):
        if part.is_symlink() and (owner := part.lstat().st_uid) not in {os.geteuid(), 0}:
            raise RunNotWritableError(f"{part}: is a link of another user (uid {owner}); give the path itself")
