"""The page at `/`: one HTML document without data, the state as JSON or as an event stream, and a playground
that sends one prompt through the gateway as many readers at once. Nothing runs while nobody has the page open."""
