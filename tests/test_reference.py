"""Every loss against the values of published implementations: tests/reference, or any folder given as --reference-dir.

CASES names the files that kdrun's methods answer for; a file without a case is skipped as not yet covered. Cases hold
formulas and hyper-parameter names only: shapes come from the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from kdrun.methods.ab import boundaries, boundary
from kdrun.methods.adapters import connector
from kdrun.methods.afd import ChannelAttention, attentive_distance
from kdrun.methods.at import attention_transfer
from kdrun.methods.bss import attack, boundary_support
from kdrun.methods.cc import correlation_congruence, neighbour_products
from kdrun.methods.crd import contrast, update
from kdrun.methods.cwd import channel_divergence
from kdrun.methods.dist import dense_relations, relations
from kdrun.methods.dkd import decoupled
from kdrun.methods.dml import mutual
from kdrun.methods.fgd import Context, attention_distance, focal_distance, masks, relation_distance
from kdrun.methods.fitnet import hint
from kdrun.methods.fsp import flow, flow_distance
from kdrun.methods.ft import collapsed_distance, decoder, encoder, factor_distance
from kdrun.methods.irg import edges, transformation
from kdrun.methods.kd import soft_targets, standardize
from kdrun.methods.kdsvd import EXTRA, principal, singular_flow
from kdrun.methods.logits import logit_matching
from kdrun.methods.lwm import activation_map, map_distance
from kdrun.methods.mgd import generation_distance, generator
from kdrun.methods.mimic import feature_distance
from kdrun.methods.nst import neuron_selectivity
from kdrun.methods.ofd import batch_margin, expected_margin, partial_distance
from kdrun.methods.pkd import correlation_distance
from kdrun.methods.pkt import probabilistic_transfer
from kdrun.methods.reviewkd import Review, hierarchical_context
from kdrun.methods.rkd import rkd_angle, rkd_distance
from kdrun.methods.sobolev import input_gradient, sobolev
from kdrun.methods.sp import similarity_preserving
from kdrun.methods.vid import Gaussian, negative_log_likelihood

Values = dict[str, Tensor]  # by the file's names: "loss", "loss.dist", ...
Case = Callable[[Values, Mapping[str, Any]], Values]  # the file's inputs and weights, the hyper-parameters


def kd(x: Values, hyper: Mapping[str, Any]) -> Values:
    return {"loss": soft_targets(x["s_logits"], x["t_logits"], hyper.get("T", hyper.get("tau")))}


def kd_dense(x: Values, hyper: Mapping[str, Any]) -> Values:
    return {"loss": soft_targets(x["s_feat"], x["t_feat"], hyper["tau"])}


def kd_entropy(x: Values, hyper: Mapping[str, Any]) -> Values:
    """Cross-entropy with the soft targets: the divergence and the teacher's own entropy."""
    t_BK = F.log_softmax(x["t_logits"] / hyper["temp"], dim=1)
    entropy = -(t_BK.exp() * t_BK).sum(1).mean() * hyper["temp"] ** 2
    return {"loss": hyper["alpha"] * (soft_targets(x["s_logits"], x["t_logits"], hyper["temp"]) + entropy)}


def kd_with_task(x: Values, hyper: Mapping[str, Any]) -> Values:
    soft = soft_targets(x["s_logits"], x["t_logits"], hyper["T"])
    task = F.cross_entropy(x["s_logits"], x["labels"])
    return {"loss": hyper["alpha"] * task + hyper["beta"] * soft, "loss.soft": soft / hyper["T"] ** 2}


def dml(x: Values, hyper: Mapping[str, Any]) -> Values:
    first, second = mutual([x["s_logits"], x["t_logits"]])
    return {"loss": first, "loss.net2": second}


def at(x: Values, hyper: Mapping[str, Any]) -> Values:
    return {"loss": attention_transfer(x["s_feat"], x["t_feat"], float(hyper.get("p", 2)), hyper.get("mode", "code"))}


def at_stages(x: Values, hyper: Mapping[str, Any]) -> Values:
    stages = sorted(name.removeprefix("s_feat_") for name in x if name.startswith("s_feat_"))
    losses = {f"loss.{i}": attention_transfer(x[f"s_feat_{i}"], x[f"t_feat_{i}"], float(hyper["p"])) for i in stages}
    return {"loss": sum(losses.values()), **losses}


