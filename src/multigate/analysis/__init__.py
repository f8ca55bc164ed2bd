"""What training alone does not say: comparisons, budgets, intervals, baselines."""
