"""Commands of neumann: `main` reads the command's name, and each command has a module that reads its options."""
