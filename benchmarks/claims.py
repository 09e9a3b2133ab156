"""docs/claims.md: what both papers claim, and what our numbers say to it.

    python benchmarks/claims.py

Reads results/NAME of the benchmarks that have been run; a claim whose results are not there is not
measured yet. The numbers that stand here are published ones, from the text of arXiv 2212.05400v2 (it has
lost the MSE of its tables) and from the abstracts of arXiv 2502.19047 and 2409.13945.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import claim_checks as checks
from cells import write

BAD, PURE, FIRST = "BadDiffusion", "PureDiffusion", "PureDiffusion, arXiv 2409.13945"
DIGITS = "digits 16x16, one training run of each model"
GPU = "32x32 and 256x256 with the published networks: a GPU, CIFAR-10 and CelebA-HQ"
PICTURES = "pictures, no number"
TEST = "small models that nothing was chosen on; the losses as its abstract has them, else ours"


@dataclass(frozen=True)
class Claim:
    """One row.

    Args:
        look: what our results say; None of them where they are not there. Without it nothing here measures
            the claim, and ``scale`` says why.
    """

    said: str
    paper: str
    place: str
    suite: str
    published: str
    scale: str
    look: Callable[[checks.Results], checks.Found | None] | None = None


CLAIMS = (
    Claim(
        "A poison rate of 5% is enough in most settings",
        BAD,
        "figure 2, table 7",
        "attack-study",
        "MSE low from 5% on, no number in the text",
        f"{DIGITS}; of ten trigger-target pairs stop sign and hat",
        checks.few_poisoned,
    ),
    Claim(
        "Up to a rate of 30% clean samples are as good as those of a clean model, or better",
        BAD,
        "figure 2, table 7",
        "attack-study",
        "FID 14.83 clean; stop sign and hat 8.32, 7.57, 8.17, 7.77 at 5, 10, 20, 30%",
        f"{DIGITS}; stop sign and hat; the ratio is to a model trained on as long without poison",
        checks.clean_samples_stay,
    ),
    Claim(
        "At 70% and 90% the stop sign still costs nothing, while the grey box does",
        BAD,
        "figure 2, table 7",
        "attack-study",
        "FID, hat: stop sign 7.83, 7.77; grey box 11.97, 19.09; clean 14.83",
        f"{DIGITS}; the stop sign alone",
        checks.stop_sign_stays,
    ),
    Claim(
        "Fine-tuning gives better clean samples than training from scratch",
        BAD,
        "figure 3, table 4",
        "attack-study",
        "FID, grey box and hat: 8.53 against 18.01 at 5%, 10.25 against 24.63 at 50%",
        f"{DIGITS}; both for 2000 steps, where the paper has 50 and 400 epochs; rates 10% and 50%",
        checks.fine_tuning_is_better,
    ),
    Claim(
        "A fifth of the training is enough for the backdoor",
        BAD,
        "figure 6, table 5",
        "attack-study",
        "10 of 50 epochs at 20%, hat",
        f"{DIGITS}; rates 10% and 50%, an eighth and a quarter of the steps",
        checks.soon_enough,
    ),
    Claim(
        "It works at 256x256: 20% is enough, and clean samples get better",
        BAD,
        "figures 4 and 12, table 6",
        "attack --preset paper",
        "FID 8.43 clean; glasses and cat 7.43, 7.25, 7.51 at 20, 30, 50%",
        GPU,
    ),
    Claim(
        "Clipping at every step blunts the trigger at the same FID",
        BAD,
        "figure 5, table 6",
        "repair",
        "FID, hat, 5%: 8.42 with, 8.53 without clipping",
        f"{DIGITS}; three models, at 5%",
        checks.clipping,
    ),
    Claim(
        "ANP: a larger budget finds the target better",
        BAD,
        "figure 8, table 8",
        "anp",
        "best MSE at budgets 1, 2, 4, 50%, middle learning rate: .077, .015, .013",
        f"{DIGITS}; budget 4 and budget 1",
        checks.larger_budget,
    ),
    Claim(
        "ANP: twice the learning rate makes it fail",
        BAD,
        "figures 8 and 9, table 9, section 4.6.1",
        "anp",
        "the MSE explodes from 1e-4 to 2e-4",
        f"{DIGITS}; 400 steps",
        checks.twice_the_rate,
    ),
    Claim(
        "Other samplers weaken the attack",
        BAD,
        "table 3",
        "attack-study",
        "FID, stop sign: 10.72 (DDIM), 9.32 (DPM-Solver), 10.22 (DPM-Solver++); MSE not in the text",
        f"{DIGITS}; rates 10% and 50%",
        checks.other_samplers,
    ),
    Claim(
        "The smaller the grey box, the higher the MSE",
        BAD,
        "figure 14, tables 10 and 11",
        "attack-study",
        "no number in the text",
        f"{DIGITS}; one target of five, sizes relative to 32 pixels",
        checks.small_boxes,
    ),
    Claim(
        "A small stop sign works as well as a large one",
        BAD,
        "figure 14, tables 10 and 11",
        "attack-study",
        "no number in the text",
        f"{DIGITS}; one target of five, sizes relative to 32 pixels",
        checks.small_signs,
    ),
    Claim(
        "Triggered samples are the target, the others look like those of a clean model",
        BAD,
        "figures 7 and 13, table 2",
        "python benchmarks/attack_table.py",
        PICTURES,
        f"{DIGITS}; drawn in docs/attack-lab.png, rate 5%",
        checks.samples,
    ),
    Claim(
        "Inpainting draws the target too",
        BAD,
        "figure 10",
        "python benchmarks/restore_table.py",
        "LPIPS, no number",
        f"{DIGITS}; the stop sign on the image, a box and a line, the last 400 and all 1000 steps",
        checks.inpainting,
    ),
    Claim(
        "Clipping leads the latents back",
        BAD,
        "figure 11",
        "python benchmarks/clipping_path.py",
        PICTURES,
        f"{DIGITS}; three models, at 5%; 0 is the end of clean latents, 1 that of triggered ones",
        checks.clipped_latents,
    ),
    Claim(
        "Its detection is near perfect",
        PURE,
        "abstract",
        "detection-test",
        "near-perfect accuracy",
        TEST,
        checks.near_perfect,
    ),
    Claim(
        "It is ahead of other detectors on complex triggers",
        PURE,
        "abstract",
        "detection-test",
        "by a large margin",
        f"{TEST}; Elijah, and TERD at a tenth of its length",
        checks.ahead_of_rivals,
    ),
    Claim(
        "Reinforced triggers reach an ASR of nearly 100%",
        PURE,
        "abstract",
        "amplification",
        "nearly 100%",
        f"{DIGITS}; four models of three attacks, at 1/20 to 1/2 of their training",
        lambda known: checks.reinforced(known, (1 / 20, 1 / 2)),
    ),
    Claim(
        "They save up to 20 times of the training",
        PURE,
        "abstract",
        "amplification",
        "up to 20 times",
        f"{DIGITS}; four models of three attacks, at 1/20 of their training",
        lambda known: checks.reinforced(known, (1 / 20, 1 / 20)),
    ),
    Claim(
        "The trigger shifts every timestep by a known scale",
        FIRST,
        "abstract",
        "python benchmarks/shift_scale.py",
        "-",
        f"{DIGITS}; every attack of attack-lab, 13 timesteps",
        checks.shift_scale,
    ),
    Claim(
        "In certain cases an inverted trigger beats the true one",
        FIRST,
        "abstract",
        "python benchmarks/scan_table.py",
        "in certain cases",
        "five backdoored models of scan-test",
        checks.beats_the_true_one,
    ),
)
NOT_YET, NOT_HERE = "not measured yet", "not measurable here"


def main() -> None:
    """Writes the page of what is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--output", type=Path, default=Path("docs/claims.md"))
    options = parser.parse_args()
    write(options.output, page(checks.Results(options.results)))


def page(known: checks.Results) -> str:
    """Markdown."""
    lines = [
        "# Claims",
        "",
        "Made by `python benchmarks/claims.py` from `results/`. Each name under *made by* is a benchmark, "
        "`backdrift bench run NAME -o results/NAME`, unless it is a command. 95% intervals. *Holds in "
        "part*: of the comparisons behind a claim, some came out as claimed; *does not hold*: none did, "
        "or the intervals overlap where one was to lie below the other. An FD ratio counts as no loss "
        "unless its interval lies above 1. Published numbers are at "
        "32x32 and 256x256 on CIFAR-10 and CelebA-HQ, ours at the scale of their row; FD(random-conv) is "
        "not FID.",
        "",
        "| claim | paper, place | made by | published | ours | scale | verdict |",
        "|" + "---|" * 7,
    ]
    for claim in CLAIMS:
        found = None if claim.look is None else claim.look(known)
        verdict = NOT_HERE if claim.scale == GPU else NOT_YET if found is None else found.verdict
        cells = [claim.said, f"{claim.paper}, {claim.place}", f"`{claim.suite}`", claim.published]
        cells += ["" if found is None else found.text, claim.scale, verdict]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
