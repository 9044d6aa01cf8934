"""How a CA is asked, whatever kind of CA it is."""
