"""Prismatic VLMs from their published checkpoints, built from transformers' vision models and Llama."""

from __future__ import annotations

from .loading import is_prismatic, load_prismatic

__all__ = ["is_prismatic", "load_prismatic"]
