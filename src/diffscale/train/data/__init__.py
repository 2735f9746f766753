"""The data of trainings: sources, what is kept out of them, the cache of encodings, and the order of rows."""
