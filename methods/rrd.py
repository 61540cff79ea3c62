"""Relational representation distillation: match how similarities to a queue of embeddings are distributed.

Paper:    Giakoumoglou, Stathaki, "Relational Representation Distillation", arXiv:2407.12073.
Loss:     Embeddings are linear and L2-normalized. The batch's teacher embeddings enter a first-in-first-out queue; then
          similarities of student and teacher are taken to its rows; rrd_weight · mean over images of the cross-entropy
          between softmax(teacher / nce_t_t), detached, and softmax(student / nce_t_s). The teacher's entropy is not
          subtracted.
Defaults: rrd_weight 1, feat_dim 128, nce_k 16,384, nce_t_s 0.1, nce_t_t 0.02: the authors' scripts of 2025
          (giakoumoglou/distillers).
Differs:  in the temperatures: the paper's text disagrees with the authors' scripts, which are followed here. The
          published table of July 2024 may come from that year's form: temperatures 0.04 and 0.1, and similarities taken
          before the batch enters the queue. The teacher's embedding receives no gradient and stays as it was drawn.
          Where the batch does not divide the queue, entries wrap around its end; the authors' code refuses such sizes.
          `rrd_momentum` is the form with a memory bank.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.distill import Context, Distiller, Golden, Hyper, Range, Step, register, soft_cross_entropy


@dataclass(frozen=True)
class RRDHyper(Hyper):
    rrd_weight: Annotated[float, "multiplies the cross-entropy", Range(0.1, 10.0, log=True)] = 1.0
    feat_dim: Annotated[int, "dimensions of the common embedding"] = 128
    nce_k: Annotated[int, "rows of the queue"] = 16384
    nce_t_s: Annotated[float, "temperature of the student's similarities", Range(0.01, 1.0, log=True)] = 0.1
    nce_t_t: Annotated[float, "temperature of the teacher's similarities", Range(0.002, 0.2, log=True)] = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("feat_dim", "nce_k", "nce_t_s", "nce_t_t")


@register("rrd", RRDHyper, paper="arXiv:2407.12073", year=2024, kind="contrastive", group="paper")
class RRD(Distiller[RRDHyper]):
    """`queue` and `queue_ptr`, the row that the next embedding enters, are named as in the authors' code."""

    queue: Tensor
    queue_ptr: Tensor

    def __init__(self, hyper: RRDHyper, context: Context) -> None:
        super().__init__(hyper, context)
        self.embed_student = nn.Linear(context.student.embedding_dim, hyper.feat_dim)
        self.embed_teacher = nn.Linear(context.teacher.embedding_dim, hyper.feat_dim)
        # Gaussian noise, each column of length 1 and not each row, as in the authors' code.
        self.register_buffer("queue", F.normalize(torch.randn(hyper.nce_k, hyper.feat_dim), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64))
        self._fresh: Tensor | None = None

    def losses(self, step: Step) -> dict[str, Tensor]:
        student = F.normalize(self.embed_student(step.student.embedding))  # [B, D]
        with torch.no_grad():
            teacher = F.normalize(self.embed_teacher(step.teacher.embedding))
        self._fresh = teacher
        queue = self.queue.index_copy(0, self._rows(len(teacher)), teacher)  # the buffer changes after backward
        relation = soft_cross_entropy(student @ queue.T / self.hyper.nce_t_s, teacher @ queue.T / self.hyper.nce_t_t)
        return {"relation": self.hyper.rrd_weight * relation}

    def _rows(self, count: int) -> Tensor:
        """Rows that the next `count` embeddings enter, int64 [count]; after the last row comes the first."""
        return (self.queue_ptr + torch.arange(count, device=self.queue.device)) % len(self.queue)

    def after_backward(self, step: Step) -> None:
        if self._fresh is None:
            raise RuntimeError("after_backward before losses")
        fresh, self._fresh = self._fresh, None
        self.queue.index_copy_(0, self._rows(len(fresh)), fresh)
        self.queue_ptr.copy_((self.queue_ptr + len(fresh)) % len(self.queue))


GOLDEN = {
    "rrd_fifo": Golden(
        student={"embedding": "f_s"},
        teacher={"embedding": "f_t"},
        settings={"feat_dim": "$feat_dim", "nce_k": "$nce_k", "nce_t_s": "$nce_t_s", "nce_t_t": "$nce_t_t"},
    )
}
