"""What Signalbox costs: the running product beside bare servers of the same model, in the same run.

`python -m benchmarks` measures and prints (docs/performance.md says how); `--quick` shows in a minute that it works.
"""
