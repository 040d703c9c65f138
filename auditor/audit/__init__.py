"""The fan-out: many devices asked at once, each read whole, every outcome written as it comes."""
