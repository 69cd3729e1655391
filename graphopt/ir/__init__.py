"""The Program, its dimensions, shapes and operator facts."""