def fitnet(x: Values, hyper: Mapping[str, Any]) -> Values:
    return {"loss": hint(x["s_feat"], x["t_feat"])}


def fitnet_regressor(x: Values, hyper: Mapping[str, Any]) -> Values:
    regressor = connector(tuple(x["s_feat"].shape), tuple(x["t_feat"].shape)).train()
    weights = {ours: x[f"w.{theirs}"] for ours, theirs in REGRESSOR.items()}
    return {"loss": hint(functional_call(regressor, weights, x["s_feat"]), x["t_feat"])}


REGRESSOR = {
    "0.weight": "conv.weight", "0.bias": "conv.bias", "1.weight": "bn.weight", "1.bias": "bn.bias",
    "1.running_mean": "bn.running_mean", "1.running_var": "bn.running_var",
}  # fmt: skip


def rkd(x: Values, hyper: Mapping[str, Any]) -> Values:
    s_BD, t_BD = x["s_embed"], x["t_embed"]
    if hyper.get("with_l2_norm"):
        s_BD, t_BD = F.normalize(s_BD, dim=1), F.normalize(t_BD, dim=1)
    distance, angle = rkd_distance(s_BD, t_BD), rkd_angle(s_BD, t_BD)
    return {"loss": hyper["w_dist"] * distance + hyper["w_angle"] * angle, "loss.dist": distance, "loss.angle": angle}


def crd(x: Values, hyper: Mapping[str, Any], *, student: str = "memory_v1", teacher: str = "memory_v2") -> Values:
    """The loss of a first batch, then the banks after it and, where the file keeps them, the constants Z."""
    s_BD, t_BD = (
        F.normalize(F.linear(x[f"{side}_embed"], x[f"w.embed_{side}.linear.weight"], x[f"w.embed_{side}.linear.bias"]))
        for side in "st"
    )
    banks = {name: x[f"w.contrast.{name}"].detach().clone() for name in (student, teacher)}
    params = x["w.contrast.params"].detach().clone() if "w.contrast.params" in x else torch.full((5,), -1.0)
    loss, z = contrast(s_BD, t_BD, banks[student], banks[teacher], x["contrast_idx"], hyper["nce_t"], params[2:4])
    params[2:4] = z
    after = {"loss.after_params": params}
    for name, embedding_BD in ((student, s_BD), (teacher, t_BD)):
        after[f"loss.after_{name}"] = bank_ND = banks[name].clone()  # the backward pass wants the old one
        update(bank_ND, x["idx"], embedding_BD.detach(), hyper.get("nce_m", hyper.get("nce_mom")))
    return {"loss": loss, **after}


def crd_kdzoo(x: Values, hyper: Mapping[str, Any]) -> Values:
    return crd(x, hyper, student="memory_s", teacher="memory_t")


def sobolev_gradients(x: Values, hyper: Mapping[str, Any]) -> Values:
    x_BCHW = x["img"].detach().requires_grad_(True)

    def gradient(net: str) -> Tensor:
        y = x_BCHW
        for conv in ("conv1", "conv2"):
            y = torch.tanh(F.conv2d(y, x[f"w.{net}.{conv}.weight"], x[f"w.{net}.{conv}.bias"], padding=1))
        logits_BK = F.linear(y.mean((2, 3)), x[f"w.{net}.fc.weight"], x[f"w.{net}.fc.bias"])
        return input_gradient(logits_BK, x_BCHW, x["labels"], create_graph=net == "a")

    return {"loss": sobolev(gradient("a"), gradient("b"))}


def logits(x: Values, hyper: Mapping[str, Any]) -> Values:
    return {"loss": logit_matching(x["s_logits"], x["t_logits"])}


def standardized_kd(x: Values, hyper: Mapping[str, Any]) -> Values:
    temperature = hyper.get("T", hyper.get("temperature"))
    soft = soft_targets(standardize(x["s_logits"]), standardize(x["t_logits"]), temperature)
    if "alpha" not in hyper:
        return {"loss": soft}
    task = F.cross_entropy(x["s_logits"], x["labels"])
    return {"loss": hyper["alpha"] * task + hyper["beta"] * soft, "loss.soft": soft / temperature**2}


