"""Data sets: what is captured."""

