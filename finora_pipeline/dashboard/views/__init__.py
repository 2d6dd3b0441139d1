"""One module for each group of pages: what it needs is asked for here, and figures are computed elsewhere."""
