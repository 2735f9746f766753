"""Many prompts, several searches, verifiers and budgets: what `diffscale bench` does."""
