"""Tables for people: models side by side on the same messages."""
