"""Ultravox from its published checkpoints, built from transformers' Whisper and language models."""

from __future__ import annotations

from .loading import load_remote, load_ultravox

__all__ = ["load_remote", "load_ultravox"]
