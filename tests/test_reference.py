"""Every loss against the values of published implementations: tests/reference, or any folder given as --reference-dir.

CASES names the files that kdrun's methods answer for; a file without a case is skipped as not yet covered. Cases hold
formulas and hyper-parameter names only: shapes come from the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from kdrun.methods.adapters import connector
from kdrun.methods.at import attention_transfer
from kdrun.methods.crd import contrast, update
from kdrun.methods.dml import mutual
from kdrun.methods.fitnet import hint
from kdrun.methods.kd import soft_targets
from kdrun.methods.rkd import rkd_angle, rkd_distance
from kdrun.methods.sobolev import input_gradient, sobolev

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


CASES: dict[str, Case] = {
    "KD__KDZoo": kd,
    "KD__RepDistiller": kd,
    "KD__mdistiller": kd,
    "KD__mmrazor": kd,
    "KD__clsKD": kd_entropy,
    "KD__torchdistill": kd_with_task,
    "KD-dense__mmrazor": kd_dense,
    "DML__KDZoo": dml,
    "AT__KDZoo": at,
    "AT__RepDistiller": at,
    "AT__authors": at,
    "AT__mmrazor": at,
    "AT-code__torchdistill": at,
    "AT-paper__torchdistill": at,
    "AT-pool__mdistiller": at,
    "AT-multi__RepDistiller": at_stages,
    "FitNet__KDZoo": fitnet,
    "FitNet__RepDistiller": fitnet_regressor,
    "FitNet-down__mdistiller": fitnet_regressor,
    "RKD__KDZoo": rkd,
    "RKD__RepDistiller": rkd,
    "RKD__authors": rkd,
    "RKD__mdistiller": rkd,
    "RKD__mmrazor": rkd,
    "RKD__torchdistill": rkd,
    "CRD__RepDistiller": crd,
    "CRD__mdistiller": crd,
    "CRD__KDZoo": crd_kdzoo,
    "Sobolev__KDZoo": sobolev_gradients,
}


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
    if file.stem not in CASES:
        pytest.skip(f"not yet covered: {about['method']}")
    with np.load(file) as arrays:
        stored = {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays.files}
    results = {name: value for name, value in stored.items() if name.partition(".")[0] in ("loss", "grad", "gradw")}
    inputs = {name: value for name, value in stored.items() if name not in results}
    wanted = {name: name.replace("gradw.", "w.").replace("grad.", "") for name in results if name.startswith("grad")}
    for name in wanted.values():
        inputs[name].requires_grad_(True)

    ours = CASES[file.stem](inputs, about["hyperparameters"])
    gradients = torch.autograd.grad(ours["loss"], [inputs[name] for name in wanted.values()])

    for name in results.keys() - wanted.keys():
        close(name, ours[name].detach(), results[name], about.get("suggested_rtol", 1e-5))
    # some gradients are zero but for rounding (a bias before batch norm): the largest of the file sets the scale of that
    floor = 1e-3 * max((results[name].abs().max().item() for name in wanted), default=0.0)
    for name, gradient in zip(wanted, gradients, strict=True):
        close(name, gradient, results[name], about.get("suggested_grad_rtol", 1e-4), floor)
