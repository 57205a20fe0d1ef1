"""The GPU kernels' cases."""
