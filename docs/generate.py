"""A page a method in docs/methods/, from its docstring, its settings and what it computes with.

python docs/generate.py           # writes the pages, and removes those of methods that are gone
python docs/generate.py --check   # writes nothing; exit code 1, and the names of the pages that would change
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the methods of this tree, whatever is installed

from kdbench import models
from kdbench.core.catalog import Catalog, MethodInfo
from kdbench.core.errors import UserError
from kdbench.core.trial import Pair
from kdbench.distill import Batch, Hyper, Output, Shapes, registry
from kdbench.models import FeatureShapes
from kdbench.plan import expressions, pairs, recipes

FOLDER = Path(__file__).resolve().parent / "methods"
FIELDS = ("Paper", "Loss", "Defaults", "Differs")
SHARED = {item.name for item in fields(Hyper)}
RECIPE, CLASSES, IMAGES = recipes.recipe("paper"), 100, 50_000  # CIFAR-100's
PAPER, PAIR = pairs.sets("cifar100")["all"], Pair("resnet32x4", "resnet8x4")  # costs are those of PAIR
STUDENT = models.profile(PAIR.student, CLASSES, RECIPE.size).parameters

PAGE = f"""\
<!-- Written by docs/generate.py: edit methods/{{name}}.py and run it again. -->
# {{name}}

{{summary}}

**Paper**: {{Paper}}

Code: [methods/{{name}}.py](../../methods/{{name}}.py). All methods: [index](README.md).

## Loss

```text
{{Loss}}
```

Cross-entropy and KL divergence are added by the harness, for every method alike, with the weights below.

## Settings

| name | type | default | what it is |
|---|---|---|---|
{{settings}}

### Where the defaults come from

{{Defaults}}

## Differences from the paper

**Differs**: {{Differs}}

## Call

{{calls}}

## The paper's {len(PAPER)} pairs

{{incompatibilities}}

## Cost

| beside the student | numbers | MiB |
|---|---:|---:|
{{cost}}

- Memories among the buffers: {{banks}}.
- First stage: {{stage}}.
- Read of the student by the method's own terms, the logits apart: {{reads}}.

Computed, not timed, for `{PAIR}`, {IMAGES:,} training images of {RECIPE.size}×{RECIPE.size} pixels, {CLASSES} classes
and the default settings. The method is built for the shapes of both networks, and the losses of each stage are
differentiated once, for random outputs of these shapes: a parameter is trained in a stage, and a map or embedding is
read, where these losses have a gradient with respect to it. Buffers count as they are stored, statistics of batch
normalization included. Left out: the student ({STUDENT:,} parameters), the teacher, the optimizer's state, and what
exists only during a step.
"""

INDEX = f"""\
<!-- Written by docs/generate.py: edit the files in methods/ and run it again. -->
# Methods

| method | what it does | paper | in `all` | reads | first stage | trained | buffers, MiB | pairs |
|---|---|---|---|---|---|---:|---:|---:|
{{rows}}

*In `all`*: whether `--methods all` includes it. *Reads*: of the student, in all stages, the logits apart; map 0 is the
stem's, a pre-activation map is taken before the activation. *First stage*: what is trained in a stage of its own
before the main one. *Trained*: parameters beside the student's {STUDENT:,}, in all stages. *Buffers*: memories, and
statistics of batch normalization. *Pairs*: how many of the paper's {len(PAPER)} it supports. All with the default
settings; costs for `{PAIR}`, {IMAGES:,} images and {CLASSES} classes, computed as each page says.
[The protocol](../protocol.md) has what all methods share.
"""
ROW = "| [{name}]({name}.md) | {summary} | {paper} | {core} | {reads} | {what} | {trained} | {mib} | {served} |"


def pages() -> dict[str, str]:
    """File name -> text. Raises ValueError, in one sentence, where a method does not give what its page needs."""
    for module, reason in registry.discover().items():
        if module.startswith("kdbench.methods."):
            raise ValueError(f"{module} failed to import: {reason}")
    infos = {name: info for name, info in registry.infos().items() if info.module == f"kdbench.methods.{name}"}
    facts = [{**words(info, infos), **cost(name)} for name, info in infos.items()]
    index = {"README.md": INDEX.format(rows="\n".join(ROW.format(**each) for each in facts))}
    return index | {f"{each['name']}.md": PAGE.format(**each) for each in facts}


def parts(source: str, docstring: str) -> dict[str, str]:
    """The fields of a method's docstring, their lines as they stand. Raises ValueError where one is missing."""
    found = dict(re.findall(r"(?m)^(\w+):(.*(?:\n(?: .*)?)*)", docstring))
    for field in FIELDS:
        if not found.get(field, "").strip():
            raise ValueError(f"{source}: its docstring lacks the field {field!r}; it needs {', '.join(FIELDS)}")
    return {field: textwrap.dedent(" " * len(f"{field}:") + found[field]).strip() for field in FIELDS}


