"""The one network configuration that ForgeOne writes itself, from a template, where nobody else brings one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from forgeone_shim.config.model import CniConfig
from forgeone_shim.errors import InvalidInput, syscall_error
from forgeone_shim.network.cni.config import decode, files_in, parse_list
from forgeone_shim.network.cni.template import render

FILE_NAME: Final = "10-forgeone.conflist"


def write(config: CniConfig, ranges: Sequence[str]) -> bool:
    """Write the configuration for the node's ranges; says whether it did.

    Another one in the folder has precedence, and what is there already is not written again.

    :raises InvalidInput: the template cannot be used; what is in the folder stays as it was.
    :raises InternalError: the file cannot be written.
    """
    folder = Path(config.conf_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        others = [name for name in files_in(config.conf_dir) if name != FILE_NAME]
    except OSError as error:
        raise syscall_error("list", folder, error) from error
    if others:
        return False
    try:
        template = Path(config.conf_template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput("cni.conf_template", f"{config.conf_template} cannot be read: {error}") from None
    text = render(template, ranges)
    # What could not be read back would be in the way of every pod.
    parse_list(decode(config.conf_template, text.encode()), config.conf_template)
    target, made = folder / FILE_NAME, folder / f".{FILE_NAME}.new"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if target.read_text(encoding="utf-8") == text:
            return False
    try:
        made.unlink(missing_ok=True)
        fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
        made.rename(target)
    except OSError as error:
        made.unlink(missing_ok=True)
        raise syscall_error("write", target, error) from error
    return True
