"""The networks that are trained: timm's classifiers, fitted to the data, and small ones of our own."""