def dkd(x: Values, hyper: Mapping[str, Any], prepare: Callable[[Tensor], Tensor] = lambda z: z) -> Values:
    temperature = hyper.get("T", hyper.get("tau"))
    target, rest = decoupled(prepare(x["s_logits"]), prepare(x["t_logits"]), x["labels"], temperature)
    return {"loss": hyper["alpha"] * target + hyper["beta"] * rest, "loss.tckd": target, "loss.nckd": rest}


def standardized_dkd(x: Values, hyper: Mapping[str, Any]) -> Values:
    return dkd(x, hyper, standardize)


def dist(x: Values, hyper: Mapping[str, Any]) -> Values:
    inter, intra = relations(x["s_logits"], x["t_logits"], hyper["tau"])
    return {"loss": hyper.get("beta", hyper.get("inter")) * inter + hyper.get("gamma", hyper.get("intra")) * intra}


def dist_dense(x: Values, hyper: Mapping[str, Any]) -> Values:
    inter, intra = dense_relations(x["s_feat"], x["t_feat"], hyper["tau"])
    return {"loss": hyper["beta"] * inter + hyper["gamma"] * intra}


def nst(x: Values, hyper: Mapping[str, Any]) -> Values:
    return {"loss": neuron_selectivity(x["s_feat"], x["t_feat"])}


def sp(x: Values, hyper: Mapping[str, Any]) -> Values:
    return {"loss": similarity_preserving(x["s_feat"], x["t_feat"])}


def sp_l1_rows(x: Values, hyper: Mapping[str, Any]) -> Values:
    """torchdistill passes the order of the norm where the dimension was meant: its rows have L1 norm 1."""
    grams = (x[f"{side}_feat"].flatten(1) @ x[f"{side}_feat"].flatten(1).T for side in "st")
    return {"loss": F.mse_loss(*(F.normalize(gram, p=1) for gram in grams))}


def pkt(x: Values, hyper: Mapping[str, Any]) -> Values:
    return {"loss": probabilistic_transfer(x["s_embed"], x["t_embed"], hyper["eps"])}


def cc(x: Values, hyper: Mapping[str, Any]) -> Values:
    return {"loss": correlation_congruence(x["s_embed"], x["t_embed"], hyper["gamma"], hyper["P_order"])}


def cc_neighbours(x: Values, hyper: Mapping[str, Any]) -> Values:
    return {"loss": neighbour_products(x["s_embed"], x["t_embed"])}


def cc_unsquared(x: Values, hyper: Mapping[str, Any]) -> Values:
    """torchdistill: the Frobenius norm itself, of embeddings that are not normalised and, in these files, scaled by 0.2."""

    def kernel(embedding_BD: Tensor) -> Tensor:
        gram_BB = 0.2 * embedding_BD @ (0.2 * embedding_BD).T
        if hyper["type"] == "bilinear":
            return gram_BB
        series = [(2 * hyper["gamma"]) ** p / math.factorial(p) * gram_BB**p for p in range(hyper["max_p"] + 1)]
        return math.exp(-2 * hyper["gamma"]) * sum(series)

    return {"loss": (kernel(x["s_embed"]) - kernel(x["t_embed"])).norm() / len(x["s_embed"]) ** 2}


def irg(x: Values, hyper: Mapping[str, Any]) -> Values:
    vertices = F.mse_loss(x["s_logits"], x["t_logits"])
    layers = [F.mse_loss(edges(x[f"s_{name}"]), edges(x[f"t_{name}"])) for name in ("embed", "feat", "feat2")]
    moved = [transformation(x[f"{side}_feat"], x[f"{side}_feat2"]) for side in "st"]
    terms = {"vert": vertices, "edge": sum(layers) / len(layers), "tran": F.mse_loss(*moved)}
    loss = sum(hyper[f"w_{name}"] * value for name, value in terms.items())
    return {"loss": loss, **{f"loss.{name}": value for name, value in terms.items()}}


def stages_of(x: Values, side: str, name: str = "feat") -> list[Tensor]:
    return [x[key] for key in sorted(x) if key.startswith(f"{side}_{name}_")]


def fsp(x: Values, hyper: Mapping[str, Any]) -> Values:
    flows = [[flow(*pair) for pair in pairwise(stages_of(x, side))] for side in "st"]
    losses = [flow_distance(s, t) for s, t in zip(*flows, strict=True)]
    return {"loss": sum(losses) / len(losses), **{f"loss.{i}": loss for i, loss in enumerate(losses)}}


