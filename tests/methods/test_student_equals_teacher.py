"""Over the registry: a student whose outputs are its teacher's has the loss that the paper's formula predicts.

Predictions are worked out by hand, in plain Python; of a method they read settings, parameters and memories only. Those
are set so that both sides agree where that leaves something to predict, or so that what remains has a short form.
Where 0 is predicted the value alone proves little: a perturbed student must then give another one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdbench.core.trial import VANILLA, Value
from kdbench.distill import Batch, Output, Shapes, registry
from kdbench.distill.objective import objective
from kdbench.models import FeatureShapes

IMAGES, CLASSES = 12, 4  # three images a class: each has nine of other classes
LABELS = torch.arange(IMAGES) % CLASSES
INDICES = torch.tensor([7, 2, 9, 4, 11])  # the batch
NEGATIVES = 9  # as many as there are, so that it does not matter in which order they are drawn
SHAPE = FeatureShapes(((2, 4, 4), (3, 4, 4), (4, 2, 2)), True, 6)

Vector = list[float]
Rows = list[Vector]


@dataclass(frozen=True)
class Case:
    """`predict` sets what it likes of the method's parameters and returns its terms; `ce` and `kd` are not among them.

    Terms of the pretraining are called `pretraining NAME`. Those in `of_teacher` do not change with the student's
    output: a teacher's autoencoder, or a teacher's anchor among what a memory holds of the student.
    """

    predict: Callable[[Any, Output], dict[str, float]]
    settings: dict[str, Value] = field(default_factory=dict)
    of_teacher: frozenset[str] = frozenset()


def mean(values: Iterable[float]) -> float:
    found = list(values)
    return math.fsum(found) / len(found)


def dot(left: Vector, right: Vector) -> float:
    return math.fsum(a * b for a, b in zip(left, right, strict=True))


def softmax(row: Vector) -> Vector:
    powers = [math.exp(value - max(row)) for value in row]
    return [power / math.fsum(powers) for power in powers]


def linear(layer: nn.Linear, rows: Rows) -> Rows:
    weight, bias = layer.weight.tolist(), layer.bias.tolist()
    return [[dot(line, row) + offset for line, offset in zip(weight, bias, strict=True)] for row in rows]


def unit(rows: Rows) -> Rows:
    return [[value / math.sqrt(dot(row, row)) for value in row] for row in rows]


def by_channel(maps: Tensor) -> list[Rows]:
    """[B][K][H·W]"""
    found: list[Rows] = maps.flatten(2).tolist()
    return found


def entries(maps: Tensor) -> Vector:
    found: Vector = maps.flatten().tolist()
    return found


def normal(channel: Vector) -> tuple[Vector, float, float]:
    """What a fresh batch norm makes of all values of a channel; their mean; the root of their variance and 1e-5."""
    middle = mean(channel)
    deviation = math.sqrt(mean((value - middle) ** 2 for value in channel) + 1e-5)
    return [(value - middle) / deviation for value in channel], middle, deviation


def agree(method: Any) -> None:
    """Both sides are embedded alike."""
    method.embed_teacher.load_state_dict(method.embed_student.state_dict())


def identity(convolution: nn.Module, scale: float = 1.0) -> None:
    """As many channels in as out, each multiplied by `scale`."""
    assert isinstance(convolution, nn.Conv2d | nn.ConvTranspose2d)
    nn.init.dirac_(convolution.weight)
    convolution.weight.mul_(scale)
    if convolution.bias is not None:
        convolution.bias.zero_()


def nothing(method: Any, same: Output) -> dict[str, float]:
    """The method adds no term to those of the harness."""
    return {}


def zero(*terms: str) -> Callable[[Any, Output], dict[str, float]]:
    """A distance of two things that are computed alike from student and teacher, without trained helpers."""
    return lambda method, same: dict.fromkeys(terms, 0.0)


def fitnet(method: Any, same: Output) -> dict[str, float]:
    # Batch norm gives back its input x when its weight is √(variance + 1e-5) and its bias the mean of the batch. Then
    # ReLU(x) - x is 0 where x > 0 and -x elsewhere: the mean of min(x, 0)².
    identity(method.regressor.conv)
    for number, channel in enumerate(same.feature_maps[1].unbind(1)):
        _, middle, deviation = normal(entries(channel))
        method.regressor.bn.weight[number], method.regressor.bn.bias[number] = deviation, middle
    return {"hint": method.hyper.fitnet_weight * mean(min(v, 0.0) ** 2 for v in entries(same.feature_maps[1]))}


def fitnet_fresh(method: Any, same: Output) -> dict[str, float]:
    # Of a fresh batch norm the error is ReLU((x - mean) / √(variance + 1e-5)) - x.
    identity(method.regressor.conv)
    channels = [entries(channel) for channel in same.feature_maps[1].unbind(1)]
    errors = [max(z, 0.0) - v for channel in channels for z, v in zip(normal(channel)[0], channel, strict=True)]
    return {"hint": method.hyper.fitnet_weight * mean(error**2 for error in errors)}


def vid(method: Any, same: Output) -> dict[str, float]:
    # Regressors I, I, 3/2 · I with ReLU between: mu = 3/2 · max(x, 0), and the error is x/2 where x > 0, -x elsewhere.
    # With v_k = log(1 + exp(a_k)) + eps, the variance of channel k: the mean of ½ (error² / v_k + log v_k).
    total = 0.0
    for predictor, x in zip(method.vid, same.feature_maps[1:], strict=True):
        for number, scale in ((0, 1.0), (2, 1.0), (4, 1.5)):
            identity(predictor.regressor[number], scale)
        predictor.log_scale.copy_(torch.linspace(-1.0, 2.0, x.shape[1]))
        variances = [math.log1p(math.exp(a)) + method.hyper.eps for a in predictor.log_scale.tolist()]
        total += mean(
            ((v / 2 if v > 0 else -v) ** 2 / variance + math.log(variance)) / 2
            for image in by_channel(x)
            for channel, variance in zip(image, variances, strict=True)
            for v in channel
        )
    return {"likelihood": method.hyper.vid_weight * total}


def cc(method: Any, same: Output) -> dict[str, float]:
    # The teacher's embedding is the double of the student's y: delta_i = |y_i|.
    for own, other in zip(method.embed_student.parameters(), method.embed_teacher.parameters(), strict=True):
        other.copy_(2 * own)
    delta = [[abs(value) for value in row] for row in linear(method.embed_student, same.embedding.tolist())]
    return {"correlation": method.hyper.cc_weight * mean(map(dot, delta[:-1], delta[1:]))}


def ab(method: Any, same: Output) -> dict[str, float]:
    # No connectors where shapes agree. A neuron is on the right side of the boundary; within the margin m of it, it
    # costs (m - x)² if x > 0 and (m + x)² else, which is (m - |x|)². Stages of weight ½ and 1; over B; · 3/1000.
    assert same.pre_activations is not None
    m = method.hyper.margin
    first, last = (
        math.fsum((m - abs(v)) ** 2 for v in entries(x) if abs(v) < m) / len(x) for x in same.pre_activations[1:]
    )
    return {"pretraining boundary": method.hyper.ab_weight * 3 / 1000 * (first / 2 + last)}


def ft(method: Any, same: Output) -> dict[str, float]:
    # As many factors as channels, all convolutions the identity. Three leaky ReLUs of slope 0.1 encode: x < 0 becomes
    # x/10³; three more decode: x/10⁶ remains. The translator has a fresh batch norm before each of its leaky ReLUs.
    x = same.feature_maps[-1]
    modules = (method.paraphraser.encoder, method.paraphraser.decoder, method.translator.encoder)
    for convolution in (each for module in modules for each in module[::3]):
        identity(convolution)
    lost = mean((min(v, 0.0) * (1 - 1e-6)) ** 2 for v in entries(x))

    channels = [entries(channel) for channel in x.unbind(1)]  # [K][B·H·W]
    target = [[v if v > 0 else v / 1000 for v in channel] for channel in channels]
    for _ in range(3):
        channels = [[z if z > 0 else z / 10 for z in normal(channel)[0]] for channel in channels]

    def attention(factor: Rows) -> Vector:
        positions = x[0, 0].numel()
        squares = [mean(v**2 for v in each) for each in zip(*factor, strict=True)]  # [B·H·W]
        images = [squares[start : start + positions] for start in range(0, len(squares), positions)]
        return [value for image in unit(images) for value in image]

    apart = mean(abs(own - other) for own, other in zip(attention(channels), attention(target), strict=True))
    return {"pretraining reconstruction": lost, "factor": method.hyper.ft_weight * apart}


def icd(method: Any, same: Output) -> dict[str, float]:
    # logits_ij = c · y_i·y_j + b are symmetric: students over teachers are distributed as teachers over students, and
    # the divergence between them is 0. What is left to contrast is softmax_j(c · y_i·y_j), which b does not change.
    agree(method)
    method.log_temperature_tau.fill_(1.5)
    return _icd(method, same, math.exp(1.5))


def icd_apart(method: Any, same: Output) -> dict[str, float]:
    # With the embeddings as they were drawn, nothing cancels; e³ is above the bound.
    method.log_temperature_tau.fill_(3.0)
    return _icd(method, same, method.hyper.max_tau)


def _icd(method: Any, same: Output, scale: float) -> dict[str, float]:
    method.bias_b.fill_(0.3)
    students, teachers = (
        unit(linear(layer, same.embedding.tolist())) for layer in (method.embed_student, method.embed_teacher)
    )
    p = [softmax([scale * dot(student, teacher) for teacher in teachers]) for student in students]
    q = [softmax([scale * dot(student, teacher) for student in students]) for teacher in teachers]
    contrastive = mean(-math.log(row[i]) for i, row in enumerate(p))
    invariance = mean(
        math.fsum(b * math.log(b / a) for a, b in zip(own, other, strict=True)) for own, other in zip(p, q, strict=True)
    )
    weight = method.hyper.icd_weight
    return {"contrastive": weight * contrastive, "invariance": weight * method.hyper.alpha * invariance}


def memory_scores(anchors: Rows, memory: Rows, temperature: float) -> Rows:
    """exp(v·m / T) / Z of an image's own row and of those of other classes; Z = N · the mean of all that are taken."""
    labels = LABELS.tolist()
    rows = [
        [index, *(n for n in range(IMAGES) if labels[n] != label)]
        for index, label in zip(INDICES.tolist(), LABELS[INDICES].tolist(), strict=True)
    ]
    powers = [
        [math.exp(dot(anchor, memory[n]) / temperature) for n in taken]
        for anchor, taken in zip(anchors, rows, strict=True)
    ]
    constant = IMAGES * mean(power for row in powers for power in row)
    return [[power / constant for power in row] for row in powers]


