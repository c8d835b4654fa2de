"""Contrast. Tian, Krishnan, Isola: Contrastive Representation Distillation, ICLR 2020, https://arxiv.org/abs/1910.10699."""

from __future__ import annotations

import math
import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.config.registry import METHODS
from kdrun.errors import KdrunError
from kdrun.methods.base import Batch, Method, Pair, Terms
from kdrun.methods.bounded import unit
from kdrun.methods.checks import check_choice, check_temperature, check_within, one_tap
from kdrun.methods.taps import Output

COLDEST = 0.02  # temperature: exp(1 / T) of the largest similarity must be a float32


def similarities(anchor_BD: Tensor, bank_ND: Tensor, contrast_BK: Tensor, temperature: float) -> Tensor:
    """exp(anchor . bank / temperature) of the rows in contrast_BK: (B, K), the positive in column 0.

    One matrix product compares the anchors with the whole bank, then the needed scores are gathered: (B, N) numbers. To gather
    rows first would need (B, K, D) numbers, which for K = 16,384 and D = 128 is a gigabyte a batch.
    """
    return (anchor_BD @ bank_ND.T).gather(1, contrast_BK).div(temperature).exp()


def partition(scores_BK: Tensor, rows: int) -> Tensor:
    """The constant Z that turns the scores of the first batch into probabilities: their mean times the bank's rows."""
    return scores_BK.detach().mean() * rows


def noise_contrastive(scores_BK: Tensor, z: Tensor, rows: int) -> Tensor:
    """Binary cross-entropy of positive against noise (equations 16 to 19), summed over the K columns, averaged over B.

    p = score / Z; the noise is uniform over `rows`, and K - 1 negatives are drawn: their density is m = (K - 1) / rows.
    """
    p_BK = scores_BK / z
    m = (scores_BK.shape[1] - 1) / rows
    # p / (p + m) and m / (p + m) with the sources' 1e-7, in logarithms
    denominator_BK = (p_BK + m + 1e-7).log()
    positive_B = p_BK[:, 0].clamp(min=torch.finfo(p_BK.dtype).tiny).log() - denominator_BK[:, 0]
    negative_B = (math.log(m) - denominator_BK[:, 1:]).sum(1)
    return -(positive_B + negative_B).mean()


def update(bank_ND: Tensor, index_B: Tensor, embedding_BD: Tensor, momentum: float) -> None:
    """In place: the batch's rows move towards their new embeddings and keep unit length."""
    moved_BD = bank_ND[index_B] * momentum + embedding_BD * (1 - momentum)
    bank_ND[index_B] = F.normalize(moved_BD, dim=1)


class Rows:
    """The rows of a training set by class. Draws happen on the device, and the CPU does not wait for them. Rows of the holdout
    (label -1) are never drawn."""

    def __init__(self, labels_N: Tensor, negatives: int, device: torch.device):
        labels_N = labels_N.cpu()
        order_N = labels_N.argsort(stable=True)
        rows_M = order_N[int((labels_N < 0).sum()) :]
        counts_K = torch.bincount(labels_N[rows_M])
        others_K = len(rows_M) - counts_K
        self.count = min(negatives, int(others_K[counts_K > 0].min()))
        if self.count < 1:
            raise KdrunError("crd needs images of at least two classes to draw negatives from")
        self.sizes, size_K = others_K.unique(return_inverse=True)  # one size if all classes are equally large
        self.rows_M, self.counts_K, self.size_K = rows_M.to(device), counts_K.to(device), size_K.to(device)
        self.starts_K, self.others_K = self.counts_K.cumsum(0) - self.counts_K, others_K.to(device)

    def negatives(self, label_B: Tensor, generator: torch.Generator) -> Tensor:
        """For each image `count` different rows of other classes (B, count), drawn uniformly.

        A step makes one permutation for each size of a class. Each image takes a window of the permutation at a random offset; rows
        of its own class are skipped. For one image this is a draw without replacement, as in the sources, but a step costs one
        permutation instead of one draw per image.
        """
        device, width = label_B.device, len(self.rows_M)
        table_SM = torch.zeros(len(self.sizes), width, dtype=torch.long, device=device)
        for i, size in enumerate(self.sizes.tolist()):
            table_SM[i, :size] = torch.randperm(size, generator=generator, device=device)
        others_B1, count_B1, start_B1 = (x[label_B][:, None] for x in (self.others_K, self.counts_K, self.starts_K))
        offset_B1 = (torch.rand(len(label_B), 1, generator=generator, device=device) * others_B1).long()
        place_BK = (offset_B1 + torch.arange(self.count, device=device)) % others_B1
        index_BK = table_SM.flatten()[self.size_K[label_B][:, None] * width + place_BK]
        return self.rows_M[index_BK + count_B1 * (index_BK >= start_B1)]

    def positives(self, label_B: Tensor, generator: torch.Generator) -> Tensor:
        """For each image one row of its own class (B,), drawn uniformly; it may be the image itself."""
        share_B = torch.rand(len(label_B), generator=generator, device=label_B.device)
        return self.rows_M[self.starts_K[label_B] + (share_B * self.counts_K[label_B]).long()]


