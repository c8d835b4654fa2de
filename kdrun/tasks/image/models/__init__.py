"""Models of images: one file per architecture family, one registered function per variant.

A builder takes `classes` and keyword-only options and returns an nn.Module from images (B, 3, H, W) to logits (B, classes).
It declares its taps as a dict from alias to module path in the attribute `taps` (see kdrun/methods/taps.py). It needs
nothing else.
"""
