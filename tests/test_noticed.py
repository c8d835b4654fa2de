"""Lines that were broken on purpose and that no test noticed; gradients where tensors hardly vary, and high temperatures."""

from __future__ import annotations

import ast
import json
import runpy
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file
from test_methods import ALL, CLASSES, build, net, settings, step
from test_report import make
from torch import nn
from torchvision.models import VisionTransformer

from kdrun.config.nodes import register_nodes
from kdrun.config.schema import conf_folder
from kdrun.errors import KdrunError, choices
from kdrun.methods import afd, bounded, irg, kdsvd
from kdrun.methods.afd import attentive_distance
from kdrun.methods.at import attention_transfer
from kdrun.methods.cc import correlation_congruence
from kdrun.methods.checks import check_above, check_share, check_temperature
from kdrun.methods.crd import update
from kdrun.methods.dist import relations
from kdrun.methods.dkd import decoupled
from kdrun.methods.ft import collapsed_distance, factor_distance
from kdrun.methods.irg import edges, transformation
from kdrun.methods.kd import soft_targets, standardize
from kdrun.methods.kdsvd import principal, singular_flow
from kdrun.methods.mimic import feature_distance
from kdrun.methods.nst import neuron_selectivity
from kdrun.methods.pkt import probabilistic_transfer
from kdrun.methods.rkd import rkd_angle, rkd_distance
from kdrun.methods.sp import similarity_preserving
from kdrun.report.against import Published, margin
from kdrun.report.pivot import tables
from kdrun.report.stats import mcnemar
from kdrun.runs import record as records
from kdrun.runs.checkpoint import weights_sha256
from kdrun.screen import Screen, again, clock
from kdrun.sweep import job
from kdrun.sweep.folder import _state
from kdrun.tasks.image.data.base import Dataset, Split
from kdrun.tasks.image.data.loader import Loader

# A run whose student stays as it is ------------------------------------------------------------------------------------

STILL = """
from torch import nn

def still(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, classes))
"""


@pytest.fixture(scope="module")
def still(tmp_path_factory) -> SimpleNamespace:
    """A run of three epochs whose scores are equal: a linear student with a learning rate of nearly nothing, and a trained teacher."""
    root = tmp_path_factory.mktemp("still")
    (root / "still_net.py").write_text(STILL)
    overrides = [
        "dataset=digits", "dataset.holdout=200", "teacher=resnet8", "teacher.recipe.epochs=1", "student=import",
        "student.path=still_net:still", "method=kd", "recipe=quick", "recipe.epochs=3", "recipe.lr=1e-12", "engine.threads=1",
        f"outputs={root / 'outputs'}",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root)
        register_nodes()
        with initialize_config_dir(str(conf_folder().resolve()), version_base="1.3"):
            plan = job.prepare(compose("config", overrides))
        from kdrun.train import train

        record = train(plan, Screen(brief=True))
    lines = [json.loads(line) for line in (plan.folder / "curves.jsonl").read_text().splitlines()]
    return SimpleNamespace(plan=plan, record=record, lines=lines)


@pytest.mark.parametrize(("kept", "split"), [("best", "test"), ("holdout", "holdout")])
def test_of_equal_epochs_the_earliest_is_kept(still, kept, split):
    assert len({line[split]["score"] for line in still.lines}) == 1
    assert (still.record[kept]["epoch"], still.record["last"]["epoch"]) == (1, 3)


def test_agreement_is_with_the_teacher_and_not_with_the_labels(still):
    mine, its = (
        load_file(Path(folder) / "test_logits.safetensors") for folder in (still.plan.folder, still.plan.teacher.folder)
    )
    agreement = (mine["logits"].argmax(1) == its["logits"].argmax(1)).double().mean().item()
    accuracy = (mine["logits"].argmax(1) == mine["labels"]).double().mean().item()
    assert still.record["agreement"] == pytest.approx(agreement)
    assert still.record["last"]["score"] == pytest.approx(accuracy)
    assert agreement != pytest.approx(accuracy)  # else this test sees nothing
    assert [line["test"]["agreement"] for line in still.lines] == pytest.approx([agreement] * 3)


