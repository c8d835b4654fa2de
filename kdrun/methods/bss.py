"""Boundary supporting samples. Heo, Lee, Yun, Choi: Knowledge Distillation with Adversarial Samples Supporting Decision Boundary,
AAAI 2019, https://arxiv.org/abs/1805.05532."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kdrun.config.registry import METHODS
from kdrun.methods.base import Batch, Method, Pair, Terms
from kdrun.methods.bounded import exact, never_negative
from kdrun.methods.checks import check_choice, check_temperature, check_within
from kdrun.methods.taps import Output

STEPS, STEP_SIZE, EPSILON, LIMIT = (
    10,
    0.3,
    1e-4,
    2.5,
)  # of the attack, in both released codes; LIMIT in normalised pixels


def attack(
    model: Callable[[Tensor], Tensor], x_BCHW: Tensor, base_B: Tensor, target_B: Tensor, variant: str = "code"
) -> Tensor:
    """Images pushed towards the boundary between their base class and a target class, and just over it.

    Ten steps along the gradient of score(target) - score(base). The length of a step is proportional to the difference of the two
    scores. An image that is no longer classified as its base class stays as it is. Scores are probabilities ("code", KD-Zoo) or
    logits ("paper").
    """
    x_BCHW = x_BCHW.detach()
    for step in range(STEPS):
        x_BCHW.requires_grad_(True)
        logits_BK = model(x_BCHW)
        scores_BK = logits_BK if variant == "paper" else logits_BK.softmax(1)
        ahead_B = (scores_BK.gather(1, base_B[:, None]) - scores_BK.gather(1, target_B[:, None]))[:, 0]
        (gradient_BCHW,) = torch.autograd.grad(-ahead_B.sum(), x_BCHW)
        with torch.no_grad():
            inside_B = logits_BK.argmax(1) == base_B
            direction_BCHW = F.normalize(gradient_BCHW.flatten(1), dim=1).view_as(gradient_BCHW)
            length_B = STEP_SIZE * (ahead_B + EPSILON) * inside_B
            moved_BCHW = (x_BCHW + length_B[:, None, None, None] * direction_BCHW).clamp(-LIMIT, LIMIT)
            # if no image is inside before the first step, the sources stop without the clamp
            x_BCHW = torch.where(inside_B.any(), moved_BCHW, x_BCHW) if step == 0 else moved_BCHW
        x_BCHW = x_BCHW.detach()
    return x_BCHW


def base_samples(s_BK: Tensor, t_BK: Tensor, label_B: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Rows of the images to attack (size,), and whether each of them is suitable (size,): both networks classify it correctly.

    The first rows are those whose probabilities of the other classes differ most between the two networks.
    """
    s_BK, t_BK = s_BK.softmax(1), t_BK.softmax(1)
    squared_BK = (s_BK - t_BK).square()
    score_B = squared_BK.sum(1) - squared_BK.gather(1, label_B[:, None])[:, 0]
    fit_B = (s_BK.argmax(1) == label_B) & (t_BK.argmax(1) == label_B)
    rows = score_B.masked_fill(~fit_B, -1.0).topk(min(size, len(label_B))).indices
    return rows, fit_B[rows]


def target_classes(t_BK: Tensor, label_B: Tensor, generator: torch.Generator) -> Tensor:
    """A class other than the label for each image, drawn by the teacher's probabilities."""
    p_BK = t_BK.softmax(1).clamp(min=1e-12)  # if the teacher is certain, any other class
    p_BK = p_BK.scatter(1, label_B[:, None], 0.0)
    return torch.multinomial(p_BK, 1, generator=generator)[:, 0]


def boundary_support(s_BK: Tensor, t_BK: Tensor, fit_B: Tensor, temperature: float, variant: str = "code") -> Tensor:
    """Mean over the suitable images of KL ("code") or cross-entropy ("paper") of tempered predictions, without T^2.

    0 if no image is suitable.
    """
    given = s_BK.dtype
    s_BK, t_BK = exact(temperature, s_BK, t_BK)
    log_s_BK = F.log_softmax(s_BK / temperature, dim=1)
    log_t_BK = F.log_softmax(t_BK / temperature, dim=1)
    own_BK = log_t_BK if variant == "code" else torch.zeros_like(log_t_BK)
    loss_B = never_negative((log_t_BK.exp() * (own_BK - log_s_BK)).sum(1)).to(given)
    return (loss_B * fit_B).sum() / fit_B.sum().clamp(min=1)


@METHODS.register
class BSS(Method):
    """Boundary samples: match the teacher on images that were pushed to its decision boundaries.

    Loss: KL(softmax(t / T) || softmax(s / T)) on up to `attack_size` attacked images a batch, mean over them; variant "paper":
    cross-entropy, and an attack on logits instead of probabilities. Its weight falls to 0 at 0.8 of training. The student
    always sees `attack_size` attacked images in a batch. Images that are not suitable have weight 0. (The sources remove them from the
    batch; for this the CPU must wait for values from the device.)
    """

    family = "gradients"
    paper = "Heo et al., 2019"
    needs_classes = True
    needs_input_gradients = True

    def build(self, pair: Pair, *, temperature: float, attack_size: int, variant: str) -> None:
        known = {"code": "KD-Zoo's, weight 2", "paper": "logits and cross-entropy"}
        self.variant = check_choice("bss", "variant", variant, known)
        self.temperature = check_temperature("bss", temperature)
        self.size = int(check_within("bss.attack_size", attack_size, 1, why="images of a batch"))

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        label_B = batch["label"]
        rows, fit_B = base_samples(student.logits.detach(), teacher.logits, label_B, self.size)
        base_B, t_BK = label_B[rows], teacher.logits[rows]
        target_B = target_classes(t_BK, base_B, self.generator)

        with torch.enable_grad():
            x_BCHW = attack(lambda x: teacher.again(x).logits, batch["input"][rows], base_B, target_B, self.variant)
        with torch.no_grad():
            t_BK = teacher.again(x_BCHW).logits
        s_BK = student.again(x_BCHW).logits
        return {"boundary": boundary_support(s_BK, t_BK, fit_B, self.temperature, self.variant)}
