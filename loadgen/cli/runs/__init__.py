"""What commands do with finished runs: reading, CSV, repeats, the merge of several machines' shares."""
