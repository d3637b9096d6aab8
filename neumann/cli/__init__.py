"""The commands of neumann: `main` reads which one, and each has a module here that reads its options."""
