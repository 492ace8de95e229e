"""`mixer-finetune report`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal


def report(
    run: str,
    *,
    output: str | None = None,
    explain: Literal["integrated_gradients", "occlusion"] = "integrated_gradients",
) -> int:
    """Write a finished run's report: one page that needs no network. fit writes it at the end, too.

    Args:
        run: Run folder of a finished fit.
        output: Where to write the page; RUN/report.html when not given.
        explain: How to find where the evidence for an answer lies in an image.

    Returns:
        The exit status.

    Raises:
        UserError: The run folder is none, or the run did not finish.
    """
    from mixer_finetune.evaluation.report import write_report
    from mixer_finetune.runs import RunFolder
    from mixer_finetune.texts import terminal_line

    target = Path(output).expanduser() if output else None
    say: Callable[[str], None] = lambda line: print(terminal_line(line))  # noqa: E731
    say(f"wrote {write_report(RunFolder.open(run), target, method=explain, say=say)}")
    return 0
