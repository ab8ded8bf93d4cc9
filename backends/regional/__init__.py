"""Models that are Python around networks: pruned region by region, written as a file that puts them together."""
