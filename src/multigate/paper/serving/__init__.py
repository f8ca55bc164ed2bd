"""What serving costs (Ma et al. 2018, sections 6.4 and 7)."""