@pytest.mark.parametrize("searching", [True, False])
def test_a_search_is_shown_the_holdout_alone(still, searching):
    """Who sees what trials do on the test set chooses by it; the value that goes to the sweeper is the protocol's."""
    screen = Screen(brief=True)
    value = job._student(still.plan, screen, "kd still seed 0", searching)
    (line,) = screen.lines
    held, test = (f"{100 * still.record[key]['score']:.2f}" for key in ("holdout", "last"))
    assert held != test
    assert value == still.record["score"]
    assert ((f"holdout {held}" in line), (f"test {test}" in line), (test in line)) == (searching, *[not searching] * 2)


# Single lines ----------------------------------------------------------------------------------------------------------


def loader(seed: int = 0) -> Loader:
    count = 40
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(torch.arange(count) % 4, torch.arange(count), images)
    dataset = Dataset("tiny", list("abcd"), 8, [0.5] * 3, [0.5] * 3, "", False, split, None, split)
    return Loader(split, dataset, batch_size=8, device="cpu", seed=seed)


def test_every_epoch_has_an_order_of_its_own():
    """Of (seed, epoch): another in each epoch and for each seed, the same when it is asked for again, and each row once."""
    orders = {
        (seed, epoch): tuple(torch.cat([batch["index"] for batch in loader(seed).epoch(epoch)]).tolist())
        for seed in (0, 1)
        for epoch in (0, 1, 2)
    }
    assert len(set(orders.values())) == 6
    assert all(sorted(order) == list(range(40)) for order in orders.values())
    again = loader(1)
    assert torch.cat([batch["index"] for batch in again.epoch(2)]).tolist() == list(orders[1, 2])


def test_crd_momentum_is_the_share_of_the_old_row():
    bank_ND, new_BD = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0]])
    update(bank_ND, torch.tensor([0]), new_BD, momentum=0.9)
    torch.testing.assert_close(bank_ND, torch.tensor([[0.9 / 0.82**0.5, 0.1 / 0.82**0.5], [0.0, 1.0]]))


def test_crd_has_the_momentum_of_its_settings():
    """With a momentum of nearly one no row of either bank turns; with one of nearly nothing a row of the batch does."""
    for momentum, least, most in ((0.999999, -1.0, 1e-4), (0.000001, 0.1, 2.0)):
        distillation, weights = build("crd", momentum=momentum)
        method = distillation.methods["crd"]
        before = [method.bank_student.clone(), method.bank_teacher.clone()]
        step(distillation, weights)
        for old, new in zip(before, (method.bank_student, method.bank_teacher), strict=True):
            turned = (1 - F.cosine_similarity(old, new)).max().item()
            assert least <= turned <= most, momentum


def test_the_margin_shrinks_with_the_root_of_the_seeds():
    """By hand: t quantile 2.776445 of 4 degrees, sd 1 %, 5 seeds; theirs 1.96 binomial errors of 75 % on 10,000 images."""
    theirs = Published("cifar100", "a", "b", "kd", 0.75, "best", None, "a paper")
    other = 1.96 * (0.75 * 0.25 / 10_000) ** 0.5
    assert margin(theirs, 0.7, 0.01, 5, 10_000) == pytest.approx((other**2 + (2.776445 * 0.01 / 5**0.5) ** 2) ** 0.5)
    five = Published("cifar100", "a", "b", "kd", 0.75, "best", 5, "a paper")
    ours = 1.96 * (0.7 * 0.3 / 10_000) ** 0.5
    assert margin(five, 0.7, None, 1, 10_000) == pytest.approx((other**2 / 5 + ours**2) ** 0.5)


def test_the_weights_hash_sees_names_types_shapes_and_bytes():
    x = torch.arange(6.0)
    states = [{"a": x}, {"b": x}, {"a": x.view(2, 3)}, {"a": x.view(torch.int32)}, {"a": x.flip(0)}]
    assert len({weights_sha256(state) for state in states}) == len(states)
    assert weights_sha256({"a": x, "b": x + 1}) == weights_sha256({"b": x + 1, "a": x.clone()})


def test_choices_know_a_name_in_other_letters():
    assert choices("KD", ["at", "kd"]) == "Did you mean kd? Choices: at, kd"
    assert choices("kd", ["AT", "KD"]) == "Did you mean KD? Choices: AT, KD"
    assert choices("zzzzzz", ["at", "kd"]) == "Choices: at, kd"


