"""How far apart a teacher sees the classes: prepared once, from its embeddings of the training images."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.distill.step import Context

CKA_BLOCK = 32  # rows of Gram matrices that are held at a time


def class_distances(context: Context) -> Tensor:
    """1 - linear CKA [C, C] between the teacher's embeddings of the training images of each two classes.

    CKA is the cosine of centered Gram matrices [n, n] of two classes; 0 for a class without images or variance. Images
    are paired in the order of the data set, and a class with fewer than the largest repeats its own. The method must
    require the embeddings (`Requires.teacher_embeddings`).

    Source: Kornblith et al. 2019, arXiv:1905.00414, §3.
    """
    embeddings, classes = context.teacher_embeddings, context.classes  # [N, D]
    assert embeddings is not None
    labels = context.labels.to(embeddings.device)
    counts = labels.bincount(minlength=classes)
    rows = torch.arange(int(counts.max()), device=labels.device) % counts.clamp(min=1)[:, None]  # [C, n]
    rows = rows + (counts.cumsum(0) - counts)[:, None]
    features = embeddings[labels.argsort(stable=True)[rows.clamp(max=len(labels) - 1)]]  # [C, n, D]
    features = (features - features.mean(dim=1, keepdim=True)) * (counts > 0)[:, None, None]
    products = features.new_zeros(classes, classes)
    for block in features.split(CKA_BLOCK, dim=1):
        gram = (block @ features.transpose(1, 2)).flatten(1)
        products += gram @ gram.T
    norms = products.diagonal().sqrt()
    distances = 1 - products / (norms[:, None] * norms).clamp(min=torch.finfo(norms.dtype).tiny)
    return distances.fill_diagonal_(0.0)
