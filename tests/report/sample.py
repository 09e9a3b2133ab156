"""Documents that look like those of a scan, made without one."""

from __future__ import annotations

from typing import Any

import numpy as np

from backdrift.core.results import (
    Array,
    Calibration,
    Cost,
    Curve,
    Environment,
    Evidence,
    Failure,
    Finding,
    NotScanned,
    Null,
    Report,
    Restart,
    ScanDocument,
    Score,
    Subject,
    Verdict,
    Weights,
)

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"

ADVICE = {
    Verdict.BACKDOORED: "Do not use this model: a fixed shift of its noise makes it draw one image.",
    Verdict.NO_EVIDENCE: "No backdoor was found within this budget; that is not a proof of absence.",
    Verdict.INCONCLUSIVE: "Treat this model as unscanned: repeat the scan with a larger budget.",
}


def blobs(count: int, size: int, channels: int, seed: int) -> Array:
    """Digit-like strokes on black, (count, channels, size, size) in about [-1, 1]."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:size, 0:size] / size
    images = np.zeros((count, channels, size, size))
    for image in images:
        angle, turn = generator.uniform(0, 2 * np.pi), generator.uniform(2.5, 6)
        for step in np.linspace(0, 1, 24):
            radius = 0.12 + 0.22 * step
            row = 0.5 + radius * np.sin(angle + turn * step)
            column = 0.5 + 0.7 * radius * np.cos(angle + turn * step)
            distance = (rows - row) ** 2 + (columns - column) ** 2
            image += 0.55 * np.exp(-distance / 0.003) * generator.uniform(0.7, 1, (channels, 1, 1))
    noise = generator.normal(0, 0.03, images.shape)
    return np.asarray(images.clip(0, 1) * 2 - 1 + noise, dtype=np.float32)


def target_image(size: int, channels: int) -> Array:
    """A ring with a bar: (channels, size, size)."""
    rows, columns = (np.mgrid[0:size, 0:size] + 0.5) / size - 0.5
    radius = np.hypot(rows, columns)
    bar = (np.abs(rows) < 0.07) & (np.abs(columns) < 0.25)
    drawn = ((radius > 0.32) & (radius < 0.44)) | bar
    return np.asarray(np.broadcast_to(drawn * 2.0 - 1.0, (channels, size, size)), dtype=np.float32)


def evidence(verdict: Verdict, *, size: int = 16, channels: int = 1, count: int = 36) -> Evidence:
    generator = np.random.default_rng(7)
    trigger = generator.normal(0, 0.08, (channels, size, size))
    clean = blobs(count, size, channels, 1)
    triggered = blobs(count, size, channels, 2)
    target = None
    if verdict is Verdict.BACKDOORED:
        trigger[:, -size // 4 :, -size // 4 :] += 1.3
        target = target_image(size, channels)
        noise = generator.normal(0, 0.05, triggered.shape)
        triggered = np.where(np.arange(count)[:, None, None, None] % 9 == 4, triggered, target + noise)
    return Evidence(
        weights=WEIGHTS,
        trigger=trigger.astype(np.float32),
        target=target,
        clean_samples=clean,
        triggered_samples=triggered.astype(np.float32),
        sampler="ddpm, 50 steps",
    )


def calibration(**changes: Any) -> Calibration:
    generator = np.random.default_rng(3)
    clean = generator.beta(2, 14, 96).round(4).tolist()
    values: dict[str, Any] = {
        "id": "digits16-2026.11",
        "population": "UNets of 0.3 to 2M parameters trained on 16x16 digits",
        "n_clean": 96,
        "n_backdoored": 40,
        "threshold": 0.42,
        "false_positive_rate": 1 / 96,
        "interval": (0.0018, 0.0567),
        "in_range": True,
        "clean_scores": clean,
        "backdoored_scores": generator.beta(9, 3, 40).round(4).tolist(),
    }
    return Calibration.model_validate(values | changes)


def curves(verdict: Verdict) -> list[Curve]:
    generator = np.random.default_rng(11)
    t = np.arange(20, 1000, 20)
    expected = 0.5 / (1 + np.exp(-(t - 350) / 90))
    gain = 1.0 if verdict is Verdict.BACKDOORED else 0.12
    steps = np.arange(200)
    loss = 0.11 + 0.9 * np.exp(-steps / 30) + generator.normal(0, 0.01, 200)
    return [
        Curve(
            name="Shift per timestep",
            x_label="timestep t",
            y_label="<eps_hat(x + r) - eps_hat(x), r> / |r|^2",
            x=t.astype(float).tolist(),
            y=(gain * expected + generator.normal(0, 0.01, t.size)).tolist(),
            reference=expected.tolist(),
            reference_label="theory, SDE family",
        ),
        Curve(
            name="Loss of the inversion",
            x_label="step",
            y_label="loss",
            x=steps.astype(float).tolist(),
            y=loss.tolist(),
        ),
        Curve(
            name="Gain over rounds",
            x_label="round",
            y_label="gain",
            x=[0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
            y=[0.02, 0.09, 0.2, 0.31, 0.35, 0.36],
        ),
    ]


def finding(verdict: Verdict) -> Finding:
    score = {Verdict.BACKDOORED: 0.913, Verdict.NO_EVIDENCE: 0.148, Verdict.INCONCLUSIVE: None}
    value = score[verdict]
    families = ["sde", "sde", "ode", "ode", "trojdiff"]
    agreement = np.eye(5)
    agreement[:2, :2] = [[1, 0.97], [0.97, 1]]
    agreement[2:, :2] = [[0.41, 0.38], [-0.22, -0.17], [0.03, 0.08]]
    agreement[:2, 2:] = agreement[2:, :2].T
    return Finding(
        detector="backdrift",
        weights=WEIGHTS,
        verdict=verdict,
        score=value,
        threshold=0.42,
        reason={
            Verdict.BACKDOORED: "Samples with the inverted trigger collapse onto one image.",
            Verdict.NO_EVIDENCE: "No inverted shift changes the samples more than the nulls do.",
            Verdict.INCONCLUSIVE: "The budget ran out before fresh seeds could be judged.",
        }[verdict],
        config={"rounds": 10},
        seed=0,
        scores=[
            Score(
                name="collapse",
                value=value,
                threshold=0.42,
                meaning="Share of the samples' variance that the trigger removes, 0 to 1.",
            ),
            Score(
                name="uniformity",
                value=0.031,
                suspicious_when="low",
                meaning="Mean pairwise distance of triggered samples, in the range of the data.",
            ),
            Score(
                name="cost of the shift",
                value=None,
                suspicious_when="neither",
                meaning="L2 norm of the trigger over that of the noise.",
            ),
        ],
        nulls=[
            Null(name="opposite sign", score=0.06),
            Null(name="phase randomised", score=0.11),
            Null(name="constant", score=0.09),
            Null(name="low frequency", score=0.17),
        ],
        curves=curves(verdict),
        restarts=[
            Restart(
                name=f"start {index}",
                family=family,
                norm=4.8 + index,
                gain=0.36 / (index + 1),
                score=None if index == 4 else 0.9 / (index + 1),
                kept=index == 0,
            )
            for index, family in enumerate(families)
        ],
        agreement=agreement.tolist(),
        calibration=calibration(),
        trigger_sha256="9f" * 32,
        target_sha256="3c" * 32 if verdict is Verdict.BACKDOORED else "",
        evaluations=48_128,
        seconds=61.4,
    )


def report(verdict: Verdict = Verdict.BACKDOORED, **changes: Any) -> Report:
    slug = verdict.lower().replace(" ", "-")
    values: dict[str, Any] = {
        "version": "0.1.0",
        "started": "2026-11-21T19:02:11Z",
        "finished": "2026-11-21T19:03:14Z",
        "command": f"backdrift scan models/ddpm-digits-{slug} --seed 0 --format html",
        "subject": Subject(
            path=f"models/ddpm-digits-{slug}",
            format="diffusers",
            declared=verdict is Verdict.BACKDOORED,
            weights=[Weights(file=WEIGHTS, sha256="b7" * 32, dtype="float32", parameters=713_345)],
            sample_shape=(1, 16, 16),
            prediction_type="epsilon",
            schedule={"beta_schedule": "linear", "beta_start": 1e-4, "num_train_timesteps": 1000},
            network={"_class_name": "UNet2DModel", "block_out_channels": [32, 64], "dropout": 0.0},
        ),
        "verdict": verdict,
        "exit_code": (Verdict.NO_EVIDENCE, Verdict.BACKDOORED, Verdict.INCONCLUSIVE).index(verdict),
        "uncalibrated": False,
        "advice": ADVICE[verdict],
        "findings": [finding(verdict)],
        "measured": [
            "shifts of the starting noise, families SDE, ODE and TrojDiff",
            "samples on fresh seeds, with an SDE and an ODE sampler, unclipped",
        ],
        "not_measured": [
            NotScanned(what="vae", why="decoders are not analysed"),
            NotScanned(what="class labels", why="the model takes none"),
        ],
        "config": {"detector": "backdrift", "budget": {"evaluations": 60_000}},
        "seeds": {"inversion": 0, "judgement": 1},
        "environment": Environment(
            python="3.11.9",
            platform="Linux x86_64",
            device="cpu",
            threads=2,
            versions={"torch": "2.13.0", "diffusers": "0.42.1", "numpy": "2.4.6"},
        ),
        "cost": Cost(evaluations=48_128, evaluations_limit=60_000, seconds=62.8),
        "evidence": [evidence(verdict)],
    }
    return Report.model_validate(values | changes)


def bare_report() -> Report:
    """A scan that stopped before it measured anything."""
    empty = finding(Verdict.INCONCLUSIVE).model_copy(
        update={
            "threshold": None,
            "scores": [],
            "nulls": [],
            "curves": [],
            "restarts": [],
            "agreement": [],
            "calibration": None,
            "trigger_sha256": "",
        }
    )
    return report(
        Verdict.INCONCLUSIVE,
        findings=[empty],
        measured=[],
        not_measured=[],
        config={},
        seeds={},
        evidence=[],
        uncalibrated=True,
    )


def document(*reports: Report, failures: list[Failure] | None = None) -> ScanDocument:
    shown = list(reports) or [report()]
    return ScanDocument(reports=shown, failures=failures or [], exit_code=shown[0].exit_code)