@pytest.mark.parametrize("schema", [0, 3, "1"])
def test_a_record_of_another_schema_is_refused(schema, tmp_path):
    (tmp_path / "record.json").write_text(json.dumps({"schema": schema}))
    with pytest.raises(KdrunError, match=f"has schema {schema!r}; this kdrun reads schemas 1 and 2"):
        records.read(tmp_path)


def test_a_write_that_fails_half_way_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a"
    records.atomically(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        records.atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [*tmp_path.iterdir()] == [path]


def test_none_combines_with_nothing():
    register_nodes()
    with initialize_config_dir(str(conf_folder().resolve()), version_base="1.3"):
        composed = compose("config", ["dataset=digits", "student=resnet8", "teacher=resnet8", "method=[kd,none]"])
        with pytest.raises(KdrunError, match="none is the student alone and combines with nothing"):
            job.prepare(composed)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (65, "1:05"), (3599.4, "59:59"), (7384, "2:03:04")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("argument", "without"),
    [("rerun=true", True), ("+rerun=yes", True), ("rerun=false", False), ("rerun=0", False), ("seed=1", False)],
)
def test_how_to_go_on_again(argument, without):
    assert again(["method=kd", argument]) == "the same command" + " without rerun=true" * without


# What breaks lines on purpose ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mutate():
    return runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "mutate.py"))


def test_every_line_to_break_stands_once_and_its_tests_are_there(mutate):
    root = Path(__file__).parents[1]
    assert len(mutate["MUTATIONS"]) >= 36
    for name, mutation in mutate["MUTATIONS"].items():
        text = (root / "kdrun" / mutation.file).read_text()
        ast.parse(mutate["broken"](name, text))
        files = [part for part in shlex.split(mutation.tests) if part.endswith(".py")]
        assert files, name
        assert all((root / file).is_file() for file in files), name


def test_a_line_that_is_not_there_names_its_entry(mutate):
    with pytest.raises(ValueError, match=r"best: .* stands 0 times in kdrun/tasks/metric.py, not once"):
        mutate["broken"]("best", "")


# Tensors that hardly vary ----------------------------------------------------------------------------------------------

B, K, C, SIDE = 6, 5, 4, 3
LABEL = torch.arange(B) % K


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LOGITS = {
    "kd standardize": lambda s, t: soft_targets(standardize(s), standardize(t), 4.0),
    "dist": lambda s, t: sum(relations(s, t, 1.0)),
    "dist standardize": lambda s, t: sum(relations(standardize(s), standardize(t), 4.0)),
    "dkd standardize": lambda s, t: sum(decoupled(standardize(s), standardize(t), LABEL, 4.0)),
}


def of_maps(function):
    return lambda s, t: function(s.reshape(B, C, SIDE, SIDE), t.reshape(B, C, SIDE, SIDE))


def ways(s, t):
    """IRG's transformations between the two halves of the channels."""
    return F.mse_loss(transformation(s[:, :2], s[:, 2:]), transformation(t[:, :2], t[:, 2:]))


def flow(s, t):
    s_layers = [principal(x, 4)[1] for x in (s, s.flip(1))]
    return sum(singular_flow(s_layers, [principal(x, 1) for x in (t, t.flip(1))]))


MAPS = {
    "at": of_maps(attention_transfer),
    "at power 1": of_maps(lambda s, t: attention_transfer(s, t, 1.0)),
    "sp": similarity_preserving,
    "rkd distance": rkd_distance,
    "rkd angle": rkd_angle,
    "cc": correlation_congruence,
    "nst": of_maps(neuron_selectivity),
    "pkt": probabilistic_transfer,
    "irg edges": lambda s, t: F.mse_loss(edges(s), edges(t)),
    "irg transformations": of_maps(ways),
    "mimic": feature_distance,
    "ft": of_maps(factor_distance),
    "ft repdistiller": of_maps(collapsed_distance),
    "afd": of_maps(lambda s, t: attentive_distance(s, t, torch.full((B, C, 1, 1), 1 / C))),
    "kdsvd": of_maps(flow),
}
LOSSES = {**LOGITS, **MAPS}


