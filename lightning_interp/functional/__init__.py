"""Pure tensor functions: the mathematics, with no state and no Trainer."""
