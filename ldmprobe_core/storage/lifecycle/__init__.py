"""What happens to finished runs in a store: which are kept, and what of them."""
