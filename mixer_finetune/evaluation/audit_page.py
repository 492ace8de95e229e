"""audit.html: what an audit found, with the pictures, as one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from mixer_finetune.evaluation import page
from mixer_finetune.evaluation.findings import COPIES, KINDS, Audited, Finding
from mixer_finetune.files import write_text
from mixer_finetune.images import BadImage, decode

# Pictures of one group of copies.
_OF_A_GROUP = 6
_ABOUT = {
    "identical": "The same pixels, whatever the file. Those with two labels come first, then those in several splits.",
    "near": "The same picture in other pixels: encoded again, scaled, a little shifted, brighter. The closest first.",
    "mirrored": "Nearly the same when one is mirrored left to right, as training with random flips does.",
    "label": "A probe that has not seen the image is confident of another class. The most confident first.",
    "outlier": "Far from the nearest images of {base} in the features of {backbone}. The farthest first.",
    "blank": "Of one colour.",
    "shape": "Much longer than the others for their width. The longest first.",
    "size": "Much smaller than the others, or of another size where all have one. The smallest first.",
    "broken": "Their files are damaged or no images; fit stops at them, unless they are left out or skipped.",
}


def write_audit_page(
    found: dict[str, Any], findings: Sequence[Finding], audited: Audited, path: Path, show: int
) -> None:
    """Write the page.

    Args:
        found: What audit.json holds.
        findings: In their order.
        audited: Their images.
        path: Of the file.
        show: Most findings of a kind that are shown.
    """
    sections, out = [_summary(found, audited)], {image for finding in findings for image in finding.leave_out}
    for kind, title in KINDS.items():
        those = [finding for finding in findings if finding.kind == kind]
        if those:
            base = page.text(next(iter(audited.splits.values())).name)
            about = _ABOUT[kind].format(base=base, backbone=page.code(found["options"]["backbone"]["source"]))
            sections.append(_section(kind, title, about, those, audited, out, show))
    template = Template((files("mixer_finetune.evaluation") / "audit_template.html").read_text(encoding="utf-8"))
    source = found["data"]["source"]
    name = Path(source).name if Path(source).exists() else source  # no path of this machine as a title
    title = page.text(f"Audit of {name or source}")
    write_text(path, template.substitute(title=title, body="\n".join(sections)))


def verdict(found: dict[str, Any]) -> list[str]:
    """What matters most, a sentence each: which evaluated images stand in train."""
    names = {"identical": "", "near": "nearly ", "mirrored": "mirrored "}
    lines = []
    for kind, roles in found["shared"].items():
        for role, counts in roles.items():
            line = f"{counts['images']:,} {role} image(s) stand {names[kind]}in train too"
            if counts["with_another_label"]:
                line += f", {counts['with_another_label']:,} with another label"
            lines.append(line)
    return lines


def _summary(found: dict[str, Any], audited: Audited) -> str:
    tiles = "".join(
        f'<li><a href="#{kind}"><b>{count:,}</b>{page.text(KINDS[kind][0].lower() + KINDS[kind][1:])}</a></li>'
        if count
        else f"<li><div><b>0</b>{page.text(KINDS[kind][0].lower() + KINDS[kind][1:])}</div></li>"
        for kind, count in found["findings"].items()
    )
    splits = ", ".join(f"{page.text(split.name)} {len(split):,}" for split in audited.splits.values())
    said = "".join(f'<p class="warning">{page.text(line)}.</p>' for line in verdict(found))
    notes = "".join(f"<p><small>{page.text(note)}.</small></p>" for note in found["notes"])
    marked = {audited.splits[role].name: n for role, n in found["marked"].items() if n}
    left = " and ".join(f"{n:,} of {page.text(name)}" for name, n in marked.items()) or "none"
    how = (
        f"<p>Images that <code>audit.csv</code> marks to be left out: {left}. Change its column <code>exclude</code> "
        "where you see it otherwise, and give it to <code>fit --data.exclude audit.csv</code>.</p>"
    )
    return f'<p>{len(audited):,} images: {splits}.</p>{said}<ul class="tiles">{tiles}</ul>{how}{notes}'


def _section(
    kind: str, title: str, about: str, those: list[Finding], audited: Audited, out: set[int], show: int
) -> str:
    cards = "".join(_card(finding, audited, out) for finding in those[:show])
    if more := len(those) - show:
        about += f" The first {show:,} of {len(those):,}; all are in <code>audit.csv</code>." if more > 0 else ""
    heading = f'<h2 id="{kind}">{page.text(title)}: {len(those):,}</h2>'
    return f'<section>{heading}<p>{about}</p><div class="cards">{cards}</div></section>'


def _card(finding: Finding, audited: Audited, out: set[int]) -> str:
    images = [int(i) for i in finding.images]
    pictures = "".join(_picture(image, audited, image in out) for image in images[:_OF_A_GROUP])
    note = page.text(finding.note)
    if finding.suggested is not None:
        note = f"rather <b>{page.text(audited.label_names[finding.suggested])}</b>: {note}"
    if more := len(images[_OF_A_GROUP:]):
        note = f"and {more:,} more"
    said = f'<p class="note">{note}</p>' if note else ""
    two = " two" if finding.kind in COPIES and len({audited.label_key(i) for i in images}) > 1 else ""
    single = "" if finding.kind in COPIES else " single"
    return f'<div class="card{two}{single}"><div class="pictures">{pictures}</div>{said}</div>'


def _picture(image: int, audited: Audited, left_out: bool) -> str:
    split, i = audited.place(image)
    file, label = audited.file(image), audited.label(image)
    name = Path(file).name if file else f"row {audited.row(image)}"
    try:
        picture = decode(split.image_records(np.array([i]))[0], name, page.THUMBNAIL)
        shown = page.img(page.thumbnail(picture)).replace('alt=""', f'alt="{page.text(label)}"')
    except BadImage:
        shown = '<div class="none">no picture</div>'
    out = '<br><span class="out">left out</span>' if left_out else ""
    caption = f"<b>{page.text(label)}</b><br><small>{page.text(split.name)}: {page.text(name)}</small>{out}"
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"