def crd(method: Any, same: Output) -> dict[str, float]:
    # Equal anchors, each against the other side's memory. K/N = 9/12; 1e-7 stands in the logarithms.
    agree(method)
    anchors, noise = unit(linear(method.embed_student, same.embedding.tolist())), NEGATIVES / IMAGES

    def nce(memory: Tensor) -> float:
        return mean(
            -math.log(own / (own + noise + 1e-7)) - math.fsum(math.log(noise / (p + noise + 1e-7)) for p in others)
            for own, *others in memory_scores(anchors, memory.tolist(), method.hyper.nce_t)
        )

    weight = method.hyper.crd_weight
    return {"nce_student": weight * nce(method.memory_teacher), "nce_teacher": weight * nce(method.memory_student)}


def cross_entropy(of_student: Rows, of_teacher: Rows, hyper: Any) -> float:
    """Mean of -Σ softmax(teacher / T_t) · log softmax(student / T_s)."""
    return mean(
        -math.fsum(
            p * math.log(q)
            for p, q in zip(
                softmax([v / hyper.nce_t_t for v in target]), softmax([v / hyper.nce_t_s for v in own]), strict=True
            )
        )
        for own, target in zip(of_student, of_teacher, strict=True)
    )


def rrd_queue(method: Any, same: Output) -> dict[str, float]:
    # Seven rows, the next place is 4: the batch's five embeddings y take the places 4, 5, 6, 0, 1. Both sides have the
    # similarities of y to these rows, and differ in the temperature only.
    agree(method)
    method.queue_ptr.fill_(4)
    y, queue = unit(linear(method.embed_student, same.embedding.tolist())), method.queue.tolist()
    queue = [y[3], y[4], queue[2], queue[3], y[0], y[1], y[2]]
    similar = [[dot(row, other) for other in queue] for row in y]
    return {"relation": method.hyper.rrd_weight * cross_entropy(similar, similar, method.hyper)}


