"""Synthetic tasks (Ma et al. 2018, sections 3 and 5): Figures 2 to 5, and beyond them."""
