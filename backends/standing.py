"""Files of results that grow from run to run: what a later run must have in common with the one that began them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..compiler.errors import OptionError


def insist_on(found: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    """Compare the settings that a file records with those of this run.

    Args:
        found: As read from the file. What the dense model was measured to be (``dense``) is a result, not a setting.
        now: Of this run, anything that JSON holds.
        where: What the file is called.

    Raises:
        OptionError: They differ; names what was and what is.
    """
    now = json.loads(json.dumps(now))  # as what is in the file went
    changes = [
        f"{key} was {_short(found.get(key))} and is {_short(now.get(key))}"
        for key in dict.fromkeys([*found, *now])
        if key != "dense" and found.get(key) != now.get(key)
    ]
    if changes:
        raise OptionError(
            f"the file was measured with other settings: {', '.join(changes)}",
            where=where,
            hint="ask for the same again, or name another file",
        )


def _short(value: object) -> str:
    text = "nothing" if value in (None, "") else str(value)
    return text if len(text) <= 40 else text[:12] + "..."
