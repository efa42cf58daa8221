"""From predictions to numbers that can be trusted, and to a page that shows them."""
