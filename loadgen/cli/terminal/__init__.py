"""What a person sees while a run is going on, and output streams whose reader may be slow or gone."""
