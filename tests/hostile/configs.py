"""Code in the folder, and JSON that asks for it, breaks parsers or names sizes that no model has."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from hostile.corpus import CONFIG, PIPELINE, SCHEDULER, Case, both, edit, raw, write


def _code() -> Iterator[Case]:
    text = "open('MARKER', 'w')\n"
    for name in (
        "unet/unet.py", "pipeline.py", "__init__.py", "unet/__init__.py", "torch.py", "diffusers.py",
        "json.py",
        "numpy.py", "typer.py", "sitecustomize.py", "usercustomize.py", "setup.py", "conftest.py", "run.sh",
        "scheduler/scheduling_ddpm.py",
    ):  # fmt: skip
        yield Case("code in the folder", f"code-{name}", partial(write, name, text), (0,))
    site = "import os; os.system('touch MARKER')\n"
    yield Case("code in the folder", "code-x.pth", partial(write, "x.pth", site), (0,))
    ghsa = "CVE-2026-44513 (GHSA-98h9-4798-4q5v)"
    tricks: dict[str, tuple[dict[str, Any], str, str]] = {
        "pipeline-list": ({"_class_name": ["pipeline", "DDPMPipeline"]}, "pipeline.py", ghsa),
        "component-module": ({"unet": ["unet", "UNet2DModel"]}, "unet/unet.py", ghsa),
        "none": ({"unet": [None, "UNet2DModel"]}, "None.py", "CVE-2026-44827"),
        "none-text": ({"unet": ["None", "UNet2DModel"]}, "None.py", "CVE-2026-44827"),
        "sys-modules": ({"unet": ["os", "system"]}, "os.py", "diffusers before 0.42.1"),
        "scheduler-module": ({"scheduler": ["scheduler", "DDPMScheduler"]}, "scheduler/scheduler.py", ghsa),
        "extra-component": ({"safety_checker": ["evil", "Checker"]}, "evil.py", ghsa),
        "custom-pipeline": ({"custom_pipeline": "evil"}, "evil.py", "diffusers issue 13691"),
        "trust": ({"trust_remote_code": True}, "pipeline.py", ghsa),
    }
    for name, (change, file, advisory) in tricks.items():
        build = partial(both, partial(edit, PIPELINE, change), partial(write, file, text))
        yield Case("remote code", f"index-{name}", build, (2,), advisory=advisory)
    for file in (CONFIG, SCHEDULER):
        for key, value in {
            "auto_map": {"AutoModel": "evil.Model"},
            "custom_pipeline": "evil",
            "quantization_config": {"quant_method": "evil", "load_in_8bit": True},
            "trust_remote_code": True,
            "_class_name": ["evil", "UNet2DModel"],
        }.items():
            build = partial(both, partial(edit, file, {key: value}), partial(write, "evil.py", text))
            yield Case("remote code", f"{Path(file).stem}-{key}", build, (2,), advisory=ghsa)


def _pipelines() -> Iterator[Case]:
    wrong: dict[str, tuple[dict[str, Any], int]] = {
        "popen": ({"unet": ["subprocess", "Popen"]}, 2),
        "eval": ({"scheduler": ["builtins", "eval"]}, 2),
        "foreign": ({"unet": ["transformers", "CLIPTextModel"]}, 2),
        "other": ({"unet": ["diffusers", "AutoencoderKL"]}, 2),
        "text": ({"unet": "UNet2DModel"}, 2),
        "number": ({"unet": 7}, 2),
        "null": ({"unet": None}, 2),
        "object": ({"unet": {"a": 1}}, 2),
        "three": ({"unet": ["diffusers", "UNet2DModel", "x"]}, 2),
        "nested": ({"unet": [["diffusers"], "UNet2DModel"]}, 2),
        "absent": ({"unet": ...}, 2),
        "no-scheduler": ({"scheduler": ...}, 2),
        "unet-as-scheduler": ({"scheduler": ["diffusers", "UNet2DModel"]}, 2),
        "no-class": ({"_class_name": ...}, 2),
        "null-class": ({"_class_name": None}, 2),
        "vae": ({"vae": ["diffusers", "AutoencoderKL"]}, 2),
        "control": ({"\x1b[2Jevil\u202e": ["a", "b"]}, 2),
        "markup": ({"_class_name": "<script>alert(1)</script>"}, 3),
        "long": ({"_class_name": "A" * 100_000}, 3),
        "ldm": ({"_class_name": "LDMPipeline", "vqvae": ["diffusers", "VQModel"]}, 2),
        "ldm-conditional": (
            {
                "_class_name": "LDMPipeline",
                "vqvae": ["diffusers", "VQModel"],
                "unet": ["diffusers", "UNet2DConditionModel"],
            },
            3,
        ),
        "ldm-kl": ({"_class_name": "LDMPipeline", "vqvae": ["diffusers", "AutoencoderKL"]}, 3),
        "ldm-module": ({"_class_name": "LDMPipeline", "vqvae": ["vqvae", "VQModel"]}, 2),
        "ve": ({"_class_name": "ScoreSdeVePipeline"}, 3),
        "sd": ({"_class_name": "StableDiffusionPipeline"}, 3),
        "ve-scheduler": ({"scheduler": ["diffusers", "ScoreSdeVeScheduler"]}, 3),
    }
    for name, (change, code) in wrong.items():
        yield Case("pipeline index", f"pipeline-{name}", partial(edit, PIPELINE, change), (code,))


def _prefixed(name: str, before: bytes, after: bytes, folder: Path, marker: Path) -> None:
    data = (folder / name).read_bytes().strip()
    (folder / name).write_bytes(before + data[1:-1] + after)


def _json() -> Iterator[Case]:
    odd = {
        "empty": b"",
        "array": b"[]",
        "null": b"null",
        "binary": b"\x00\xff\xfe\x00" * 9,
        "utf16": '{"a": 1}'.encode("utf-16"),
        "bom": b"\xef\xbb\xbf{}",
        "cut": b'{"_class_name": "UNet2DModel", ',
        "deep": b'{"a":' * 90_000 + b"1" + b"}" * 90_000,
        "deep-17": b'{"a":' * 17 + b"1" + b"}" * 17,
        "large": b'{"a": "' + b"x" * (1 << 21) + b'"}',
        "comment": b'{"a": 1 /* x */}',
    }
    more = {
        "twice": (b'{"_class_name": "A",', b"}"),
        "nan": (b'{"dropout": NaN,', b"}"),
        "infinity": (b'{"norm_eps": -Infinity,', b"}"),
        "overflow": (b'{"norm_eps": 1e999,', b"}"),
        "digits": (b'{"sample_size": ' + b"9" * 5000 + b",", b"}"),
        "surrogate": (b'{"\\ud800": "\\udfff", "_class_name": "x",', b"}"),
    }
    for file in (CONFIG, SCHEDULER, PIPELINE):
        stem = Path(file).stem
        for name, data in odd.items():
            yield Case("JSON", f"json-{stem}-{name}", partial(raw, file, data), (2, 3))
        for name, (before, after) in more.items():
            yield Case("JSON", f"json-{stem}-{name}", partial(_prefixed, file, before, after), (2, 3))


def _networks() -> Iterator[Case]:
    wrong: list[dict[str, Any]] = [
        {"block_out_channels": [2**40, 2**40]}, {"block_out_channels": [32768, 32768]},
        {"block_out_channels": [8] * 1000}, {"block_out_channels": []}, {"block_out_channels": "8"},
        {"block_out_channels": [-8]}, {"block_out_channels": [True]}, {"block_out_channels": [8.5]},
        {"layers_per_block": 20_000}, {"layers_per_block": -1}, {"layers_per_block": 1e3},
        {"sample_size": 10**9}, {"sample_size": [8, 10**9]}, {"sample_size": "8"}, {"sample_size": -8},
        {"in_channels": 0}, {"in_channels": 10**6}, {"norm_num_groups": 0}, {"norm_eps": 0},
        {"dropout": 2}, {"act_fn": "__import__"}, {"downsample_type": "os.system"},
        {"attention_head_dim": 0}, {"time_embedding_dim": 2**40}, {"num_train_timesteps": 10**9},
        {"num_class_embeds": 10**12}, {"num_class_embeds": -1}, {"down_block_types": ["A" * 10_000]},
        {"evil\n\x1b[2J": 1}, {"_class_name": "AutoencoderKL"}, {"in_channels": 3, "out_channels": 1},
    ]  # fmt: skip
    for number, change in enumerate(wrong):
        name = f"network-{number}-{next(iter(change))}".replace("\n", "").replace("\x1b", "")
        yield Case("config out of bounds", name, partial(edit, CONFIG, change), (2, 3))


def _schedulers() -> Iterator[Case]:
    wrong: list[dict[str, Any]] = [
        {"num_train_timesteps": 10**8}, {"num_train_timesteps": 1}, {"num_train_timesteps": "1000"},
        {"beta_start": -1}, {"beta_end": 2.0}, {"beta_end": "0.02"}, {"beta_schedule": "os.system"},
        {"trained_betas": [0.1] * 200_000}, {"trained_betas": [0.1, "x"]}, {"trained_betas": [2.0] * 100},
        {"prediction_type": "evil"}, {"rescale_betas_zero_snr": True}, {"_class_name": "Evil"},
        {"_class_name": "EvilScheduler"}, {"_class_name": None},
    ]  # fmt: skip
    for number, change in enumerate(wrong):
        name = f"schedule-{number}-{next(iter(change))}"
        yield Case("schedule out of bounds", name, partial(edit, SCHEDULER, change), (2, 3))


MAKERS = (_code, _pipelines, _json, _networks, _schedulers)