def rrd_momentum(method: Any, same: Output) -> dict[str, float]:
    # Equal anchors, each against the other side's memory; the scores of both replace the similarities.
    agree(method)
    y = unit(linear(method.embed_student, same.embedding.tolist()))
    own, target = (
        memory_scores(y, memory.tolist(), method.hyper.nce_t)
        for memory in (method.memory_teacher, method.memory_student)
    )
    return {"relation": method.hyper.rrd_weight * cross_entropy(own, target, method.hyper)}


SOFT: dict[str, Value] = {"nce_t_s": 0.3, "nce_t_t": 0.2, "feat_dim": 3}
PREDICTED: dict[str, tuple[Case, ...]] = {
    VANILLA: (Case(nothing),),
    "kd": (Case(nothing),),
    "fitnet": tuple(Case(predict, {"fitnet_weight": 7.0, "hint_layer": 1}) for predict in (fitnet, fitnet_fresh)),
    # equal attention, Gram matrices, channels (MMD² of a set and itself), neighbourhoods, distances and angles, flows
    "at": (Case(zero("attention")),),
    "sp": (Case(zero("similarity")),),
    "nst": (Case(zero("discrepancy")),),
    "pkt": (Case(zero("divergence")),),
    "rkd": (Case(zero("distance", "angle")),),
    "fsp": (Case(zero("pretraining flow")),),
    "cc": (Case(cc, {"cc_weight": 3.0, "feat_dim": 3}),),
    "vid": (Case(vid, {"vid_weight": 3.0, "eps": 0.01}),),
    "ab": (Case(ab, {"ab_weight": 3.0, "margin": 0.8}),),
    "ft": (Case(ft, {"ft_weight": 3.0, "k": 1.0}, frozenset({"pretraining reconstruction"})),),
    "crd": (
        Case(
            crd,
            {"crd_weight": 3.0, "feat_dim": 3, "nce_k": NEGATIVES, "nce_t": 0.4},
            frozenset({"nce_teacher"}),
        ),
    ),
    "icd": (
        Case(icd, {"icd_weight": 3.0, "feat_dim": 3}),
        Case(icd_apart, {"icd_weight": 3.0, "feat_dim": 3, "alpha": 0.7, "max_tau": 5.0}),
    ),
    "rrd": (
        Case(rrd_queue, {**SOFT, "rrd_weight": 3.0, "nce_k": 7}),
        Case(rrd_momentum, {**SOFT, "rrd_weight": 3.0, "form": "momentum", "nce_k": NEGATIVES, "nce_t": 0.4}),
    ),
}


