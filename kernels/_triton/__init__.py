"""What the Triton kernels share: units of work, fixed configurations, compiling ahead of time.

Only `kernels/**/triton.py` import this package, and the dispatch imports those on demand, so that neither
`import modegap` nor `import modegap.kernels` needs Triton.
"""
