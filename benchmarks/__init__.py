"""What sitq costs, beside the raw store doing the least work with the same durability. Run by `scripts/bench`."""
