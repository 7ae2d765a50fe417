"""The paper's experiments and its rival, and what it reports."""
