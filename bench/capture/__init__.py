"""End to end on a GPU: capture of a 7B image model, of a 70B-shaped decoder, and layer streaming."""
