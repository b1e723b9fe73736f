"""Attention's back ends: each computes the same from the same description, on its own device.

`xla` builds the logits and runs anywhere; `cudnn` is NVIDIA's kernel; `blocked` (plain XLA) and
`pallas` (TPU) never hold more than a tile of logits, and share one rule of differentiation
(`fused`). Queries come already scaled by head_dim ** -0.5.
"""
