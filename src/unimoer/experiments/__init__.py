"""From a plan to a decision: arms x seeds, their scores, and the verdict on interference."""
