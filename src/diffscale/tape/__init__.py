"""Tapes: what verifiers say of samples, of the predictions on their way and of drafts, recorded once.

Policies that divide a budget are then tried without the model, thousands of times: see `record`, `replay`, `curves`.
"""