def linked(text: str) -> str:
    return re.sub(r"arXiv:(\d{4}\.\d{4,5}(?:v\d+)?)", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def cell(text: str) -> str:
    """Text that does not end a table's cell."""
    return text.replace("|", r"\|")


def words(info: MethodInfo, infos: Mapping[str, MethodInfo]) -> dict[str, object]:
    """What a method says of itself, how it is called, and which pairs it serves."""
    said = parts(f"methods/{info.name}.py", sys.modules[info.module].__doc__ or "")
    example = next((s for s in info.settings if s.name not in SHARED and s.kind == "float"), info.settings[-1])
    forms = (info.name, f"{info.name}+kd", f"{info.name}({example.name}={example.default * 2})")
    incompatibilities = {pair: registry.incompatibility(info.name, {}, shapes(pair)) for pair in PAPER}
    refused = [f"- `{pair}`: {reason}" for pair, reason in incompatibilities.items() if reason]
    told = f"It cannot serve {len(refused)} of them, whose cells say `n/a` with this reason:\n\n"
    return {
        "name": info.name,
        "summary": cell(info.summary),
        "paper": linked(info.paper),
        "core": "yes" if info.core else "no",
        "settings": "\n".join(f"| `{s.name}` | {s.kind} | `{s.default}` | {cell(s.help)} |" for s in info.settings),
        "calls": "\n".join(call(form, infos) for form in forms),
        "incompatibilities": told + "\n".join(refused) if refused else "It serves all of them.",
        "served": len(PAPER) - len(refused),
        **{field: text if field == "Loss" else linked(text) for field, text in said.items()},
    }


def call(form: str, infos: Mapping[str, MethodInfo]) -> str:
    """The command of a method expression, or why there is none."""
    try:
        expression = expressions.parse(form, Catalog(infos, models.info, lambda *_: None))[-1].expression
    except UserError as error:
        return f"- `{form}` is refused: {error}"
    quoted = f'"{expression}"' if "(" in expression else expression
    return f"- `python bench.py --methods {quoted} --pairs {PAIR}`"


def shapes(pair: Pair) -> Shapes:
    student, teacher = (models.features(arch, CLASSES, RECIPE.size) for arch in (pair.student, pair.teacher))
    return Shapes(student, teacher, CLASSES, torch.arange(IMAGES) % CLASSES, models.info(pair.student).family)


def random_output(known: FeatureShapes, images: int) -> Output:
    """What a network of these shapes might return."""
    maps, pre_activations = (
        [torch.randn(images, *shape, requires_grad=True) for shape in known.feature_maps] for _ in range(2)
    )
    logits, embedding = (torch.randn(images, size, requires_grad=True) for size in (CLASSES, known.embedding))
    return Output(logits, tuple(maps), embedding, tuple(pre_activations))


def reached(terms: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> set[str]:
    """Names of the tensors with respect to which the terms have a gradient."""
    if not (terms and tensors):
        return set()
    total = torch.stack(list(terms.values())).sum()
    gradients = torch.autograd.grad(total, list(tensors.values()), retain_graph=True, allow_unused=True)
    return {name for name, gradient in zip(tensors, gradients, strict=True) if gradient is not None}


def cost(name: str) -> dict[str, object]:
    """What a method holds beside the student, what of it is trained in which stage, and what it reads."""
    known = shapes(PAIR)
    if reason := registry.incompatibility(name, {}, known):
        return {
            "cost": f"| {reason} | n/a | n/a |",
            **dict.fromkeys(("banks", "stage", "reads", "what", "trained", "mib"), "n/a"),
        }
    method = registry.distiller(name)(registry.hyper_of(name, {}), known, torch.Generator().manual_seed(0))
    parameters, buffers = dict(method.named_parameters()), dict(method.named_buffers())
    own, target = random_output(known.student, 4), random_output(known.teacher, 4).convert(Tensor.detach)
    outputs = {f"map {number}": each for number, each in enumerate(own.feature_maps)} | {"embedding": own.embedding}
    outputs |= {f"pre_activations map {number}": each for number, each in enumerate(own.pre_activations or ())}
    batch = Batch(torch.empty(4, 3, RECIPE.size, RECIPE.size), torch.arange(4), torch.arange(4))

    terms, stage = method.losses(own, target, batch, 1), method.pretraining()
    late, early, reads, what, sentence = reached(terms, parameters), set[str](), reached(terms, outputs), "–", "none"
    if stage:
        terms = method.pretraining_losses(own, target, batch, 1)
        modules = [each for each, module in method.named_modules() if module in stage.modules]
        early = {each for each in reached(terms, parameters) - late if each.startswith(tuple(f"{m}." for m in modules))}
        reads |= reached(terms, outputs)
        what = ", ".join(["student without classifier"] * stage.student + [f"`{each}`" for each in modules])
        rate = "the student's own rate" if stage.lr is None else f"a rate of {stage.lr:g}"
        epochs = f"{RECIPE.pretraining_epochs} epochs before the {RECIPE.epochs} of the recipe `{RECIPE.name}`"
        sentence = f"{epochs}, at {rate} throughout; it trains: {what}"
    kinds: dict[str, list[Tensor]] = {
        "parameters trained with it": [parameters[each] for each in late],
        "parameters trained in the first stage only": [parameters[each] for each in early],
        "parameters never trained": [parameters[each] for each in parameters.keys() - late - early],
        "buffers": list(buffers.values()),
    }
    banks = [f"`{each}` {list(buffer.shape)}" for each, buffer in buffers.items() if buffer.ndim > 1]
    return {
        "cost": "\n".join(f"| {kind} | {numbers(held):,} | {mib(held)} |" for kind, held in kinds.items()),
        "banks": ", ".join(banks) or "none",
        "stage": sentence,
        "reads": ", ".join(each for each in outputs if each in reads) or "–",
        "what": what,
        "trained": f"{numbers(parameters[each] for each in late | early):,}",
        "mib": mib(buffers.values()),
    }


def numbers(held: Iterable[Tensor]) -> int:
    return sum(each.numel() for each in held)


def mib(held: Iterable[Tensor]) -> str:
    return f"{sum(each.numel() * each.element_size() for each in held) / 2**20:.2f}"


def main(argv: Sequence[str] | None = None, folder: Path = FOLDER) -> int:
    parser = argparse.ArgumentParser(description="Write docs/methods/: a page a method, and their index.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page is not up to date")
    check = parser.parse_args(argv).check
    try:
        wanted = pages()
    except ValueError as error:
        print(f"generate.py: {error}", file=sys.stderr)
        return 2
    there = {path.name: path.read_text("utf-8") for path in folder.glob("*.md")}
    stale = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
    if check:
        for name in stale:
            print(f"{folder / name} {'is out of date' if name in wanted else 'is of no method'}: run docs/generate.py")
        return 1 if stale else 0
    folder.mkdir(parents=True, exist_ok=True)
    for name in stale:
        if name in wanted:
            (folder / name).write_text(wanted[name], "utf-8")
        else:
            (folder / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
