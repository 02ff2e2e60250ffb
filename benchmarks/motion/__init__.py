"""A temporal benchmark rendered from photographs: clips whose classes need order, and clips that one frame tells."""
