"""The tables and figures of papers, run again from recipes: what `diffscale reproduce` does."""