def memory(device: torch.device) -> int:
    """Bytes of memory: free ones on a GPU, all of the machine on a CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_memory(rows: int, dim: int, device: torch.device) -> None:
    """KdrunError, with their size, if two banks of rows x dim in float32 do not fit in half of the memory of the device."""
    needed, available = 2 * rows * dim * 4, memory(device)
    if needed > available / 2:
        raise KdrunError(
            f"crd's two memory banks of {rows:,} x {dim:,} need {needed / 2**30:,.1f} GiB of the {available / 2**30:.1f} GiB of {device}; "
            "a smaller method.crd.dim needs less (the published value is 128)"
        )


@METHODS.register
class CRD(Method):
    """Contrast: separate the embedding of an image from those of other images in a memory bank.

    Loss: -log p+ / (p+ + m) - sum over negatives of log m / (p- + m), mean over B, for both directions; p = exp(a . b / T) / Z
    of unit-length embeddings, m the negatives over the bank's rows. Two linear embeddings to `dim`, trained with the student;
    two banks with a row per training image. Anchors of the student are compared with the teacher's bank, and the reverse. Z is computed
    once, from the first batch. `positive`: exact (the image itself) or relaxed (a random image of its class).
    """

    family = "relations"
    paper = "Tian et al., 2020"
    needs_classes = True
    needs = ("label", "index")
    bank_student: Tensor
    bank_teacher: Tensor
    z: Tensor

    def build(
        self, pair: Pair, *, dim: int, negatives: int, temperature: float, momentum: float, positive: str
    ) -> None:
        known = {"exact": "the image itself", "relaxed": "an image of its class"}
        self.positive = check_choice("crd", "positive", positive, known)
        check_temperature("crd", temperature, COLDEST)
        check_within("crd.dim", dim, 1, why="the size of the embeddings")
        check_within("crd.negatives", negatives, 1, why="the images that an image is compared with")
        if not 0 <= momentum < 1:
            raise KdrunError(f"method.crd.momentum is {momentum}; it must be 0 or more, and below 1 (the bank's share)")
        one_tap("crd", pair)
        self.temperature, self.momentum = temperature, momentum
        student, teacher = pair.student.shapes[0], pair.teacher.shapes[0]  # type: ignore[union-attr]
        for tap, shape in zip((pair.taps[0][0], pair.taps[1][0]), (student, teacher), strict=True):
            if shape[0] != pair.student.logits[0]:  # the tokens of a text
                raise KdrunError(
                    f"crd compares whole samples, and tap '{tap}' is no vector for each; tap one, as in taps=[pooled]"
                )
        check_memory(pair.data.train_n, dim, pair.data.device)
        self.embed_student = nn.Linear(_size(student), dim)
        self.embed_teacher = nn.Linear(_size(teacher), dim)
        self.rows = Rows(pair.data.labels, negatives, pair.data.device)
        bound = (3 / dim) ** 0.5  # rows of about unit length, as in the sources
        self.register_buffer("bank_student", torch.empty(pair.data.train_n, dim).uniform_(-bound, bound))
        self.register_buffer("bank_teacher", torch.empty(pair.data.train_n, dim).uniform_(-bound, bound))
        self.register_buffer("z", torch.full((2,), -1.0))  # of student and teacher anchors; -1 until the first batch
        self._pending: tuple[Tensor, ...] = ()

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        s_BD = unit(self.embed_student(student.taps[0].flatten(1)), dim=1)
        t_BD = unit(self.embed_teacher(teacher.taps[0].flatten(1)), dim=1)
        index_B = batch["index"]
        negatives_BK = self.rows.negatives(batch["label"], self.generator)
        positive_B = index_B if self.positive == "exact" else self.rows.positives(batch["label"], self.generator)
        contrast_BK = torch.cat([positive_B[:, None], negatives_BK], dim=1)
        value, z = contrast(
            s_BD,
            t_BD,
            self.bank_student,
            self.bank_teacher,
            contrast_BK,
            self.temperature,
            self.z,
            len(self.rows.rows_M),
        )
        self._pending = (index_B, s_BD.detach(), t_BD.detach(), z)
        return {"contrast": value}

    def after_step(self) -> None:
        index_B, s_BD, t_BD, z = self._pending
        update(self.bank_student, index_B, s_BD, self.momentum)
        update(self.bank_teacher, index_B, t_BD, self.momentum)
        self.z.copy_(z)


def contrast(
    s_BD: Tensor,
    t_BD: Tensor,
    bank_s_ND: Tensor,
    bank_t_ND: Tensor,
    contrast_BK: Tensor,
    temperature: float,
    z_2: Tensor,
    rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss of both directions, and the constants Z (2,) to keep; z_2 below 0 means "not set yet".

    Embeddings have unit length. contrast_BK has rows of the banks, the positive in column 0. `rows`: the number of rows that
    negatives are drawn from; all rows of the bank, unless some belong to a holdout.
    """
    student_BK = similarities(s_BD, bank_t_ND, contrast_BK, temperature)
    teacher_BK = similarities(t_BD, bank_s_ND, contrast_BK, temperature)
    rows = len(bank_s_ND) if rows is None else rows
    first_2 = torch.stack([partition(student_BK, rows), partition(teacher_BK, rows)])
    z_2 = torch.where(z_2 > 0, z_2, first_2)  # without a Python if, so that the CPU does not wait for the device
    return noise_contrastive(student_BK, z_2[0], rows) + noise_contrastive(teacher_BK, z_2[1], rows), z_2


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape[1:]).numel()