def fsp_sum(x: Values, hyper: Mapping[str, Any]) -> Values:
    terms = fsp(x, hyper)
    return {**terms, "loss": sum(value for name, value in terms.items() if name != "loss")}


def fsp_columns(x: Values, hyper: Mapping[str, Any]) -> Values:
    """torchdistill: the norms of the columns, not squared, over maximum-pooled maps."""
    flows = [[flow(*pair, "maximum") for pair in pairwise(stages_of(x, side))] for side in "st"]
    return {"loss": sum((s - t).norm(dim=1).sum() / len(s) for s, t in zip(*flows, strict=True))}


def ft(x: Values, hyper: Mapping[str, Any]) -> Values:
    s_BD, t_BD = (F.normalize(x[f"{side}_feat"].flatten(1)) for side in "st")
    return {"loss": factor_distance(x["s_feat"], x["t_feat"]), "loss.p2": (s_BD - t_BD).norm(dim=1).mean()}


def ft_collapsed(x: Values, hyper: Mapping[str, Any]) -> Values:
    return {"loss": collapsed_distance(x["s_feat"], x["t_feat"])}


def ft_networks(x: Values, hyper: Mapping[str, Any]) -> Values:
    channels = x["t_feat"].shape[1]
    factor = round(channels * hyper["k"])

    def network(module: nn.Module, prefix: str, inputs: Tensor) -> Tensor:
        weights = {name.removeprefix(prefix): value for name, value in x.items() if name.startswith(prefix)}
        return functional_call(module.train(), weights, inputs)

    code = network(encoder(channels, factor, True), "w.b.encoder.", x["t_feat"])
    back = network(decoder(factor, channels, True), "w.b.decoder.", code)
    own = network(encoder(x["s_feat"].shape[1], factor, True), "w.a.encoder.", x["s_feat"])
    return {"loss": factor_distance(own, code), "loss.rec": F.mse_loss(back, x["t_feat"])}


def ab(x: Values, hyper: Mapping[str, Any], scale: Callable[[Tensor], Tensor] = Tensor.mean) -> Values:
    return {"loss": scale(boundary(x["s_feat"], x["t_feat"], hyper["margin"]))}


def ab_sum(x: Values, hyper: Mapping[str, Any]) -> Values:
    return ab(x, hyper, Tensor.sum)


def ab_per_image(x: Values, hyper: Mapping[str, Any]) -> Values:
    return ab(x, hyper, lambda cost: boundaries_sum(cost))


def boundaries_sum(cost: Tensor) -> Tensor:
    return cost.sum() / len(cost)


def ab_thousandth(x: Values, hyper: Mapping[str, Any]) -> Values:
    return ab(x, hyper, lambda cost: 3 / 1000 * boundaries_sum(cost))


def ab_stages(x: Values, hyper: Mapping[str, Any]) -> Values:
    layers = list(zip(stages_of(x, "s"), stages_of(x, "t"), strict=True))
    scale = [3 / 1000 / 2 ** (len(layers) - 1 - i) for i in range(len(layers))]
    each = {f"loss.{i}": scale[i] * boundaries_sum(boundary(*pair, hyper["margin"])) for i, pair in enumerate(layers)}
    return {"loss": 3 / 1000 * boundaries(layers, hyper["margin"], "paper"), **each}


def vid(x: Values, hyper: Mapping[str, Any], scale: str = "log_scale") -> Values:
    variance_C = F.softplus(x[f"w.{scale}"]) + hyper["eps"]
    network = Gaussian(x["s_feat"].shape[1], x["t_feat"].shape[1], 5.0).mean
    weights = {f"{i}.weight": x[f"w.regressor.{i}.weight"] for i in (0, 2, 4)}
    return {"loss": negative_log_likelihood(functional_call(network, weights, x["s_feat"]), x["t_feat"], variance_C)}


def vid_kdzoo(x: Values, hyper: Mapping[str, Any]) -> Values:
    return vid(x, hyper, "alpha")


