"""Text and dialogues as token sequences to calibrate, train and measure on."""
