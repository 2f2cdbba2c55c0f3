"""`/openapi.json`, the description of what the gateway itself answers, and `/docs`, a page that shows it."""
