"""One thing to do with the models of a population, as data."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from backdrift.amplify import Amplify
from backdrift.bench.runner import address_of
from backdrift.core.registry import build, filled
from backdrift.detection._calibration import CalibrationTable
from backdrift.metrics.draws import Plan

VERSIONS = {"detect": 1, "evaluate": 1, "repair": 1, "amplify": 1, "discover": 1}
"""Grow when the same settings give another value."""
FIELDS = {
    "method": ("detect", "repair", "discover"),
    "plan": ("repair", "amplify"),
    "twin": ("evaluate",),
    "trigger_of": ("evaluate", "repair", "discover"),
    "at": ("evaluate", "amplify"),
    "scan": ("repair",),
    "images": ("repair", "discover"),
    "radius": ("amplify",),
}
"""Those that only some kinds have."""

Kind = Literal["detect", "evaluate", "repair", "amplify", "discover"]


class Task(BaseModel):
    """One thing to do with models. All kinds but ``detect`` leave out models without a backdoor.

    Args:
        kind: ``detect`` runs a detector; ``evaluate`` measures ASR and utility; ``repair`` repairs by what
            a scan found and measures before and after; ``amplify`` reinforces the true trigger;
            ``discover`` runs the search inside a repair (ANP) and sets it beside the true target.
        method: plug-in name of the detector or the repair.
        options: fields of the method; of ``evaluate`` those of :class:`backdrift.evaluate.Plan`, of
            ``amplify`` those of :class:`backdrift.amplify.Amplify`.
        models: patterns for names, such as ``ode-*``.
        seeds: one run each.
        plan: of a repair or an amplification, how it is measured: fields of
            :class:`backdrift.evaluate.Plan`.
        twin: the clean model whose FD is the base of the ratio.
        trigger_of: the model whose trigger is tried on clean ones, which are measured as well then.
        at: steps of training, of ``Recipe.keep``; 0 is the base, with the trigger of the model. The end
            alone without it.
        scan: the task, of kind ``detect`` and earlier in the file, whose evidence a repair is told.
        images: clean images of the data set that the method gets, at random; none by default.
        radius: of the L-infinity ball around the trigger.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    method: str = ""
    options: dict[str, Any] = Field(default_factory=dict)
    models: tuple[str, ...] = ("*",)
    seeds: tuple[int, ...] = (0,)
    plan: dict[str, Any] = Field(default_factory=dict)
    twin: str | None = None
    trigger_of: str | None = None
    at: tuple[int, ...] = ()
    scan: str | None = None
    images: int = Field(default=0, ge=0)
    radius: float = Field(default=0.2, gt=0)

    @model_validator(mode="after")
    def _has_what_its_kind_has(self) -> Task:
        for name, kinds in FIELDS.items():
            if self.kind not in kinds and getattr(self, name) != Task.model_fields[name].get_default(
                call_default_factory=True
            ):
                raise ValueError(f"{self.kind} has no {name}; that is for {', '.join(kinds)}")
        if self.kind == "repair" and self.scan is None:
            raise ValueError("repair needs scan: the name of a task of kind detect")
        return self

    def resolved(self) -> dict[str, Any]:
        """Every setting that the value depends on, JSON-able.

        Raises:
            ValueError: unknown method or option.
        """
        if self.kind == "detect":
            settings = build("detection", self.method, self.options).settings()
            settings["thresholds"] = self._thresholds(settings["budget"])
        elif self.kind == "evaluate":
            settings = asdict(self.measured())
        else:
            settings = {"options": asdict(self.built())}
            if self.kind == "amplify":
                settings["radius"] = self.radius
            else:
                settings["images"] = self.images
            if self.kind != "discover":
                settings["plan"] = asdict(self.measured())
        found: dict[str, Any] = json.loads(json.dumps(settings, default=str))
        return {"method": self.method, "version": VERSIONS[self.kind], **found}

    def built(self) -> Any:
        """The repair or the amplification.

        Raises:
            ValueError: unknown method or option, or a repair without a search in it.
        """
        if self.kind == "amplify":
            return filled(Amplify, "amplify", self.options)
        method = build("repair", self.method, self.options)
        if self.kind == "discover" and not hasattr(method, "discover"):
            raise ValueError(f"{self.method} has no search of its own to look at")
        return method

    def measured(self, seed: int = 0, sampler: str = "ddpm") -> Plan:
        """How samples are drawn.

        Args:
            sampler: where the task names none.

        Raises:
            ValueError: an option that a plan does not have.
        """
        options = self.options if self.kind == "evaluate" else self.plan
        found: Plan = filled(Plan, "evaluate", {"sampler": sampler, **options, "seed": seed})
        return found

    def _thresholds(self, budget: str) -> str | None:
        """Hash of what the calibration has on this detector at this budget: a verdict depends on it."""
        file = self.options.get("calibration")
        table = CalibrationTable.read(file) if file else CalibrationTable.shipped()
        entry = table.detectors.get(self.method, {}).get(budget)
        return None if entry is None else address_of(entry.model_dump(mode="json"))
