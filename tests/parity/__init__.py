"""Parity with the official code: fixtures of inputs, weights and outputs, run through adapters."""
