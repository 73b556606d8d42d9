"""The paper's figures, and the bars of the method: cases, runs, tables and pictures."""
