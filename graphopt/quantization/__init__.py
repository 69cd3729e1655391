"""Integer schemes: what was observed, which ranges it gives, what is quantized and where."""
