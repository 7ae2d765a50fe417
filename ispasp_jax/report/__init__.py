"""What a run says: progress while it runs, a report for machines, tables for people.
Plots (report.plots) need the [plots] extra.
"""

from ispasp_jax.report.progress import audience, say, stage, tell, track
from ispasp_jax.report.tables import (
    budget_table,
    cost_table,
    device,
    groups,
    plan_summary,
    plan_table,
    stage_table,
    summary,
    table,
    versions,
)

__all__ = [
    "audience",
    "budget_table",
    "cost_table",
    "device",
    "groups",
    "plan_summary",
    "plan_table",
    "say",
    "stage",
    "stage_table",
    "summary",
    "table",
    "tell",
    "track",
    "versions",
]
