"""The experiments of the MMoE paper (Ma et al. 2018), run again with what it left open said and measured."""
