"""`from kdrun.models import register`: what a model of your own needs (docs/models.md). kdrun's own lie in tasks/<task>/models/."""

from kdrun.config.registry import MODELS

register = MODELS.register

__all__ = ["register"]
