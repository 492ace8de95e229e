"""`mixer-finetune runs`."""

from __future__ import annotations

from typing import Any, Literal

from mixer_finetune.cli.tables import print_table
from mixer_finetune.texts import terminal_line


def runs(
    *,
    output_dir: str = "runs",
    source: str | None = None,
    backbone: str | None = None,
    sort: Literal["date", "result", "source", "backbone"] = "date",
    json: bool = False,
) -> int:
    """List runs: data, backbone, method and result with its 95% interval.

    The newest comes first. Runs that differ by nothing but the seed are taken together below the list, with mean and
    standard deviation. Every command that takes a run takes `last`, too: the first of this list.

    Args:
        output_dir: Folder of the runs, as of fit.
        source: Only runs on data whose name has this in it.
        backbone: Only runs of backbones whose name has this in it.
        sort: What comes first: the newest (date), the best (result), or by name of data or backbone.
        json: Print the list as JSON.

    Returns:
        The exit status.

    Raises:
        UserError: There is no such folder.
    """
    from mixer_finetune.evaluation.run_list import list_runs, seed_groups

    found = list_runs(output_dir, source, backbone)
    if sort == "result":
        # Accuracies and precisions are not of one kind; those without a result come last.
        found.sort(key=lambda each: (each.metric or "~", -(each.value or 0.0)))
    elif sort != "date":
        found.sort(key=lambda each: str(getattr(each, sort)).casefold())
    groups = seed_groups(found)
    if json:
        import json as writing

        content = {"runs": [each.as_json() for each in found], "seeds": [group.as_json() for group in groups]}
        print(writing.dumps(content, indent=2, ensure_ascii=False))
        return 0
    if not found:
        print(f"no run in {output_dir}" + (" is like that" if source or backbone else ""))
        return 0
    _print_table(found)
    for group in groups:
        print(terminal_line(_seeds_line(group)))
    return 0


def _print_table(found: list[Any]) -> None:
    from mixer_finetune.evaluation.run_list import method

    rows = []
    for each in found:
        cells = [str(each.run), each.started[:16].replace("T", " "), each.source, each.backbone]
        rows.append([*cells, method(each.config, each.results), _result(each)])
    print_table(("run", "date", "data", "backbone", "method", "result"), rows, numbers=6, whole=("date",))


def _result(each: Any) -> str:
    if each.problem:
        return f"damaged: {each.problem}"
    results = each.results
    if results is None:
        return {"trained": "trained, not evaluated"}.get(each.state, "unfinished")
    if each.metric is None:
        return "not evaluated"
    from mixer_finetune.evaluation.results import metric_name, metric_text

    text = f"{metric_text(each.metric, each.value)} {metric_name(each.metric)}"
    if each.metric in results.intervals:
        low, high = results.intervals[each.metric]
        text += f" ({low:.1%} to {high:.1%})"
    return f"{text}, {results.measured_on} images of {results.split}"


def _seeds_line(group: Any) -> str:
    from mixer_finetune.evaluation.results import metric_name
    from mixer_finetune.evaluation.run_list import method

    first = group.runs[0]
    return (
        f"over {len(group.runs)} seeds: {metric_name(group.metric)} {group.mean:.2%}, standard deviation "
        f"{100 * group.spread:.2f} ({min(group.values):.2%} to {max(group.values):.2%}); {first.source}, "
        f"{first.backbone}, {method(first.config, first.results)}"
    )