def ofd_connected(x: Values, prefix: str) -> Tensor:
    connect = nn.Sequential(
        nn.Conv2d(x["s_feat"].shape[1], x["t_feat"].shape[1], 1, bias=False), nn.BatchNorm2d(x["t_feat"].shape[1])
    )
    weights = {name.removeprefix(prefix): value for name, value in x.items() if name.startswith(prefix)}
    return functional_call(connect.train(), weights, x["s_feat"])


def ofd_kdzoo(x: Values, hyper: Mapping[str, Any]) -> Values:
    t_BCHW = x["t_feat"]
    return {"loss": partial_distance(ofd_connected(x, "w.connector."), t_BCHW, batch_margin(t_BCHW)).mean()}


def ofd_authors(x: Values, hyper: Mapping[str, Any]) -> Values:
    margin_C = expected_margin(x["bn_weight"], x["bn_bias"])
    return {"loss": partial_distance(ofd_connected(x, "w."), x["t_feat"], margin_C).sum(), "loss.margin": margin_C}


def ofd_per_image(x: Values, hyper: Mapping[str, Any]) -> Values:
    return {"loss": ofd_authors(x, hyper)["loss"] / len(x["s_feat"])}


def ofd_without_margin(x: Values, hyper: Mapping[str, Any]) -> Values:
    no_margin_C = torch.full((x["t_feat"].shape[1],), -math.inf)
    loss = partial_distance(x["s_feat"], x["t_feat"], no_margin_C).sum() / len(x["s_feat"]) / hyper["mul_factor"]
    return {"loss": loss}


def afd(x: Values, hyper: Mapping[str, Any]) -> Values:
    weights = {f"layers.{i}.{kind}": x[f"w.attention.{i}.{kind}"] for i in (0, 2) for kind in ("weight", "bias")}
    channels = x["t_feat"].shape[1]
    attention = functional_call(ChannelAttention(channels, int(channels * hyper["att_f"])), weights, x["t_feat"])
    return {"loss": attentive_distance(x["s_feat"], x["t_feat"], attention, hyper["eps"])}