def student(name: str, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The student's and the teacher's logits (B, K), or maps as rows (B, C * SIDE * SIDE)."""
    width = K if name in LOGITS else C * SIDE * SIDE
    t, s = draw(B, width, seed=1), draw(B, width, seed=2)
    noise = 1e-6 * draw(B, width, seed=3)
    made = {
        "ordinary": s, "zeros": torch.zeros_like(s), "nearly zeros": noise, "constant": torch.full_like(s, 0.7),
        "nearly constant": 0.7 + noise, "one image": s[:1].expand(B, width).clone(), "nearly one image": s[:1] + noise,
        "the teacher": t.clone(), "nearly the teacher": t + noise, "one dead image": s * (torch.arange(B)[:, None] > 0),
    }  # fmt: skip
    return made[kind], t


KINDS = (
    "zeros", "nearly zeros", "constant", "nearly constant", "one image", "nearly one image", "the teacher",
    "nearly the teacher", "one dead image",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_bounded_where_the_student_hardly_varies(name, kind):
    s, t = student(name, kind)
    s.requires_grad_()
    loss = LOSSES[name](s, t)
    (gradient,) = torch.autograd.grad(loss, s)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 1e4


@pytest.mark.parametrize("name", LOSSES)
def test_ordinary_gradients_are_those_of_the_plain_formula(name, monkeypatch):
    """Nothing fades where lengths and deviations are ordinary: values and gradients are the published ones, bit for bit."""
    s, t = student(name, "ordinary")
    found = []
    for plain in (False, True):
        if plain:
            for module in (bounded, *(m for m in (afd, irg, kdsvd) if hasattr(m, "faded"))):
                monkeypatch.setattr(module, "faded", lambda x, *_: x)
        s = s.detach().requires_grad_()
        loss = LOSSES[name](s, t)
        found.append((loss.detach(), *torch.autograd.grad(loss, s)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert found[0][1].abs().max() > 0


def test_unit_is_normalize_for_ordinary_lengths_and_fades_below():
    x, direction = draw(4, 7, seed=0), draw(4, 7, seed=1)
    slopes = []
    for function, scale in ((bounded.unit, 1.0), (F.normalize, 1.0), (bounded.unit, 1e-6), (F.normalize, 1e-6)):
        mine = (scale * x).requires_grad_()
        slopes.append(torch.autograd.grad((function(mine) * direction).sum(), mine)[0])
        torch.testing.assert_close(function(mine), F.normalize(x))
    torch.testing.assert_close(slopes[0], slopes[1])
    shares = 1e-6 * x.norm(dim=1, keepdim=True) / bounded.LEAST
    torch.testing.assert_close(slopes[2], slopes[3] * shares.square())


# High temperatures -----------------------------------------------------------------------------------------------------

DIVERGENCES = {
    "kd": lambda s, t, temperature: [soft_targets(s, t, temperature)],
    "dkd": lambda s, t, temperature: decoupled(s, t, LABEL, temperature),
    "dist": relations,
}


def plainly(name: str, s: torch.Tensor, t: torch.Tensor, temperature: float) -> list[torch.Tensor]:
    """The formulas as they stand in the papers, of probabilities in float64."""
    p, q = ((x.double() / temperature).softmax(1) for x in (t, s))

    def kl(p, q):
        return temperature**2 * (p * (p / q).log()).sum(1).mean()

    if name == "kd":
        return [kl(p, q)]
    if name == "dkd":
        rest = F.one_hot(LABEL, K) == 0
        binary = [torch.stack([x[~rest], x[rest].view(B, K - 1).sum(1)], dim=1) for x in (p, q)]
        others = [x[rest].view(B, K - 1) / x[rest].view(B, K - 1).sum(1, keepdim=True) for x in (p, q)]
        return [kl(*binary), kl(*others)]
    centred = [[x - x.mean(dim, keepdim=True) for x in (p, q)] for dim in (1, 0)]
    correlations = [
        (a * b).sum(dim) / (a.norm(dim=dim) * b.norm(dim=dim) + 1e-8)
        for dim, (a, b) in zip((1, 0), centred, strict=True)
    ]
    return [temperature**2 * (1 - x.mean()) for x in correlations]


@pytest.mark.parametrize("temperature", [1e2, 1e4, 1e5])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences_are_exact_at_high_temperatures(name, temperature):
    s, t = 5 * draw(B, K, seed=1), 5 * draw(B, K, seed=2)
    found = DIVERGENCES[name](s, t, temperature)
    for mine, exact in zip(found, plainly(name, s, t, temperature), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), exact, rtol=1e-4, atol=0)
    if name == "kd":  # the limit: half the squared distance of centred logits over K
        centred = (s - s.mean(1, keepdim=True)) - (t - t.mean(1, keepdim=True))
        limit = centred.square().sum() / (2 * K * B)
        torch.testing.assert_close(found[0], limit, rtol=20 / temperature, atol=0)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 1e2, 1e4, 1e5, 1e6])
@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("distance", [0.0, 1e-5, 1e-3, 1.0])
def test_divergences_are_never_negative(name, temperature, distance):
    """Nor where the student is nearly its teacher, and T^2 enlarges rounding. In float32 (low T) rounding is all that is left."""
    for seed in range(5):
        t = 5 * draw(B, K, seed=seed)
        s = t + distance * draw(B, K, seed=seed + 100)
        least = -1e-6 * temperature**2 if temperature <= bounded.EXACT_UP_TO else 0
        assert all(loss >= least for loss in DIVERGENCES[name](s, t, temperature))


# Numbers that are none -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_checks_refuse_what_is_no_number(value):
    for check in (check_temperature, check_above, check_share):
        with pytest.raises(KdrunError, match=f"is {value}; it must"):
            check("kd", value)


NUMBERS = [
    (name, key)
    for name in ALL
    for values in settings(name).values()
    for key, value in values.items()
    if isinstance(value, float)
]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("name", "key"), NUMBERS)
def test_methods_refuse_what_is_no_number(name, key, value):
    with pytest.raises(KdrunError, match=rf"method\.\w+.*{key}.*(nan|inf)"):
        build(name, **{key: value})


# Second derivatives ----------------------------------------------------------------------------------------------------


class Attends(nn.Module):
    """Attention between the rows of an image."""

    def __init__(self):
        super().__init__()
        self.embed, self.attention = nn.Linear(24, 16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x):
        rows = self.embed(x.permute(0, 2, 1, 3).flatten(2))
        return self.fc(self.attention(rows, rows, rows, need_weights=False)[0].mean(1))


def vit() -> nn.Module:
    return VisionTransformer(8, 2, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=CLASSES)


@pytest.mark.parametrize("make", [Attends, vit])
@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_sobolev_through_attention(make, side):
    torch.manual_seed(0)
    mine = make() if side != "teacher" else net()
    if isinstance(mine, VisionTransformer):  # torchvision begins with a head of zeros, whose gradients are zeros, too
        nn.init.normal_(mine.heads.head.weight)
    distillation, weights = build("sobolev", student=mine, teacher=make() if side != "student" else None)
    terms = step(distillation, {**weights, "task": 0.0})
    assert all(term.isfinite() for term in terms.values())
    gradients = [p.grad for p in mine.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)


def test_mcnemar_by_hand():
    assert mcnemar(0, 5) == mcnemar(5, 0) == pytest.approx(2 / 2**5)
    assert mcnemar(1, 4) == pytest.approx(2 * (1 + 5) / 2**5)
    assert mcnemar(3, 3) == mcnemar(0, 0) == 1


def cells_of(runs):
    (table,) = tables(runs)
    return [cell for line in table.cells.values() for cell in line.values()]


def test_times_of_different_devices_have_no_mean():
    runs = [make("kd", seed, 0.9) for seed in (0, 1)]
    assert [cell.seconds is None for cell in cells_of(runs)] == [False]
    runs[1]["engine"]["device"] = "cuda"
    assert [cell.seconds is None for cell in cells_of(runs)] == [True]


def test_a_teacher_that_is_another_runs_student_is_a_baseline_too():
    runs = [make("kd", 0, 0.9), make("none", 0, 0.95, id="77aa")]
    assert [cell.baseline for cell in cells_of(runs)] == [True, False]


def test_a_folder_that_holds_another_run_by_now_is_not_done(tmp_path):
    record = make("kd", 0, 0.9)
    records.write(tmp_path, record)
    line = {"folder": str(tmp_path), "error": None}
    states = [_state({**line, "id": known}, {})["status"] for known in (record["id"], "another")]
    assert states == ["done", "failed"]
