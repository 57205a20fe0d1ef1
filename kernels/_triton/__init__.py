"""What the Triton kernels share: tile order, fixed configurations per architecture, and compiling ahead of time.

Only `kernels/**/triton.py` import this package, and the dispatch imports those on demand, so that neither
`import modegap` nor `import modegap.kernels` needs Triton.
"""
