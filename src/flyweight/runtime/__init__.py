"""The service half: answer messages from a .fly file, without torch."""
