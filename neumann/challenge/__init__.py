"""The challenge: one optimizer of the user's own against the baselines, whose runs come with the package."""
