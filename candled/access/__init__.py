"""Access tokens: their claims, the file that has their hashes, and their verification. Nothing here knows HTTP."""
