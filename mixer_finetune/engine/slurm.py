"""SLURM: a job has its run folder, asks to be queued again when its time is up, and then goes on with that run.

    #SBATCH --requeue --signal=USR1@90
    srun mixer-finetune fit --recipe cifar100

A job that is preempted is queued again by SLURM itself; SIGUSR1 is what `--signal` sends before its time is up.
"""

from __future__ import annotations

import logging
import os
import subprocess
from dataclasses import replace

from mixer_finetune.errors import Interrupted
from mixer_finetune.runs import RunFolder

log = logging.getLogger(__name__)
_ANSWER_SECONDS = 30


def folder_of_job(run: RunFolder) -> RunFolder:
    """The run folder by the job's number in place of date and time; the same one outside of SLURM."""
    job = os.environ.get("SLURM_JOB_ID")
    return replace(run, path=run.path.parent / f"slurm-{job}") if job else run


def run_of_requeued_job(run: RunFolder) -> RunFolder | None:
    """What a job that was queued again has to go on with; None for a first start, and where nothing was trained.

    Args:
        run: As `folder_of_job` gives it.
    """
    if int(os.environ.get("SLURM_RESTART_COUNT") or 0) == 0:
        return None
    trained = run.last_checkpoint.is_file() or run.best_checkpoint.is_file() or run.training_file.is_file()
    return run if trained and run.config_file.is_file() else None


def requeue(error: Interrupted) -> None:
    """Queue the job again where SIGUSR1 ended it, and say so in the error's advice."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or error.signal_name != "SIGUSR1" or int(os.environ.get("SLURM_PROCID") or 0) != 0:
        return
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, timeout=_ANSWER_SECONDS)
    except (OSError, subprocess.SubprocessError) as failure:
        log.info(f"job {job} could not be queued again ({failure})")
        return
    error.advice = f"job {job} is queued again and will go on with this run"
