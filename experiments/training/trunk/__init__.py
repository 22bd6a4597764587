"""A trunk and a fine stage learned from photographs whose landmarks were corrected by hand."""
