"""The few layers every structure is made of.

Shape legend: B rows, T tasks, E experts, D features in, H hidden features out, n parallel copies, N number columns,
C id columns, O tower outputs, Q quantile knots.
"""
