"""A recommender (Ma et al. 2018, section 6.4): Table 3."""
