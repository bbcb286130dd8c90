"""What the sources have."""

HANDBOOK = (
    "A bee that has found food dances on the comb, and others follow it.",
    "Bees build their comb from wax.",
    "The angle of the dance to the vertical is the angle of the way to the sun.",
)
FIELD_NOTES = (
    "The longer the waggle lasts, the longer is the way to the food.",
    "It rained, and nothing flew.",
    "Two bees danced for the same field of clover.",
)
ARCHIVE = (
    "Aristotle saw that a bee which has found a flower is followed by others.",
    "Honey was taxed by the jar.",
)
