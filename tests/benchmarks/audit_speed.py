"""How long the search for near-identical and mirrored images takes, and how much memory: python audit_speed.py [n ...]

The small copies are synthetic, as smooth as those of photos, with a hundredth of them copied with noise. CPU time, so
that other programs beside it do not count.
"""

import resource
import sys
import time

import numpy as np
import torch

from mixer_finetune.data.copies import groups_of, near_pairs
from mixer_finetune.data.facts import SIDE


def small_copies(n, seed=0):
    """(n, SIDE, SIDE, 3) uint8."""
    rng, made = np.random.default_rng(seed), np.empty((n, SIDE, SIDE, 3), np.uint8)
    for start in range(0, n, 10_000):
        coarse = torch.from_numpy(rng.random((min(10_000, n - start), 3, 5, 5), np.float32))
        fine = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bilinear", align_corners=True)
        made[start : start + len(coarse)] = (255 * fine).permute(0, 2, 3, 1).numpy().astype(np.uint8)
    copied = n // 100
    noise = rng.normal(0, 2, made[:copied].shape)
    made[n - copied :] = np.clip(made[:copied] + noise, 0, 255).astype(np.uint8)
    return made, copied


for n in map(int, sys.argv[1:] or ["10000", "100000"]):
    small, copied = small_copies(n)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for mirrored in (False, True):
        started = time.process_time()
        pairs, _ = near_pairs(small, mirrored=mirrored)
        seconds = time.process_time() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            f"{n:,} images, mirrored {mirrored}: {seconds:.1f} s of CPU, {len(groups_of(pairs)):,} groups "
            f"({copied:,} were copied), {(peak - before) / 1e3:,.0f} MB beside {small.nbytes / 1e6:,.0f} MB of copies",
            flush=True,
        )
