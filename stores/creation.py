"""Making the skeleton of a store: it appears complete, or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .durable import sync_file, sync_folder, temporary
from .errors import StoreError, disk_error
from .layout import HEADER_COPY, Header, columns_of, parse_header, skeleton
from .leftovers import refuse_link
from .plan import StorePlan
from .remote import Place, RemotePath, small_content
from .zarrjson import METADATA

_AT_ONCE = 8
_MAX_HEADER = 256 * 2**20


def occupied(root: Place) -> bool:
    """Return whether a store, or anything else, is at `root`.

    Raises:
        OSError: the place cannot be looked at.
    """
    if isinstance(root, RemotePath):
        # What a creation that was interrupted has left is completed by the next one of the same plan.
        names = set(root.names()) - {"_owner"}
        return bool(names) and ((root / METADATA).is_file() or not (root / HEADER_COPY).is_file())
    return root.is_file() or (root.is_dir() and any(root.iterdir()))


def build(root: Place, plan: StorePlan, header: Header) -> bool:
    """Make a store without rows at `root`; return False if another process was faster.

    Raises:
        StoreError: another store is being made there, or the disk is full, read-only or broken.
    """
    try:
        return _remote(root, plan, header) if isinstance(root, RemotePath) else _local(root, plan, header)
    except OSError as error:
        needed = sum(len(content) for _, content in skeleton(header, columns_of(plan)))
        raise disk_error(error, root, needed) from error


def _local(root: Path, plan: StorePlan, header: Header) -> bool:
    """Build under a temporary name, then rename."""
    new = temporary(root.absolute())
    try:
        _write(new, plan, header)
        new.rename(root)
        sync_folder(root.absolute().parent)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and occupied(root):
            return False
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return True


def _write(root: Path, plan: StorePlan, header: Header) -> None:
    """Write and sync everything; the syncs wait for the disk together."""
    files = []
    root.mkdir(parents=True)
    for name, content in skeleton(header, columns_of(plan)):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        files.append(file)
    make_folders(root, header)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        _shared(pool, _sync, files)
        _shared(pool, sync_folder, [Path(folder) for folder, _, _ in os.walk(root)])


def _shared(pool: ThreadPoolExecutor, work: Callable[[Path], None], paths: Sequence[Path]) -> None:
    """Do all of it, a share a thread: handing over single ones would take as long as doing them."""

    def several(first: int) -> None:
        for path in paths[first::_AT_ONCE]:
            work(path)

    list(pool.map(several, range(min(_AT_ONCE, len(paths)))))


def _sync(file: Path) -> None:
    with file.open("rb") as opened:
        sync_file(opened.fileno())


def refuse_links(root: Place, header: Header) -> None:
    """Return if no folder of a store that is to be written is a link, which would take the writing elsewhere.

    Raises:
        StoreError: one is.
    """
    if isinstance(root, RemotePath):
        return
    paths = {"_owner", *(place for array in header.arrays() for place in _places(array.spec.path))}
    paths |= {f"samples/{name}" for name in ("id", *header.plan["labels"])}
    paths |= {f"points/{name}/{column}" for name in header.points() for column in ("start", "length")}
    parents = {"/".join(path.split("/")[:depth]) for path in paths for depth in range(1, path.count("/") + 2)}
    for path in sorted(parents):
        refuse_link(root / path)


def _places(path: str) -> tuple[str, str]:
    return f"{path}/c", f"_commit/{path}"


def make_folders(root: Path, header: Header) -> None:
    """Make the folders of chunks and commit records; copies of a store may have lost the empty ones.

    Raises:
        OSError: the disk is full or read-only.
    """
    for array in header.arrays():
        (root / "_commit" / array.spec.path).mkdir(parents=True, exist_ok=True)
        (root / array.spec.path / "c").mkdir(parents=True, exist_ok=True)


def _remote(root: RemotePath, plan: StorePlan, header: Header) -> bool:
    """Put the copy of the header first, which decides whose store it will be, and `zarr.json` last."""
    files = dict(skeleton(header, columns_of(plan)))
    document = files.pop(METADATA)
    try:
        (root / HEADER_COPY).create(files.pop(HEADER_COPY))
    except FileExistsError:
        document = small_content(root / HEADER_COPY, _MAX_HEADER)
        where = str(root / HEADER_COPY)
        if parse_header(json.loads(document)["attributes"], where).plan_hash != header.plan_hash:
            raise StoreError(
                f"a store of another plan is being made at {root}: choose another path, or delete it"
            ) from None
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda item: (root / item[0]).write_bytes(item[1]), files.items()))
    try:
        (root / METADATA).create(document)
    except FileExistsError:
        return False
    return True
