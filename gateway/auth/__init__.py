"""Who someone is: keys, tokens, what was revoked, and what the back end says somebody may."""
