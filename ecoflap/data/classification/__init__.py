"""Pictures with their classes."""