def net(x: Values, name: str) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The small network of the gradient methods' files: images to (first map, logits)."""

    def forward(x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        first, second = (
            lambda y, conv=conv: torch.tanh(
                F.conv2d(y, x[f"w.{name}.{conv}.weight"], x[f"w.{name}.{conv}.bias"], padding=1)
            )
            for conv in ("conv1", "conv2")
        )
        map_BCHW = first(x_BCHW)
        return map_BCHW, F.linear(second(map_BCHW).mean((2, 3)), x[f"w.{name}.fc.weight"], x[f"w.{name}.fc.bias"])

    return forward


def lwm(x: Values, hyper: Mapping[str, Any]) -> Values:
    maps = []
    for name in "ab":
        map_BCHW, logits_BK = net(x, name)(x["img"].detach().requires_grad_(True))
        maps.append(activation_map(logits_BK, map_BCHW, x["labels"], "code", create_graph=name == "a"))
    return {"loss": map_distance(maps[0], maps[1].detach())}


def bss(x: Values, hyper: Mapping[str, Any], variant: str = "code") -> Values:
    student, teacher = net(x, "a"), net(x, "b")
    first_BK = teacher(x["img"])[1].detach()
    base_B = first_BK.argmax(1)
    if variant == "code":  # the last image stands for one that the teacher gets wrong
        base_B[-1] = first_BK[-1].argmin()
    attack_B = first_BK.topk(2, dim=1).indices[:, 1]
    x_BCHW = attack(lambda images: teacher(images)[1], x["img"], base_B, attack_B, variant)
    s_BK, t_BK = student(x_BCHW)[1], teacher(x_BCHW)[1].detach()
    fit_B = torch.ones(len(base_B), dtype=torch.bool)
    return {
        "loss": boundary_support(s_BK, t_BK, fit_B, hyper["T"], variant), "loss.adv_img": x_BCHW, "loss.labels": base_B,
        "loss.attack_class": attack_B, "loss.s_out": s_BK, "loss.t_out": t_BK,
    }  # fmt: skip


def bss_authors(x: Values, hyper: Mapping[str, Any]) -> Values:
    return bss(x, hyper, "paper")


def cwd(x: Values, hyper: Mapping[str, Any]) -> Values:
    losses = [channel_divergence(x["s_feat"], x["t_feat"], tau) for tau in (hyper["tau"], 1.0)]
    return {"loss": losses[0], "loss.tau1": losses[1]}


def mgd(x: Values, hyper: Mapping[str, Any]) -> Values:
    def part(module: nn.Module, name: str, inputs: Tensor) -> Tensor:
        prefix = f"w.{name}."
        weights = {key.removeprefix(prefix): value for key, value in x.items() if key.startswith(prefix)}
        return functional_call(module, weights, inputs)

    s_BCHW = part(connector(tuple(x["s_feat"].shape), tuple(x["t_feat"].shape), tail=""), "align", x["s_feat"])
    made_BCHW = part(generator(x["t_feat"].shape[1]), "generation", s_BCHW * x["mask"])
    return {"loss": hyper["alpha_mgd"] * generation_distance(made_BCHW, x["t_feat"])}


def pkd(x: Values, hyper: Mapping[str, Any]) -> Values:
    return {"loss": correlation_distance(x["s_feat"], x["t_feat"])}


def fgd(x: Values, hyper: Mapping[str, Any]) -> Values:
    """Boxes as pixels of a square image; the weights of the two blocks of context by their names in the released code."""

    def context(side: str, inputs: Tensor) -> Tensor:
        theirs = {
            "weigh": f"w.conv_mask_{side}",
            **{f"transform.{i}": f"w.channel_add_conv_{side}.{i}" for i in (0, 1, 3)},
        }
        weights = {
            f"{ours}.{kind}": x[f"{name}.{kind}"] for ours, name in theirs.items() for kind in ("weight", "bias")
        }
        return functional_call(Context(inputs.shape[1]), weights, inputs)

    align = connector(tuple(x["s_feat"].shape), tuple(x["t_feat"].shape), tail="")
    s = functional_call(align, {kind: x[f"w.align.{kind}"] for kind in ("weight", "bias")}, x["s_feat"])
    t, temperature, boxes = x["t_feat"], hyper["temp"], x["gt_bboxes"]
    height, width = map(int, hyper["img_shape"].split("x"))
    corners = boxes.flatten(0, 1) / torch.tensor([width, height, width, height])
    images = torch.arange(len(boxes)).repeat_interleave(boxes.shape[1])
    foreground, background = (
        focal_distance(s, t, mask, temperature) for mask in masks(corners, images, (len(s), *s.shape[2:]))
    )
    terms = {
        "fg": foreground, "bg": background, "mask": attention_distance(s, t, temperature),
        "rela": relation_distance(context("s", s), context("t", t)),
    }  # fmt: skip
    loss = sum(hyper[key] * value for key, value in zip(("alpha", "beta", "gamma", "lam"), terms.values(), strict=True))
    return {"loss": loss, **{f"loss.{name}": value for name, value in terms.items()}}


def mimic(x: Values, hyper: Mapping[str, Any]) -> Values:
    pair = x["s_feat"], x["t_feat"]
    loss = feature_distance(*pair, normalize=True)
    total = loss * len(pair[0])
    raw = feature_distance(*pair, normalize=False)
    return {"loss": loss, "loss.elem": total / pair[0].numel(), "loss.dist": total.sqrt(), "loss.raw": raw}


def kdsvd(x: Values, hyper: Mapping[str, Any], layout: Callable[[Tensor], Tensor] = lambda feat: feat) -> Values:
    """The teacher's vectors by LAPACK's decomposition, whose arbitrary signs these files carry."""
    count, teacher = hyper["k"], []
    for t_BCHW in (layout(tap) for tap in stages_of(x, "t")):
        _, values_BC, vectors_BCC = torch.svd(t_BCHW.flatten(2).transpose(1, 2))
        teacher.append((F.normalize(values_BC[:, :count], dim=1), F.normalize(vectors_BCC[:, :, :count], dim=1)))
    student = [principal(layout(tap), count + EXTRA)[1] for tap in stages_of(x, "s")]
    losses = singular_flow(student, teacher)
    return {"loss": sum(losses), **{f"loss.{i}": loss for i, loss in enumerate(losses)}}


def kdsvd_width(x: Values, hyper: Mapping[str, Any]) -> Values:
    """mdistiller: the directions are those of the image's width."""
    return kdsvd(x, hyper, lambda feat: feat.flatten(1, 2).transpose(1, 2)[..., None])


def review_context(x: Values, hyper: Mapping[str, Any]) -> Values:
    pairs = zip(stages_of(x, "s"), stages_of(x, "t"), strict=True)
    return {"loss": sum(hierarchical_context(s, t) for s, t in pairs)}


def review_fusion(x: Values, hyper: Mapping[str, Any]) -> Values:
    student, teacher = (
        [*maps, maps[-1].mean((2, 3), keepdim=True)] for maps in (stages_of(x, "s"), stages_of(x, "t", "wide"))
    )
    review = Review([tap.shape[1] for tap in student], [tap.shape[1] for tap in teacher]).train()
    weights = {}
    for name in (name for name in x if name.startswith("w.")):
        _, depth, part, rest = name.split(".", 3)  # their level 0 is the deepest
        ours = {"conv1": "reduce", "conv2": "expand", "att_conv": "attend"}[part]
        weights[f"levels.{len(student) - 1 - int(depth)}.{ours}.{rest}"] = x[name]
    fused = functional_call(review, weights, (student, [tap.shape[2:] for tap in teacher]))
    loss = sum(hierarchical_context(s, t) for s, t in zip(fused, teacher, strict=True))
    return {"loss": loss, **{f"loss.fused_{i}": tap for i, tap in enumerate(fused)}}


CASES: dict[str, dict[str, Case]] = {  # method -> file -> what computes it
    "kd": {
        "KD__KDZoo": kd, "KD__RepDistiller": kd, "KD__mdistiller": kd, "KD__mmrazor": kd, "KD__clsKD": kd_entropy,
        "KD__torchdistill": kd_with_task, "KD-dense__mmrazor": kd_dense,
        "LogitStd-KD__sunshangquan": standardized_kd, "LogitStd-KD__torchdistill": standardized_kd,
    },
    "logits": {"Logits__KDZoo": logits},
    "dkd": {
        "DKD__mdistiller": dkd, "DKD__clsKD": dkd, "DKD__mmrazor": dkd, "LogitStd-DKD__sunshangquan": standardized_dkd,
    },
    "dist": {
        "DIST__hunto": dist, "DIST__TTMrepo": dist, "DIST__mmrazor": dist, "DIST__torchdistill": dist,
        "DIST-dense__hunto": dist_dense,
    },
    "dml": {"DML__KDZoo": dml},
    "at": {
        "AT__KDZoo": at, "AT__RepDistiller": at, "AT__authors": at, "AT__mmrazor": at, "AT-code__torchdistill": at,
        "AT-paper__torchdistill": at, "AT-pool__mdistiller": at, "AT-multi__RepDistiller": at_stages,
    },
    "fitnet": {
        "FitNet__KDZoo": fitnet, "FitNet__RepDistiller": fitnet_regressor, "FitNet-down__mdistiller": fitnet_regressor,
    },
    "rkd": {
        "RKD__KDZoo": rkd, "RKD__RepDistiller": rkd, "RKD__authors": rkd, "RKD__mdistiller": rkd, "RKD__mmrazor": rkd,
        "RKD__torchdistill": rkd,
    },
    "crd": {"CRD__RepDistiller": crd, "CRD__mdistiller": crd, "CRD__KDZoo": crd_kdzoo},
    "sobolev": {"Sobolev__KDZoo": sobolev_gradients},
    "nst": {"NST__KDZoo": nst, "NST__RepDistiller": nst, "NST__mdistiller": nst, "NST-pool__RepDistiller": nst},
    "sp": {"SP__KDZoo": sp, "SP__RepDistiller": sp, "SP__mdistiller": sp, "SP__torchdistill": sp_l1_rows},
    "pkt": {"PKT__KDZoo": pkt, "PKT__RepDistiller": pkt, "PKT__mdistiller": pkt, "PKT__torchdistill": pkt},
    "cc": {
        "CC__KDZoo": cc, "CC__RepDistiller": cc_neighbours, "CC-gaussian__torchdistill": cc_unsquared,
        "CC-bilinear__torchdistill": cc_unsquared,
    },
    "irg": {"IRG__KDZoo": irg},
    "fsp": {"FSP__KDZoo": fsp, "FSP__RepDistiller": fsp_sum, "FSP__torchdistill": fsp_columns},
    "ft": {
        "FT__KDZoo": ft, "FT__mmrazor": ft, "FT__torchdistill": ft, "FT__RepDistiller": ft_collapsed,
        "FT-full__KDZoo": ft_networks,
    },
    "ab": {
        "AB__KDZoo": ab, "AB__authors": ab_sum, "AB__torchdistill": ab_per_image, "AB__mmrazor": ab_thousandth,
        "AB__RepDistiller": ab_stages,
    },
    "vid": {"VID__KDZoo": vid_kdzoo, "VID__RepDistiller": vid, "VID__mdistiller": vid},
    "ofd": {
        "OFD__KDZoo": ofd_kdzoo, "OFD__authors": ofd_authors, "OFD__mdistiller": ofd_per_image,
        "OFD__mmrazor": ofd_without_margin,
    },
    "afd": {"AFD__KDZoo": afd},
    "lwm": {"LwM__KDZoo": lwm},
    "bss": {"BSS__KDZoo": bss, "BSS__authors": bss_authors},
    "cwd": {"CWD__mmrazor": cwd},
    "mgd": {"MGD__mmrazor": mgd, "MGD__clsKD": mgd},
    "pkd": {"PKD__mmrazor": pkd},
    "fgd": {"FGD__yzd-v": fgd},
    "mimic": {"L2__mmrazor": mimic},
    "kdsvd": {"KDSVD__RepDistiller": kdsvd, "KDSVD__mdistiller": kdsvd_width},
    "reviewkd": {
        "ReviewKD-HCL__authors": review_context, "ReviewKD-HCL__mdistiller": review_context,
        "ReviewKD-HCL__torchdistill": review_context, "ReviewKD-full__mdistiller": review_fusion,
    },
}  # fmt: skip
BY_FILE = {file: case for cases in CASES.values() for file, case in cases.items()}


def pytest_generate_tests(metafunc) -> None:
    files = sorted(metafunc.config.getoption("--reference-dir").glob("*.npz"))
    if not files:
        raise pytest.UsageError(f"no .npz file in --reference-dir {metafunc.config.getoption('--reference-dir')}")
    metafunc.parametrize("file", files, ids=[file.stem for file in files])


def facts(file: Path) -> dict[str, Any]:
    """The manifest's entry of a file: that of its own folder, or where it has none the one that ships with the tests."""
    for folder in (file.parent, Path(__file__).parent / "reference"):
        if (folder / "manifest.json").exists():
            found = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"].get(file.stem)
            if found:
                return found
    return {"method": file.stem.partition("__")[0], "hyperparameters": {}}


def close(name: str, ours: Tensor, theirs: Tensor, tolerance: float, floor: float = 0.0) -> None:
    """Differences are measured against the tensor's largest element, or `floor` where that is larger."""
    assert ours.shape == theirs.shape, f"{name}: shape {tuple(ours.shape)}, reference {tuple(theirs.shape)}"
    worst = (ours - theirs).abs().max().item()
    allowed = tolerance * max(theirs.abs().max().item(), floor)
    assert worst <= allowed, f"{name}: differs by {worst:.3g}, {allowed:.3g} is allowed"


def test_reference(file: Path) -> None:
    """Loss, extra terms and gradients agree with the published implementation."""
    about = facts(file)
    if file.stem not in BY_FILE:
        pytest.skip(f"not yet covered: {about['method']}")
    with np.load(file) as arrays:
        stored = {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays.files}
    results = {name: value for name, value in stored.items() if name.partition(".")[0] in ("loss", "grad", "gradw")}
    inputs = {name: value for name, value in stored.items() if name not in results}
    wanted = {name: name.replace("gradw.", "w.").replace("grad.", "") for name in results if name.startswith("grad")}
    for name in wanted.values():
        inputs[name].requires_grad_(True)

    ours = BY_FILE[file.stem](inputs, about["hyperparameters"])
    gradients = torch.autograd.grad(ours["loss"], [inputs[name] for name in wanted.values()])

    for name in results.keys() - wanted.keys():
        close(name, ours[name].detach(), results[name], about.get("suggested_rtol", 1e-5))
    # some gradients are zero but for rounding (a bias before batch norm): the largest of the file sets the scale of that
    floor = 1e-3 * max((results[name].abs().max().item() for name in wanted), default=0.0)
    for name, gradient in zip(wanted, gradients, strict=True):
        close(name, gradient, results[name], about.get("suggested_grad_rtol", 1e-4), floor)
