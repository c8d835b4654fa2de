"""Distillation methods: one file per method, the maths of each loss a free function beside its class.

`from kdrun.methods import Method, register` is all that a method of your own needs (docs/adding-a-method.md).
"""

from kdrun.config.registry import METHODS
from kdrun.methods.base import Method, Pair, Stage
from kdrun.methods.distillation import Distillation
from kdrun.methods.taps import Output

register = METHODS.register

__all__ = ["Distillation", "Method", "Output", "Pair", "Stage", "register"]
