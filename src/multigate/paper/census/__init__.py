"""Census-Income (Ma et al. 2018, section 6.3): Tables 1 and 2."""
