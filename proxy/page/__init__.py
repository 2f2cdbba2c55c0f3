"""The page at `/`: what it is made of, what it shows, and the readers of its playground."""
