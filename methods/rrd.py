"""Relational representation distillation: similarities to a memory should be distributed as the teacher's are.

Paper:    Giakoumoglou, Stathaki, "Relational Representation Distillation", arXiv:2407.12073.
Loss:     Embeddings are linear and L2-normalized. With similarities of student and teacher to the rows of a memory:
          mean over images of the cross-entropy between softmax(teacher / nce_t_t), detached, and softmax(student /
          nce_t_s); rrd_weight · that. The teacher's entropy is not subtracted.
          form=queue: the memory is a first-in-first-out queue of teacher embeddings; the batch's own enter it first.
          form=momentum: the two memories, the constants Z and the negatives of CRD; what is divided by the temperatures
          are CRD's scores exp(similarity / nce_t) / Z, so that exponentials are taken twice.
Defaults: weight 1, embedding 128, queue or negatives 16,384, temperatures 0.1 (student) and 0.02 (teacher),
          momentum 0.5, nce_t 0.07: the authors' scripts of 2025 (giakoumoglou/distillers).
Differs:  in the temperatures: those of the paper's text disagree with the authors' scripts (0.02 and 0.1). The
          published table of July 2024 may come from the form of that year: 0.04 and 0.1, similarities first, then the
          queue. The teacher's embedding receives no gradient and stays as it was drawn. Where the batch does not
          divide the queue, entries wrap around its end; the authors' code refuses such sizes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.distill import (
    Batch,
    Distiller,
    Hyper,
    NegativeSampler,
    Output,
    Shapes,
    initial_memory,
    mix,
    no_negatives,
    register,
    scores,
    smallest_pool,
)


@dataclass(frozen=True)
class RRDHyper(Hyper):
    rrd_weight: Annotated[float, "multiplies the cross-entropy"] = 1.0
    form: Annotated[str, "queue or momentum"] = "queue"
    feat_dim: Annotated[int, "dimensions of the common embedding"] = 128
    nce_k: Annotated[int, "rows of the queue, or negatives an image"] = 16384
    nce_t_s: Annotated[float, "temperature of the student's similarities"] = 0.1
    nce_t_t: Annotated[float, "temperature of the teacher's similarities"] = 0.02
    nce_t: Annotated[float, "temperature of the scores; form=momentum only"] = 0.07
    nce_m: Annotated[float, "momentum of the memories, 0 to 1; form=momentum only"] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("feat_dim", "nce_k", "nce_t_s", "nce_t_t", "nce_t")
        if self.form not in ("queue", "momentum"):
            raise ValueError(f"form must be queue or momentum, not {self.form!r}")
        if not 0 <= self.nce_m < 1:
            raise ValueError(f"nce_m must be at least 0 and below 1, got {self.nce_m}")


def relation(student: Tensor, teacher: Tensor, hyper: RRDHyper) -> Tensor:
    """Mean over images of the cross-entropy between the softened distributions over a memory.

    Args:
        student, teacher: similarities or scores, [B, K]; gradients reach `student` only.
    """
    target = (teacher.detach() / hyper.nce_t_t).softmax(dim=1)
    return -(target * (student / hyper.nce_t_s).log_softmax(dim=1)).sum(dim=1).mean()


@register("rrd", RRDHyper, paper="arXiv:2407.12073", core=True)
class RRD(Distiller[RRDHyper]):
    """Memories carry the names of the authors' code: `queue` and `queue_ptr`, or `memory_student`, `memory_teacher`."""

    memory_student: Tensor
    memory_teacher: Tensor
    Z_student: Tensor
    Z_teacher: Tensor
    queue: Tensor
    queue_ptr: Tensor

    def __init__(self, hyper: RRDHyper, shapes: Shapes, generator: torch.Generator) -> None:
        super().__init__(hyper, shapes, generator)
        self.embed_student = nn.Linear(shapes.student.embedding, hyper.feat_dim)
        self.embed_teacher = nn.Linear(shapes.teacher.embedding, hyper.feat_dim)
        self._fresh: tuple[Tensor, ...] | None = None
        if hyper.form == "queue":
            # Gaussian noise, normalized along the queue and not along the rows, as the authors' code does.
            self.register_buffer("queue", F.normalize(torch.randn(hyper.nce_k, hyper.feat_dim), dim=0))
            self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64))
        else:
            for name in ("memory_student", "memory_teacher"):
                self.register_buffer(name, initial_memory(len(shapes.labels), hyper.feat_dim))
            for name in ("Z_student", "Z_teacher"):
                self.register_buffer(name, torch.zeros(()))
            self.negatives: Callable[[Batch, torch.Generator], Tensor] = NegativeSampler(
                shapes.labels, min(hyper.nce_k, smallest_pool(shapes))
            )

    @classmethod
    def supports(cls, hyper: RRDHyper, shapes: Shapes) -> str | None:
        return no_negatives(shapes) if hyper.form == "momentum" else None

    def losses(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> dict[str, Tensor]:
        own = F.normalize(self.embed_student(student.embedding))  # [B, D]
        with torch.no_grad():
            target = F.normalize(self.embed_teacher(teacher.embedding))
        compare = self._queue_similarities if self.hyper.form == "queue" else self._memory_scores
        of_student, of_teacher = compare(own, target, batch)
        return {"relation": self.hyper.rrd_weight * relation(of_student, of_teacher, self.hyper)}

    def _queue_similarities(self, own: Tensor, target: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Similarities to the queue with this batch's embeddings in it, both [B, K]."""
        queue = self.queue.index_copy(0, self._places(len(target)), target)  # the buffer itself waits for the gradient
        self._fresh = (target,)
        return own @ queue.T, target @ queue.T

    def _places(self, count: int) -> Tensor:
        """Rows that the next embeddings enter, round and round."""
        return (self.queue_ptr + torch.arange(count, device=self.queue.device)) % len(self.queue)

    def _memory_scores(self, own: Tensor, target: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scores against the other side's memory, both [B, 1 + K]."""
        rows = torch.cat([batch.indices[:, None], self.negatives(batch, self.generator)], dim=1)
        of_student, z_student = scores(own, self.memory_teacher, rows, self.Z_student, self.hyper.nce_t)
        of_teacher, z_teacher = scores(target, self.memory_student, rows, self.Z_teacher, self.hyper.nce_t)
        self._fresh = (own.detach(), target, z_student, z_teacher)
        return of_student, of_teacher

    def after_backward(self, batch: Batch) -> None:
        if self._fresh is None:
            raise RuntimeError("after_backward before losses")
        fresh, self._fresh = self._fresh, None
        if self.hyper.form == "queue":
            (target,) = fresh
            self.queue.index_copy_(0, self._places(len(target)), target)
            self.queue_ptr.copy_((self.queue_ptr + len(target)) % len(self.queue))
        else:
            own, target, z_student, z_teacher = fresh
            self.Z_student.copy_(z_student)
            self.Z_teacher.copy_(z_teacher)
            mix(self.memory_student, batch.indices, own, self.hyper.nce_m)
            mix(self.memory_teacher, batch.indices, target, self.hyper.nce_m)

    def extra_info(self) -> dict[str, bool | int | float | str]:
        negatives = getattr(self, "negatives", None)
        return {"negatives": negatives.k} if isinstance(negatives, NegativeSampler) else {}
