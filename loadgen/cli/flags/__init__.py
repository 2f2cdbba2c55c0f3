"""The flags that commands share, how a flag's text becomes a value, and how flags become settings."""
