"""How the product is run: here the demo."""
