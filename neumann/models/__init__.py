"""The models that are trained: timm's, fitted to the data, and small networks of our own."""
