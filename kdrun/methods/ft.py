"""Factor transfer. Kim, Park, Kwak: Paraphrasing Complex Network: Network Compression via Factor Transfer, NeurIPS 2018,
https://arxiv.org/abs/1802.04977."""

from __future__ import annotations

import dataclasses

import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.config.registry import METHODS
from kdrun.methods.adapters import same_side
from kdrun.methods.base import Batch, Method, Pair, Stage, Terms
from kdrun.methods.bounded import unit
from kdrun.methods.checks import check_choice, check_share, feature_maps, one_tap
from kdrun.methods.taps import Output


def factor_distance(s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
    """Mean absolute difference of two factors, each at unit length per image.

    The larger map is average-pooled. Agrees with KD-Zoo, mmrazor and torchdistill.
    """
    s_BCHW, t_BCHW = same_side(s_BCHW, t_BCHW)
    return F.l1_loss(unit(s_BCHW.flatten(1)), unit(t_BCHW.flatten(1)))


def collapsed_distance(s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
    """RepDistiller's distance: `factor_distance` of the mean squares of the factors over channels, which are attention maps."""
    return factor_distance(s_BCHW.square().mean(1, keepdim=True), t_BCHW.square().mean(1, keepdim=True))


def layers(convolutions: list[nn.Module], batch_norm: bool) -> nn.Sequential:
    """Each convolution followed by batch norm, if any, and a leaky ReLU (slope 0.1)."""
    modules: list[nn.Module] = []
    for convolution in convolutions:
        norm = [nn.BatchNorm2d(convolution.out_channels)] if batch_norm else []  # type: ignore[arg-type]
        modules += [convolution, *norm, nn.LeakyReLU(0.1)]
    return nn.Sequential(*modules)


def encoder(inputs: int, factor: int, batch_norm: bool) -> nn.Sequential:
    """Three 3x3 convolutions from a feature map to a factor of `factor` channels and the same side."""
    steps = ((inputs, inputs), (inputs, factor), (factor, factor))
    return layers([nn.Conv2d(i, o, 3, padding=1, bias=not batch_norm) for i, o in steps], batch_norm)


def decoder(factor: int, outputs: int, batch_norm: bool) -> nn.Sequential:
    """Three transposed 3x3 convolutions from a factor back to a feature map."""
    steps = ((factor, factor), (factor, outputs), (outputs, outputs))
    return layers([nn.ConvTranspose2d(i, o, 3, padding=1, bias=not batch_norm) for i, o in steps], batch_norm)


@METHODS.register
class FT(Method):
    """Factors: match a compressed form of the teacher's last map.

    Loss: mean |f_s - f_t| of factors at unit length. Stage `paraphrase` trains the paraphraser, an autoencoder of the
    teacher's map with `share` of its channels, on its squared reconstruction error; `distil` trains the student and its
    translator, with the paraphraser frozen. Variant "repdistiller": the formula of FT in the CRD tables, with factors collapsed to
    their mean squares over channels, and a paraphraser without batch norm.
    """

    family = "features"
    paper = "Kim et al., 2018"

    def build(self, pair: Pair, *, variant: str, share: float, batch_norm: bool) -> None:
        known = {"code": "the paper's factors, weight 200", "repdistiller": "the CRD tables' formula, weight 200"}
        collapsed = check_choice("ft", "variant", variant, known) == "repdistiller"
        self.distance = collapsed_distance if collapsed else factor_distance
        one_tap("ft", pair)
        feature_maps("ft", pair)
        student, teacher = pair.student.shapes[0][1], pair.teacher.shapes[0][1]  # type: ignore[union-attr]
        factor = max(1, round(teacher * check_share("ft.share", share)))
        self.run_teacher = pair.run_teacher
        norm = batch_norm and not collapsed
        self.encoder, self.decoder = encoder(teacher, factor, norm), decoder(factor, teacher, norm)
        self.translator = encoder(student, factor, batch_norm)

    def stages(self, pair: Pair, distil: Stage) -> list[Stage]:
        student = distil.trains[0]
        return [
            Stage("paraphrase", self.paraphrase, [self.encoder, self.decoder]),
            dataclasses.replace(distil, trains=[student, self.translator]),
        ]

    def paraphrase(self, batch: Batch) -> tuple[Output, Terms]:
        teacher = self.run_teacher(batch)
        t_BCHW = teacher.taps[0]
        return teacher, {"reconstruction": F.mse_loss(self.decoder(self.encoder(t_BCHW)), t_BCHW)}

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        return {"factor": self.distance(self.translator(student.taps[0]), self.encoder(teacher.taps[0]))}
