"""How the small model that ships is trained from nothing."""
