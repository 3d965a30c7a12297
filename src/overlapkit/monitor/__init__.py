"""A monitor of communication overlap inside a training job: see docs/monitor.md.

Importing it loads no torch.
"""

from overlapkit.monitor.monitor import OverlapMonitor
from overlapkit.monitor.report import Finding, OverlapReport, Regression

__all__ = ["Finding", "OverlapMonitor", "OverlapReport", "Regression"]
