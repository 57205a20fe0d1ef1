"""The host's cases, sized for two cores: the same operations as on the GPU, from the same kind of rows."""
