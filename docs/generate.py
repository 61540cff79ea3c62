"""Write a page for each method, and their index, for a site: python docs/generate.py [--out DIR]

`python bench.py list methods NAME` prints the same in the terminal; here the paper's pairs and the cost are added.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the methods of this tree, whatever is installed

from kdbench import models
from kdbench.core.catalog import MethodInfo, Published
from kdbench.core.trial import Pair
from kdbench.distill import Shapes, registry
from kdbench.plan import pairs
from tests.methods.build import construct

FOLDER = Path(__file__).resolve().parent / "methods"
FIELDS = ("Paper", "Loss", "Defaults", "Differs")
CLASSES, IMAGES, SIZE = 100, 50_000, 32  # CIFAR-100's
PAPER, PAIR = pairs.sets("cifar100")["all"], Pair(("resnet32x4",), "resnet8x4")  # costs are those of PAIR

PAGE = f"""\
# {{name}}

{{summary}}

**Paper**: {{Paper}}

{{kind}}; group {{group}}; {{year}}. All methods: [index](README.md).

## Loss

```text
{{Loss}}
```

The trainer adds cross-entropy and KL divergence, for every method alike, with the weights below.

## Settings

| name | type | default | searched by tuning | what it is |
|---|---|---|---|---|
{{settings}}

**Where the defaults come from**: {{Defaults}}

**Differs** from the paper: {{Differs}}
{{published}}
## The paper's {len(PAPER)} pairs

{{support}}

## Cost

{{cost}}

For `{PAIR}`, {IMAGES:,} training images, {CLASSES} classes and the default settings. The student has
{models.profile(PAIR.student, CLASSES, SIZE).parameters:,} parameters.
"""

INDEX = f"""\
# Methods

| method | year | kind | what it does | paper | parameters | buffers, MiB | pairs |
|---|---|---|---|---|---:|---:|---:|
{{rows}}

*Parameters* and *buffers* are those beside the student, for `{PAIR}` on CIFAR-100 with the default settings.
*Pairs*: how many of the paper's {len(PAPER)} the method supports.
"""
ROW = "| [{name}]({name}.md) | {year} | {kind} | {summary} | {paper} | {parameters} | {mib} | {supported} |"


def pages() -> dict[str, str]:
    """File name -> text. Raises ValueError, in one sentence, where a method lacks what its page needs."""
    for module, reason in registry.discover().items():
        raise ValueError(f"{module} failed to import: {reason}")
    own = [info for name, info in registry.infos().items() if info.module == f"{registry.PACKAGE}.{name}"]
    methods = [page_values(info) for info in own]
    index = INDEX.format(rows="\n".join(ROW.format(**values) for values in methods))
    return {"README.md": index, **{f"{values['name']}.md": PAGE.format(**values) for values in methods}}


def page_values(info: MethodInfo) -> dict[str, object]:
    """What the templates are filled with."""
    fields = docstring_fields(f"methods/{info.name}.py", registry.docstring(info.name))
    reasons = {pair: registry.incompatibility(info.name, {}, shapes(pair)) for pair in PAPER}
    refused = [f"- `{pair}`: {reason}" for pair, reason in reasons.items() if reason]
    return {
        "name": info.name,
        "summary": cell(info.summary),
        "year": info.year or "–",
        "kind": info.kind,
        "group": info.group,
        "paper": linked(info.paper),
        "settings": "\n".join(
            f"| `{setting.name}` | {setting.kind} | `{setting.default}` | "
            f"{f'{setting.range.low:g} to {setting.range.high:g}' if setting.range else ''} | {cell(setting.help)} |"
            for setting in info.settings
        ),
        "published": "".join(published(info.name, entry) for entry in info.published),
        "support": "\n".join(["It does not support:", "", *refused]) if refused else "It supports all of them.",
        "supported": len(PAPER) - len(refused),
        **{name: text if name == "Loss" else linked(text) for name, text in fields.items()},
        **cost(info.name),
    }


def published(name: str, entry: Published) -> str:
    """The settings of `NAME@published`, as a table."""
    given = ",".join(f"{setting}={value}" for setting, value in entry.given.items())
    names = list(next(iter(entry.pairs.values())))
    table = [[pair, *(str(settings[name]) for name in names)] for pair, settings in entry.pairs.items()]
    lines = [["pair", *(f"`{name}`" for name in names)], ["---"] * (len(names) + 1), *table]
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    expression = f"{name}({given})@published" if given else f"{name}@published"
    return f"\n## `{expression}`\n\nFrom {cell(entry.source)}; chosen pair by pair.\n\n{rows}\n"


def docstring_fields(source: str, docstring: str) -> dict[str, str]:
    """The fields of a method's docstring, their lines as they stand. Raises ValueError where one is missing."""
    fields = dict(re.findall(r"(?m)^(\w+):(.*(?:\n(?: .*)?)*)", docstring))
    for name in FIELDS:
        if not fields.get(name, "").strip():
            raise ValueError(f"{source}: its docstring lacks the field {name!r}; it needs {', '.join(FIELDS)}")
    return {name: textwrap.dedent(" " * len(f"{name}:") + fields[name]).strip() for name in FIELDS}


def linked(text: str) -> str:
    return re.sub(r"arXiv:(\d{4}\.\d{4,5}(?:v\d+)?)", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def cell(text: str) -> str:
    """Text that does not end a table's cell."""
    return text.replace("|", r"\|")


def shapes(pair: Pair) -> Shapes:
    student, *teachers = (models.features(arch, CLASSES, SIZE) for arch in (pair.student, *pair.teachers))
    labels = torch.arange(IMAGES) % CLASSES
    return Shapes(student, tuple(teachers), CLASSES, labels, models.info(pair.student).family)


def cost(name: str) -> Mapping[str, object]:
    """Parameters and buffers that a method holds beside the student."""
    known = shapes(PAIR)
    if reason := registry.incompatibility(name, {}, known):
        return {"cost": f"Not applicable to this pair: {reason}.", "parameters": "n/a", "mib": "n/a"}
    method = construct(name, {}, known)
    parameters = sum(parameter.numel() for parameter in method.parameters())
    mib = f"{sum(buffer.nbytes for buffer in method.buffers()) / 2**20:.2f}"
    return {
        "cost": f"{parameters:,} parameters and {mib} MiB of buffers besides the student.",
        "parameters": f"{parameters:,}",
        "mib": mib,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="DIR", help="folder of the pages")
    args = parser.parse_args(argv)
    try:
        texts = pages()
    except ValueError as error:
        print(f"generate.py: {error}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (args.out / name).write_text(text, "utf-8")
    print(f"written: {len(texts)} pages in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
