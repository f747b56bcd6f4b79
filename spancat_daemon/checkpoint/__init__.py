"""What a trainer wrote: its files, its layout, the proof that it is whole and of one generation."""
