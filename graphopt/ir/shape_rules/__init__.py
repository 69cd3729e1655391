"""Shape rules by family; ``catalogue`` imports all of them."""
