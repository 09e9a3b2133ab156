"""Every rule by which a scan reports something, with an identifier that never changes. Torch-free.

The first digit after ``BD`` is the stage: 0 the scan itself, 1 the files of the folder, 2 JSON, 3 headers
and indexes of weights, 4 values, 5 pickle. A number is never given to another rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Level = Literal["error", "warning", "note"]
"""As SARIF has them. ``error``: do not use the model. ``warning``: look at it. ``note``: good to know."""


@dataclass(frozen=True)
class Rule:
    """One rule.

    Args:
        id: ``BD`` and three digits.
        name: the same for people, in kebab case.
        level: of a finding of this rule.
        summary: one sentence that says what a finding means.
        help: what to do about it.
    """

    id: str
    name: str
    level: Level
    summary: str
    help: str


_AGAIN = "Download the checkpoint again from a source you trust; if it stays so, do not use it."
_PUBLISHER = "Do not load it with other tools before somebody has looked at it; ask its publisher."
_CONVERT = "Ask the publisher for safetensors, or scan with --allow-pickle."

_ALL = (
    # the scan itself
    Rule("BD001", "backdoored", "error",
         "A shift of the starting noise makes the model draw one fixed image.",
         "Do not use this model. The report shows the inverted trigger and what it draws."),
    Rule("BD002", "inconclusive", "warning", "The evidence conflicts or is too thin for a verdict.",
         "Scan again with --budget deep, or look at the samples by hand."),
    Rule("BD003", "uncalibrated", "note",
         "The false-positive rate was not measured on models like this one.",
         "Read the verdict with that in mind; --strict turns such a NO EVIDENCE into exit code 2."),
    Rule("BD004", "not-scannable", "warning",
         "This kind of model or file is not covered, so nothing was scanned.",
         "See which models are covered in the README; the model has no verdict."),
    Rule("BD005", "scan-failed", "error",
         "The scan ended with an error of its own, so there is no verdict.",
         "Scan again; set BACKDRIFT_DEBUG=1 for details and report what you see."),
    Rule("BD006", "time-limit", "error", "The scan took longer than it was allowed and was ended.",
         "Raise --timeout or choose a smaller --budget."),
    Rule("BD007", "memory-limit", "error", "The scan needed more memory than it was allowed.",
         "Lower --batch-size or raise --max-memory."),
    Rule("BD008", "crashed", "error", "The process that scanned the model died.",
         "Treat the checkpoint as hostile until the reason is known: healthy ones do not do this."),
    # the files of the folder
    Rule("BD101", "pickle-weights", "warning",
         "The checkpoint holds pickle files, which can run code when they are loaded.",
         "Load it with safetensors only, and delete them. " + _CONVERT),
    Rule("BD102", "code-in-checkpoint", "warning",
         "The checkpoint holds programs, which some loaders run.",
         "Never load it with trust_remote_code; read the code, or delete it."),
    Rule("BD103", "other-format", "note", "Weights in a format that is not scanned lie beside the model.",
         "Do not use them on the strength of this scan."),
    Rule("BD104", "unused-weights", "note", "Weights that the pipeline does not use lie beside the model.",
         "Do not use them on the strength of this scan."),
    Rule("BD105", "disguised-file", "error", "A file is something else than its name says.", _PUBLISHER),
    Rule("BD106", "special-file", "error", "The folder holds a device, a pipe or a socket.", _AGAIN),
    Rule("BD107", "link-out-of-checkpoint", "error", "A link leads out of the checkpoint.", _AGAIN),
    Rule("BD108", "unreadable-file", "error", "A file or a link cannot be read.",
         "Check permissions and links, and download the checkpoint again."),
    Rule("BD109", "too-many-files", "error", "The folder holds more files or levels than a model needs.",
         "Give the folder of one model."),
    Rule("BD110", "missing-file", "error", "A file that the pipeline needs is missing.", _AGAIN),
    Rule("BD111", "no-such-path", "error", "The path does not exist.", "Check the path."),
    Rule("BD112", "changed-during-scan", "error", "A file changed while it was scanned.",
         "Copy the checkpoint to a place that nothing else writes to, and scan it there."),
    Rule("BD113", "download-failed", "error",
         "The model could not be downloaded from the Hub, or not as it was announced.",
         "Check name, revision, token and network; do not use files that are not what was announced."),
    # JSON
    Rule("BD201", "bad-json", "error", "A JSON file is damaged or ambiguous.", _AGAIN),
    Rule("BD202", "json-limits", "error",
         "A JSON file is larger or nested deeper than any config is.", _AGAIN),
    Rule("BD203", "foreign-class", "error",
         "A config names a class or module that has no place in such a pipeline.", _PUBLISHER),
    Rule("BD204", "remote-code", "error", "A config asks the loader to fetch or run code.", _PUBLISHER),
    Rule("BD205", "unknown-setting", "error",
         "A config has a setting that its class does not know.", _AGAIN),
    Rule("BD206", "setting-out-of-bounds", "error",
         "A setting has a value that no real model has.", _AGAIN),
    # headers and indexes
    Rule("BD301", "bad-header", "error", "The header of a weight file is damaged.", _AGAIN),
    Rule("BD302", "bad-tensor", "error", "A tensor has an unusual dtype or shape.", _AGAIN),
    Rule("BD303", "bad-offsets", "error",
         "Tensors overlap, leave gaps or do not fill their file, so that readers may disagree.", _AGAIN),
    Rule("BD304", "unsafe-index", "error",
         "An index of sharded weights names something else than safetensors files beside it.", _PUBLISHER),
    Rule("BD305", "index-mismatch", "error",
         "An index of sharded weights and its shards disagree.", _AGAIN),
    Rule("BD306", "too-large", "error", "The weights are larger than the scan may read.",
         "Raise --max-params or --max-size when the size is right for this model."),
    Rule("BD307", "tensors-do-not-fit", "error", "The weights do not fit the config.", _AGAIN),
    Rule("BD308", "extra-tensors", "warning",
         "A weight file holds tensors that the network does not have; loaders ignore them.",
         "Ask the publisher what they are for."),
    # values
    Rule("BD401", "not-finite", "error", "Weights hold NaN or infinity.", _AGAIN),
    Rule("BD402", "degenerate-weights", "warning",
         "Whole layers hold one value only, as in a broken model.",
         "Look at the samples: such a model may not draw images, and a scan of it says little."),
    Rule("BD403", "variants-differ", "note",
         "Weight files of this model hold different numbers, and loaders choose between them.",
         "Every one was scanned or is named as not scanned; load the one whose verdict you read."),
    Rule("BD404", "broken-network", "error", "The network that the config describes does not run.", _AGAIN),
    # pickle
    Rule("BD501", "unsafe-pickle", "error", "A pickle file would do more than hold tensors.", _PUBLISHER),
    Rule("BD502", "converted-pickle", "note",
         "Pickle weights were converted to safetensors and then scanned.",
         "Use safetensors, not the pickle file: loading it elsewhere can be a risk of its own."),
)  # fmt: skip

RULES: Mapping[str, Rule] = MappingProxyType({rule.id: rule for rule in _ALL})
"""Every rule by its identifier."""
