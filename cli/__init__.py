"""The touchstone command."""