def output() -> Output:
    stream = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(len(INDICES), *shape, generator=stream, dtype=torch.float64)

    maps = tuple(draw(*shape) for shape in SHAPE.feature_maps)
    return Output(draw(CLASSES), maps, draw(SHAPE.embedding), tuple(draw(*shape) for shape in SHAPE.feature_maps))


def terms_of(method: Any, student: Output, teacher: Output, batch: Batch) -> dict[str, float]:
    before = method.pretraining_losses(student, teacher, batch, 1) if method.pretraining() else {}
    terms = {f"pretraining {name}": term for name, term in before.items()}
    return {name: term.item() for name, term in {**terms, **objective(method, student, teacher, batch, 1)}.items()}


def cases(name: str) -> tuple[Case, ...]:
    assert name in PREDICTED, (
        f"add a prediction for {name!r} to PREDICTED: which loss does its paper's formula give a student whose outputs "
        "are its teacher's? Work it out by hand, in plain Python, without the method's own functions."
    )
    return PREDICTED[name]


@pytest.mark.parametrize("name", sorted(registry.infos()))
def test_the_formula_predicts_the_loss(name: str) -> None:
    same, batch = output(), Batch(torch.empty(len(INDICES), 0), LABELS[INDICES], INDICES)
    stream = torch.Generator().manual_seed(6)
    other = same.convert(lambda tensor: tensor + 0.3 * torch.randn(tensor.shape, generator=stream, dtype=tensor.dtype))
    shared = {} if name == VANILLA else {"ce_weight": 0.7, "kd_weight": 0.6}
    for case in cases(name):
        torch.manual_seed(4)
        settings: dict[str, Value] = {**shared, **case.settings}
        hyper = registry.hyper_of(name, settings)
        shapes = Shapes(SHAPE, SHAPE, CLASSES, LABELS)
        assert registry.distiller(name).supports(hyper, shapes) is None
        method = registry.distiller(name)(hyper, shapes, torch.Generator().manual_seed(4)).double().train()
        with torch.no_grad():
            predicted = case.predict(method, same)
            # the harness's own: cross-entropy of the labels, and the divergence of a distribution from itself
            rows = zip(same.logits.tolist(), batch.labels.tolist(), strict=True)
            predicted["ce"] = shared.get("ce_weight", 1.0) * mean(-math.log(softmax(row)[label]) for row, label in rows)
            if shared:
                predicted["kd"] = 0.0
            # The sums are taken in another order; where a number is subtracted from itself at most rounding is left.
            assert terms_of(method, same, same, batch) == pytest.approx(predicted, rel=1e-10, abs=1e-12)
            perturbed = terms_of(method, other, same, batch)
        for term, value in predicted.items():
            if term not in case.of_teacher:
                assert abs(perturbed[term] - value) > 1e-3 * max(value, 1e-3), f"{term} does not see the student"


def test_only_methods_that_exist_are_predicted() -> None:
    assert set(PREDICTED) <= set(registry.infos())


def test_a_method_without_a_prediction_is_told_to_add_one() -> None:
    with pytest.raises(AssertionError, match="add a prediction for 'newcomer' to PREDICTED"):
        cases("newcomer")
