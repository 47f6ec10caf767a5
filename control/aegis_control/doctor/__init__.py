"""`aegis-control doctor`: what is wrong with control and its surroundings, and what mends it."""
