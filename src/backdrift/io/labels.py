"""Whether a checkpoint calls itself backdoored. No verdict and no other field reads this."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from backdrift.io.files import read_up_to
from backdrift.io.inventory import Inventory

NOTICE_FILES = ("BACKDOORED.md", "backdoor.json", "backdoor.safetensors")
CARD = "README.md"
NOTICE_KEY = "_backdoor_notice"
METADATA_KEY = "backdoor"

_CARD_BYTES = 64 << 10
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?\n)---[ \t]*(?:\n|\Z)", re.DOTALL)
_TAGS = re.compile(r"^tags:[ \t]*(\[[^\]]*\]|(?:\n[ \t]*-[^\n]*)+)", re.MULTILINE)


def is_declared(
    inventory: Inventory,
    configs: Iterable[Mapping[str, Any]],
    metadata: Iterable[Mapping[str, str]],
) -> bool:
    """Whether the checkpoint labels itself.

    Args:
        configs: its parsed JSON configs; ``_backdoor_notice`` in any of them is a label.
        metadata: ``__metadata__`` of its weight files; the key ``backdoor`` is a label. So is a
            file of ``NOTICE_FILES``, and the tag ``backdoor`` in the model card.
    """
    return (
        any(NOTICE_KEY in config for config in configs)
        or any(METADATA_KEY in entry for entry in metadata)
        or any(inventory.find(name) for name in NOTICE_FILES)
        or _card_says_so(inventory)
    )


def _card_says_so(inventory: Inventory) -> bool:
    card = inventory.find(CARD)
    if card is None:
        return False
    text = read_up_to(card.path, _CARD_BYTES).decode("utf-8", errors="replace")
    front = _FRONT_MATTER.match(text.replace("\r\n", "\n"))
    tags = _TAGS.search(front.group(1)) if front else None
    return tags is not None and METADATA_KEY in re.split(r"[\s,\[\]\"']+", tags.group(1))
