"""The engine runs searches: it batches, prices, journals and ranks."""
