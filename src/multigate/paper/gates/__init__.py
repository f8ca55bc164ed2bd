"""Gates (Ma et al. 2018, Figure 6)."""
